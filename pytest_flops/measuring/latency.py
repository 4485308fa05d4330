"""`measure_latency`: how long a forward pass takes, steady enough on a busy machine to be a budget.

Milliseconds by themselves are not. With other processes on the cores the median of a ResNet-18 forward pass
moves by a factor of 3: they take the core away, and while they run on the next one they slow this one down
(shared caches, memory, execution units, clock). So three things are done about it:

1. Time in which this thread was ready to run and waited for a core is taken off, where Linux counts it
   and the work is done by one thread. All other time counts: arithmetic, Python, sleep, locks, disks.
2. The model runs in turn with a fixed reference workload, on the same device and threads, and each of its
   times is divided by the mean of the reference's before and after it: what slows both cancels.
3. What remains is chance, which rarely goes the same way several times: the result is a median, and what
   would break a budget or become a baseline is measured three times (`plugin/measure.py`).

`tests/benchmarks/bench_latency.py` shows what comes of it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise, repeat
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pytest_flops.errors import MeasurementError
from pytest_flops.measuring.clocks import Clock, clock_for
from pytest_flops.measuring.propagate import failures_explained
from pytest_flops.measuring.ready import Ready
from pytest_flops.measuring.reference import REFERENCE_VERSION, reference_on
from pytest_flops.results.measured import Latency
from pytest_flops.units import plural


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done for one latency: by default what takes about two seconds, or nine forward passes."""

    block_ns: float = 5e6
    """How long the model runs from one reading of the clock to the next, unless a single run takes longer."""
    reference_share: float = 0.5
    """How long the reference runs, as a share of that."""
    most_runs: int = 100_000
    """The most runs between two readings."""
    least_pairs: int = 7
    """The least number of pairs, however long they take."""
    most_pairs: int = 300
    """The most, however short they are."""
    work_s: float = 1.5
    """Enough pairs, once the model and the reference have worked for so long."""
    longest_s: float = 5.0
    """Enough pairs, once so much time has passed: others have the cores."""

    @property
    def passes(self) -> int:
        """The least number of forward passes: one to warm up, one to see how long it takes, and the pairs."""
        return self.least_pairs + 2


EFFORT = Effort()


def measure_latency(
    model: Callable[..., Any],
    args: Any = (),
    kwargs: Any = None,
    *,
    threads: int | None = 1,
    time_limit: float = 60.0,
    train: bool = False,
) -> Latency:
    """Return how long one forward pass of a model takes, by itself and against the reference workload.

    The arguments are those of `trace`; inputs are copied to the model's device, before the clock starts. A
    compiled model runs compiled. The model is warmed up and left as it was found. On the CPU it runs on
    `threads` intra-op threads, None for as many as there are set; the number is restored afterwards.
    `time_limit` is for the whole measurement, in seconds: one takes about two, or nine forward passes.

    Raises `MeasurementError` where the model is not on one CPU or CUDA device, takes too long for its time
    limit, runs out of memory (naming the node), loses its device or where the clock is broken; `TraceError`
    for what cannot be traced; and whatever the model raises.
    """
    _require_positive(threads, time_limit)
    limit = _TimeLimit(time_limit, EFFORT.passes, perf_counter)
    return _latency(Ready.of(model, args, kwargs, train=train), threads, limit, EFFORT, None)


def latency_of(
    ready: Ready,
    *,
    threads: int | None = 1,
    time_limit: float = 60.0,
    effort: Effort = EFFORT,
    clock: Clock | None = None,
    wall_s: Callable[[], float] = perf_counter,
) -> Latency:
    """Return the latency of a model that is ready, as `measure_latency` does.

    Work is timed by the `clock`, or by that of the model's device; time limits are kept by `wall_s`.
    """
    _require_positive(threads, time_limit)
    return _latency(ready, threads, _TimeLimit(time_limit, effort.passes, wall_s), effort, clock)


def _latency(
    ready: Ready, threads: int | None, limit: _TimeLimit, effort: Effort, clock: Clock | None
) -> Latency:
    with (
        failures_explained(ready),
        _intra_op_threads(ready.device, threads),
        ready.contents_kept(),
        ready.surroundings(),
    ):
        return summarised(_pairs(ready, limit, effort, clock or clock_for(ready.device)))


def _require_positive(threads: int | None, time_limit: float) -> None:
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise MeasurementError(f"threads={threads!r}: choose 1 or more, or None for as many as PyTorch uses.")
    if not (math.isfinite(time_limit) and time_limit > 0):
        raise MeasurementError(f"time_limit={time_limit!r}: choose a number of seconds above 0.")


@contextmanager
def _intra_op_threads(device: torch.device, threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if threads is not None and device.type == "cpu":
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, slots=True)
class Pair:
    """Times in ns: of one forward pass, and of one run of the reference before and after it."""

    model: float
    before: float
    after: float

    @property
    def ratio(self) -> float:
        """The time of the model against the mean of the reference's before and after it."""
        return 2 * self.model / (self.before + self.after)


def summarised(pairs: list[Pair]) -> Latency:
    """Return what pairs say, at least two of them."""
    low, ratio, high = statistics.quantiles([pair.ratio for pair in pairs], n=4, method="inclusive")
    return Latency(
        ratio=ratio,
        median_ms=statistics.median(pair.model for pair in pairs) / 1e6,
        spread=(high - low) / ratio,
        samples=len(pairs),
        reference=REFERENCE_VERSION,
    )


class _TimeLimit:
    """How long a measurement of so many forward passes may take from now on, by which clock."""

    def __init__(self, seconds: float, passes: int, wall_s: Callable[[], float]) -> None:
        self.seconds = seconds
        self.passes = passes
        self.wall_s = wall_s
        self.deadline = wall_s() + seconds

    @property
    def left_s(self) -> float:
        return self.deadline - self.wall_s()

    def require(self, seconds: float, ready: Ready, pass_ns: float) -> None:
        """Raise `MeasurementError` where so much time is not left, for a model that takes `pass_ns` a run."""
        if seconds > self.left_s:
            raise MeasurementError(
                f"{ready.subject.name} is too slow for its time limit of {self.seconds:g} s: one forward "
                f"pass takes {pass_ns / 1e9:.3g} s, and a measurement needs {self.passes}. Give it "
                "smaller inputs or more time."
            )


def _pairs(ready: Ready, limit: _TimeLimit, effort: Effort, clock: Clock) -> list[Pair]:
    """Run the model and the reference in turn, each in blocks long enough for the clock.

    torch.utils.benchmark.Timer would run each block's statement twice more to warm up: for a model of 70 ms,
    where a block is one run, that is three times the cost.
    """
    reference = reference_on(ready.device)

    def run_model(times: int) -> float:
        args, kwargs = ready.fresh_inputs()
        return _elapsed(clock, times, lambda: ready.given(*args, **kwargs))

    def run_reference(times: int) -> float:
        return _elapsed(clock, times, reference)

    limit.require(0, ready, _warm_up(ready, clock))
    runs, block_ns = _block(run_model, effort.most_runs if _is_reusable(ready) else 1, effort.block_ns)
    limit.require(effort.least_pairs * block_ns / 1e9, ready, block_ns / runs)
    rounds, _ = _block(run_reference, effort.most_runs, effort.reference_share * block_ns)

    models: list[float] = []
    references = [run_reference(rounds)]
    end = limit.wall_s() + min(effort.longest_s, limit.left_s)
    # By the clock that leaves waiting out: a busy machine takes longer, but makes as many pairs.
    while len(models) < effort.least_pairs or (
        sum(models) + sum(references) < effort.work_s * 1e9
        and len(models) < effort.most_pairs
        and limit.wall_s() < end
    ):
        models.append(run_model(runs))
        references.append(run_reference(rounds))
        if len(models) < effort.least_pairs:
            limit.require(0, ready, models[-1] / runs)
    return [
        Pair(model / runs, before / rounds, after / rounds)
        for model, (before, after) in zip(models, pairwise(references), strict=True)
    ]


def _elapsed(clock: Clock, times: int, run: Callable[[], Any]) -> float:
    started = clock.now_ns()
    for _ in repeat(None, times):
        run()
    elapsed = clock.now_ns() - started
    if not (math.isfinite(elapsed) and elapsed > 0):
        raise MeasurementError(
            f"The clock says that {plural(times, 'run')} took {elapsed} ns: nothing was measured."
        )
    return elapsed


def _warm_up(ready: Ready, clock: Clock) -> float:
    """Run the model once, uncounted: it may allocate, compile, choose algorithms. Return the time in ns."""
    args, kwargs = ready.fresh_inputs()
    started = clock.now_ns()
    output = ready.given(*args, **kwargs)
    if isinstance(output, Iterator):
        raise MeasurementError(
            f"Cannot measure {ready.subject.name}: it returns an iterator, whose work is not done yet. "
            "Measure a function that runs it to its end."
        )
    return clock.now_ns() - started


def _is_reusable(ready: Ready) -> bool:
    """Tell whether a run leaves its arguments ready for another: a cache has grown, an iterator is spent."""
    plain = (Tensor, bool, int, float, complex, str, type(None), torch.dtype, torch.device)
    return all(isinstance(leaf, plain) for leaf in tree_leaves(ready.fresh_inputs()))


def _block(run: Callable[[int], float], most: int, wanted_ns: float) -> tuple[int, float]:
    """Return how many runs make up a block of about the wanted length, and the length that it has."""
    times = 1
    while True:
        elapsed = run(times)
        if elapsed >= wanted_ns / 2 or times >= most:
            return times, elapsed
        times = min(most, math.ceil(times * max(1.5, wanted_ns / elapsed)))
