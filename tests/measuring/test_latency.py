"""`measure_latency`: what is timed and what is not, what the pairs say, and what cannot be measured."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from pytest_flops import Latency, MeasurementError, measure_latency
from pytest_flops.measuring.clocks import Clock, CudaClock, WallClock, clock_for
from pytest_flops.measuring.latency import Effort, Pair, latency_of, summarised
from pytest_flops.measuring.ready import Ready
from pytest_flops.measuring.reference import REFERENCE_VERSION
from tests.nets import Calls
from tests.settings import threads as on_threads

X = torch.randn(3, 5)
QUICK = Effort(most_runs=1, work_s=0.0)
"""Only the least number of pairs, each of single runs: where the time itself does not matter."""


def latency(
    model: Callable[..., Any],
    args: Any = (),
    kwargs: Any = None,
    *,
    train: bool = False,
    effort: Effort = QUICK,
    **options: Any,
) -> Latency:
    """Measure as `measure_latency` does, but with an effort and by clocks of the test's own."""
    return latency_of(Ready.of(model, args, kwargs, train=train), effort=effort, **options)


class FakeTime:
    """A clock for work and one for the wall, by which time passes while a model naps and the first is read.

    What a reading takes is all the time that the reference workload ever takes.
    """

    def __init__(self, reading_ns: int = 1000) -> None:
        self.ns = 0
        self.reading_ns = reading_ns

    def now_ns(self) -> int:
        self.ns += self.reading_ns
        return self.ns

    def now_s(self) -> float:
        return self.ns / 1e9

    def nap(self, seconds: float) -> None:
        self.ns += round(seconds * 1e9)

    def latency(self, model: Callable[..., Any], **options: Any) -> Latency:
        """Measure a model on X by these clocks."""
        return latency(model, X, clock=self, wall_s=self.now_s, **options)


def on_real(act: Callable[[], Any]) -> Calls:
    """A model that does something on real tensors only: not while it is traced."""

    def forward(model: Calls, x: Tensor) -> Tensor:
        if not x.is_meta:
            act()
        return model.lin(x)

    return Calls(forward)


def raising(error: Exception) -> Calls:
    def act() -> None:
        raise error

    return on_real(act)


# -- what pairs say -------------------------------------------------------------------------------------


def test_a_ratio_is_that_to_the_mean_of_the_references_around_it():
    assert Pair(model=30.0, before=5.0, after=15.0).ratio == 3.0


def test_the_result_is_a_median_with_its_spread():
    pairs = [Pair(ratio * 10.0, 5.0, 15.0) for ratio in (9.0, 1.0, 3.0, 4.0, 2.0)]
    assert summarised(pairs) == Latency(
        ratio=3.0, median_ms=30 / 1e6, spread=(4 - 2) / 3, samples=5, reference=REFERENCE_VERSION
    )


# -- what is timed --------------------------------------------------------------------------------------


def test_a_real_measurement_by_the_clocks_of_this_machine():
    found = measure_latency(nn.Linear(5, 5), X)
    assert found.ratio > 0
    assert 7 <= found.samples <= 300
    assert found.reference == REFERENCE_VERSION


def test_more_work_takes_longer():
    fake = FakeTime(
        reading_ns=2_000_000
    )  # so the reference takes 2 ms, and a model's run 2 ms beside its nap
    found = [fake.latency(on_real(lambda ms=ms: fake.nap(ms / 1e3))) for ms in (4, 10)]
    assert found == [Latency(3.0, 6.0, 0.0, 7, 1), Latency(6.0, 12.0, 0.0, 7, 1)]


def test_sleeping_counts():
    clock = WallClock(alone=True)
    before = clock.now_ns()
    time.sleep(0.01)
    assert (
        clock.now_ns() - before >= 10_000_000
    )  # on any machine, however busy: no sleep is shorter than asked


def test_the_warm_up_does_not_count():
    fake, naps = FakeTime(), itertools.chain([0.5], itertools.repeat(0.01))
    found = fake.latency(on_real(lambda: fake.nap(next(naps))))
    assert found.median_ms == 10.001
    assert found.samples == 7


def test_a_fast_model_runs_in_blocks():
    fake, calls = FakeTime(reading_ns=100_000), []
    model = on_real(lambda: calls.append(fake.nap(0.0001)))
    # A run takes 0.1 ms, and so does reading the clock: one run is 0.2 ms, a 25th of a block, and 25 runs are
    # 2.6 ms, half a block, which will do.
    found = fake.latency(model, effort=Effort(most_runs=30, work_s=0.0))
    assert found.median_ms == 0.104  # 2.6 / 25
    assert len(calls) == 1 + 1 + 25 + 7 * 25  # warm-up, one run, a block, pairs


@pytest.mark.parametrize(
    ("effort", "pairs"),
    [
        (Effort(most_runs=1), 75),  # 20 ms each, and the first reference 10 ms: 1510 ms with the 75th
        (Effort(most_runs=1, work_s=0.2), 10),
        (Effort(most_runs=1, work_s=0.0, least_pairs=3), 3),
        (Effort(most_runs=1, most_pairs=20), 20),
        (Effort(most_runs=1, longest_s=0.5), 13),  # with two readings for every time, 40 ms each
    ],
)
def test_pairs_are_taken_until_they_are_enough(effort, pairs):
    assert FakeTime(reading_ns=10_000_000).latency(nn.Linear(5, 5), effort=effort).samples == pairs


def test_a_run_does_not_see_what_another_left_in_its_arguments():
    seen: list[int] = []

    class Cache:
        def __init__(self) -> None:
            self.items: list[Tensor] = []

    def remember(model: Calls, x: Tensor, cache: Cache) -> Tensor:
        seen.append(len(cache.items))
        cache.items.append(x)
        return model.lin(x)

    latency(Calls(remember), (X, cache := Cache()))
    assert set(seen) == {0}
    assert cache.items == []


def test_keyword_inputs_functions_and_methods_are_measured():
    assert latency(lambda x, *, by: x * by, X, {"by": torch.ones(5)}).ratio > 0
    assert latency(nn.Linear(5, 5).forward, X).ratio > 0


def test_no_mode_is_active_and_no_gradient_taken():
    seen: list[Any] = []

    def watched(model: Calls, x: Tensor) -> Tensor:
        if not x.is_meta:
            modes = [*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack()]
            seen.append((modes, model.training, model.lin(x).requires_grad))
        return model.lin(x)

    latency(model := Calls(watched).train(), X)
    assert all(found == ([], False, False) for found in seen)
    assert model.training
    seen.clear()
    latency(model.eval(), X, train=True)
    assert all(found == ([], True, False) for found in seen)
    assert not model.training


def test_a_compiled_model_runs_compiled():
    compiled: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            compiled.append("run")
            return graph(*args)

        return run

    latency(torch.compile(nn.Linear(5, 5), backend=backend), X)
    assert len(compiled) > QUICK.least_pairs


# -- threads --------------------------------------------------------------------------------------------


@pytest.fixture
def two_threads() -> Iterator[None]:
    with on_threads(2):
        yield


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("threads", "seen"), [(1, {1}), (3, {3}), (None, {2})])
def test_the_model_has_its_threads_and_the_process_gets_its_own_back(threads, seen):
    found: list[int] = []
    latency(on_real(lambda: found.append(torch.get_num_threads())), X, threads=threads)
    assert set(found) == seen
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_threads_are_restored_when_the_model_raises():
    with pytest.raises(KeyError, match="mine"):
        measure_latency(raising(KeyError("mine")), X)
    assert torch.get_num_threads() == 2


# -- clocks ---------------------------------------------------------------------------------------------


@pytest.fixture
def schedstat(tmp_path: Path) -> Path:
    """Return a file for what Linux says of a thread: how long it ran, how long it waited, how often."""
    return tmp_path / "schedstat"


def test_time_spent_waiting_for_a_core_does_not_count(schedstat):
    def account(waited: int) -> None:
        schedstat.write_text(f"1234 {waited} 56")

    def wall_ns() -> int:
        now, waited = next(readings)
        account(waited)
        return now

    account(5)
    # The second reading is cut in two: the core was taken away for 40 ns between its parts.
    readings = iter([(100, 5), (1000, 70), (1050, 70)])
    clock = WallClock(alone=True, wall_ns=wall_ns, schedstat=schedstat)
    assert clock.now_ns() == 100 - 5
    account(30)
    assert clock.now_ns() == 1050 - 70


def test_all_wall_time_counts_where_others_work_for_the_thread(schedstat):
    schedstat.write_text("1234 5 56")
    assert WallClock(alone=False, wall_ns=lambda: 100, schedstat=schedstat).now_ns() == 100


def test_all_wall_time_counts_where_the_system_keeps_no_account(schedstat):
    assert WallClock(alone=True, wall_ns=lambda: 100, schedstat=schedstat).now_ns() == 100


class Readings:
    """A clock that reads what it is told."""

    def __init__(self, readings: Iterator[float]) -> None:
        self.readings = readings

    def now_ns(self) -> float:
        return next(self.readings)


@pytest.mark.parametrize("elapsed", [0, -5, float("nan"), float("inf")])
def test_a_broken_clock_is_an_error(elapsed):
    clock: Clock = Readings(itertools.chain([0, 10], itertools.cycle([0, elapsed])))
    with pytest.raises(MeasurementError) as caught:
        latency(nn.Linear(5, 5), X, clock=clock)
    assert str(caught.value) == f"The clock says that 1 run took {elapsed} ns: nothing was measured."


def test_what_the_clock_says_reaches_the_result():
    clock = Readings(itertools.count(step=20_000_000))  # every block of either takes 20 ms
    found = latency(nn.Linear(5, 5), X, clock=clock)
    assert found == Latency(ratio=1.0, median_ms=20.0, spread=0.0, samples=7, reference=1)


def test_the_cuda_clock_waits_for_its_own_device(monkeypatch):
    log: list[Any] = []
    monkeypatch.setattr(torch.cuda, "synchronize", log.append)
    second = torch.device("cuda", 1)
    assert CudaClock(second, wall_ns=lambda: log.append("read") or 7).now_ns() == 7
    assert log == [second, "read"]


def test_a_device_has_its_clock():
    second = torch.device("cuda", 1)
    clock = clock_for(second)
    assert isinstance(clock, CudaClock)
    assert clock.device == second
    assert isinstance(clock_for(torch.device("cpu")), WallClock)


# -- what cannot be measured ----------------------------------------------------------------------------


@pytest.mark.parametrize(("nap", "limit", "passes"), [(0.3, 0.25, 1), (0.1, 0.6, 2)])
def test_a_model_too_slow_for_its_time_limit_is_refused_before_the_time_is_up(nap, limit, passes):
    fake, naps = FakeTime(), []
    with pytest.raises(MeasurementError) as caught:
        fake.latency(on_real(lambda: naps.append(fake.nap(nap))), time_limit=limit)
    assert len(naps) == passes
    assert str(caught.value) == (
        f"Calls is too slow for its time limit of {limit} s: one forward pass takes {nap} s, and a "
        "measurement needs 9. Give it smaller inputs or more time."
    )


def test_a_model_that_becomes_too_slow_for_its_time_limit():
    fake, naps = FakeTime(), itertools.chain([0.01] * 4, itertools.repeat(0.3))
    with pytest.raises(MeasurementError, match=r"time limit of 0\.5 s: one forward pass takes 0\.3 s"):
        fake.latency(on_real(lambda: fake.nap(next(naps))), time_limit=0.5)


def test_out_of_memory_names_the_node():
    model = Calls(lambda model, x: model.lin(x).repeat(1 << 30, 1 << 12)[:3])
    with pytest.raises(MeasurementError) as caught:
        measure_latency(model, X)
    assert str(caught.value).startswith("Calls ran out of memory on cpu, at node repeat (repeat): ")


def test_out_of_memory_that_does_not_come_again():
    def forward(model: Calls, x: Tensor) -> Tensor:
        if not x.is_meta and next(turns) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to.")
        return model.lin(x)

    turns = itertools.count()
    with pytest.raises(MeasurementError) as caught:
        measure_latency(Calls(forward), X)
    assert str(caught.value) == "Calls ran out of memory on cpu: CUDA out of memory. Tried to."
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def test_a_device_that_disappears():
    error = RuntimeError("CUDA error: the device is gone\nCompile with TORCH_USE_CUDA_DSA.")
    with pytest.raises(MeasurementError) as caught:
        measure_latency(raising(error), X)
    assert str(caught.value) == (
        "cpu failed while Calls was measured: CUDA error: the device is gone. Check it and run again."
    )
    assert caught.value.__cause__ is error


def test_other_errors_are_the_model_s_own():
    with pytest.raises(RuntimeError, match=r"^mine$"):
        measure_latency(raising(RuntimeError("mine")), X)


def test_work_that_is_not_done_yet_is_refused():
    with pytest.raises(MeasurementError) as caught:
        measure_latency(Calls(lambda model, x: (model.lin(row) for row in x)), X)
    assert str(caught.value) == (
        "Cannot measure Calls: it returns an iterator, whose work is not done yet. "
        "Measure a function that runs it to its end."
    )


def test_a_model_on_meta_or_on_two_devices_is_refused():
    with pytest.raises(MeasurementError, match=r"^Cannot measure Linear: it is on meta\."):
        measure_latency(nn.Linear(5, 4, device="meta"), X)
    with pytest.raises(MeasurementError, match=r"^Cannot measure Sequential: it is spread over cpu, meta\."):
        measure_latency(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3, device="meta")), X)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_threads_that_cannot_be_had(threads):
    with pytest.raises(MeasurementError) as caught:
        measure_latency(nn.Linear(5, 5), X, threads=threads)
    assert str(caught.value) == (
        f"threads={threads!r}: choose 1 or more, or None for as many as PyTorch uses."
    )


@pytest.mark.parametrize("limit", [0, -1.0, float("nan"), float("inf")])
def test_time_limits_that_mean_nothing(limit):
    with pytest.raises(MeasurementError) as caught:
        measure_latency(nn.Linear(5, 5), X, time_limit=limit)
    assert str(caught.value) == f"time_limit={limit!r}: choose a number of seconds above 0."


# -- what is left ---------------------------------------------------------------------------------------


def test_the_model_and_its_inputs_are_left_as_found():
    model, x = nn.Sequential(nn.BatchNorm1d(5), nn.ReLU(inplace=True)), X.clone()
    model.register_buffer("steps", torch.zeros(()))
    model.register_forward_hook(lambda module, args, output: module.steps.add_(1) and None)
    found = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seed = torch.get_rng_state()
    latency(model, x, train=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, found[name]), name
    assert torch.equal(x, X)
    assert torch.equal(torch.get_rng_state(), seed)


# -- CUDA -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_model_is_timed_until_its_work_is_done():
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    layer = nn.Linear(4096, 4096).to(device)
    x = torch.randn(4096, 4096)
    once, thrice = measure_latency(layer, x), measure_latency(nn.Sequential(*[layer] * 3), x)
    # 137 GFLOP cannot take less than this on any device of today; launches alone take microseconds.
    assert once.median_ms > 0.1
    assert thrice.median_ms > 0.3
