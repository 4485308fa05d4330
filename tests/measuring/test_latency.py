"""`measure_latency`: what is timed and what is not, what the pairs say, and what cannot be measured."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from pytest_flops import Latency, MeasurementError, measure_latency
from pytest_flops.measuring import clocks, latency
from pytest_flops.measuring.latency import Pair, summarised

X = torch.randn(3, 5)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take only the least number of pairs: where the time itself does not matter."""
    monkeypatch.setattr(latency, "_PAIRING_S", 0.0)


class Calls(nn.Module):
    """A model with one Linear(5, 5) whose forward is a function of (module, *inputs)."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.lin = nn.Linear(5, 5)
        self.run = forward

    def forward(self, *inputs: Any) -> Any:
        return self.run(self, *inputs)


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
        ratio=3.0, median_ms=30 / 1e6, spread=(4 - 2) / 3, samples=5, reference=latency.REFERENCE_VERSION
    )


# -- what is timed --------------------------------------------------------------------------------------


def test_more_work_takes_longer():
    layer = nn.Linear(512, 512)
    x = torch.randn(256, 512)
    once, thrice = measure_latency(layer, x), measure_latency(nn.Sequential(layer, layer, layer), x)
    assert thrice.ratio > once.ratio  # by how much is a matter for bench_latency.py


@pytest.mark.usefixtures("quick")
def test_sleeping_counts_and_the_warm_up_does_not():
    naps = itertools.chain([0.5], itertools.repeat(0.01))
    found = measure_latency(on_real(lambda: time.sleep(next(naps))), X)
    assert 10 <= found.median_ms < 50
    assert found.samples == latency._LEAST_PAIRS
    assert found.reference == latency.REFERENCE_VERSION


@pytest.mark.usefixtures("quick")
def test_a_fast_model_runs_in_blocks():
    calls: list[None] = []
    found = measure_latency(on_real(lambda: calls.append(None)), X)
    assert found.median_ms < 1
    assert len(calls) * found.median_ms > latency._LEAST_PAIRS * latency._BLOCK_NS / 1e6 / 4


@pytest.mark.usefixtures("quick")
def test_a_run_does_not_see_what_another_left_in_its_arguments():
    seen: list[int] = []

    class Cache:
        def __init__(self) -> None:
            self.items: list[Tensor] = []

    def remember(model: Calls, x: Tensor, cache: Cache) -> Tensor:
        seen.append(len(cache.items))
        cache.items.append(x)
        return model.lin(x)

    measure_latency(Calls(remember), (X, cache := Cache()))
    assert set(seen) == {0}
    assert cache.items == []


@pytest.mark.usefixtures("quick")
def test_keyword_inputs_functions_and_methods_are_measured():
    assert measure_latency(lambda x, *, by: x * by, X, {"by": torch.ones(5)}).ratio > 0
    assert measure_latency(nn.Linear(5, 5).forward, X).ratio > 0


@pytest.mark.usefixtures("quick")
def test_no_mode_is_active_and_no_gradient_taken():
    seen: list[Any] = []

    def watched(model: Calls, x: Tensor) -> Tensor:
        if not x.is_meta:
            modes = [*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack()]
            seen.append((modes, model.training, model.lin(x).requires_grad))
        return model.lin(x)

    measure_latency(model := Calls(watched).train(), X)
    assert all(found == ([], False, False) for found in seen)
    assert model.training
    seen.clear()
    measure_latency(model.eval(), X, train=True)
    assert all(found == ([], True, False) for found in seen)
    assert not model.training


@pytest.mark.usefixtures("quick")
def test_a_compiled_model_runs_compiled():
    compiled: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            compiled.append("run")
            return graph(*args)

        return run

    measure_latency(torch.compile(nn.Linear(5, 5), backend=backend), X)
    assert len(compiled) > latency._LEAST_PAIRS


# -- threads --------------------------------------------------------------------------------------------


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("quick", "two_threads")
@pytest.mark.parametrize(("threads", "seen"), [(1, {1}), (3, {3}), (None, {2})])
def test_the_model_has_its_threads_and_the_process_gets_its_own_back(threads, seen):
    found: list[int] = []
    measure_latency(on_real(lambda: found.append(torch.get_num_threads())), X, threads=threads)
    assert set(found) == seen
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_threads_are_restored_when_the_model_raises():
    with pytest.raises(KeyError, match="mine"):
        measure_latency(raising(KeyError("mine")), X)
    assert torch.get_num_threads() == 2


# -- clocks ---------------------------------------------------------------------------------------------


def test_time_spent_waiting_for_a_core_does_not_count(monkeypatch):
    clock = clocks.WallClock(alone=True)
    # The second reading is cut in two: the core was taken away for 40 ns between its parts.
    waited, wall = iter([5, 5, 30, 70, 70, 70]), iter([100, 1000, 1050])
    monkeypatch.setattr(clock, "_waited_ns", lambda: next(waited))
    monkeypatch.setattr(clocks, "perf_counter_ns", lambda: next(wall))
    assert clock.now_ns() == 100 - 5
    assert clock.now_ns() == 1050 - 70


def test_all_wall_time_counts_where_others_work_for_the_thread(monkeypatch):
    monkeypatch.setattr(clocks, "perf_counter_ns", lambda: 100)
    assert clocks.WallClock(alone=False).now_ns() == 100


def test_all_wall_time_counts_where_the_system_keeps_no_account(monkeypatch):
    def missing(*_: Any) -> int:
        raise FileNotFoundError

    monkeypatch.setattr(clocks.os, "open", missing)
    monkeypatch.setattr(clocks, "perf_counter_ns", lambda: 100)
    assert clocks.WallClock(alone=True).now_ns() == 100


class Script:
    """A clock that reads what it is told."""

    def __init__(self, readings: Iterator[float]) -> None:
        self.readings = readings

    def now_ns(self) -> float:
        return next(self.readings)


@pytest.mark.parametrize("elapsed", [0, -5, float("nan"), float("inf")])
def test_a_broken_clock_is_an_error(monkeypatch, elapsed):
    readings = itertools.chain([0, 10], itertools.cycle([0, elapsed]))
    monkeypatch.setattr(latency, "clock_for", lambda device: Script(readings))
    with pytest.raises(MeasurementError) as caught:
        measure_latency(Calls(lambda model, x: model.lin(x)), X)
    assert str(caught.value) == f"The clock says that 1 run took {elapsed} ns: nothing was measured."


@pytest.mark.usefixtures("quick")
def test_what_the_clock_says_reaches_the_result(monkeypatch):
    ticks = itertools.count(step=20_000_000)  # every block of either takes 20 ms
    monkeypatch.setattr(latency, "clock_for", lambda device: Script(ticks))
    found = measure_latency(Calls(lambda model, x: model.lin(x)), X)
    assert found == Latency(ratio=1.0, median_ms=20.0, spread=0.0, samples=7, reference=1)


def test_the_cuda_clock_waits_for_its_own_device(monkeypatch):
    log: list[Any] = []
    monkeypatch.setattr(torch.cuda, "synchronize", log.append)
    monkeypatch.setattr(clocks, "perf_counter_ns", lambda: log.append("read") or 7)
    second = torch.device("cuda", 1)
    assert clocks.clock_for(second).now_ns() == 7
    assert log == [second, "read"]


# -- what cannot be measured ----------------------------------------------------------------------------


@pytest.mark.parametrize(("nap", "limit"), [(0.3, 0.25), (0.1, 0.6)])
def test_a_model_too_slow_for_its_time_limit(nap, limit):
    started = time.perf_counter()
    with pytest.raises(MeasurementError) as caught:
        measure_latency(on_real(lambda: time.sleep(nap)), X, time_limit=limit)
    assert time.perf_counter() - started < 3
    start, end = (
        f"Calls is too slow for its time limit of {limit} s: one forward pass takes ",
        " s, and a measurement needs 9. Give it smaller inputs or more time.",
    )
    message = str(caught.value)
    assert message.startswith(start)
    assert message.endswith(end)
    assert nap <= float(message.removeprefix(start).removesuffix(end)) < nap + 0.2


def test_a_model_that_becomes_too_slow_for_its_time_limit():
    naps = itertools.chain([0.01] * 4, itertools.repeat(0.3))
    with pytest.raises(MeasurementError, match=r"time limit of 0\.5 s: one forward pass takes 0\.3"):
        measure_latency(on_real(lambda: time.sleep(next(naps))), X, time_limit=0.5)


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


@pytest.mark.usefixtures("quick")
def test_the_model_and_its_inputs_are_left_as_found():
    model, x = nn.Sequential(nn.BatchNorm1d(5), nn.ReLU(inplace=True)), X.clone()
    model.register_buffer("steps", torch.zeros(()))
    model.register_forward_hook(lambda module, args, output: module.steps.add_(1) and None)
    found = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seed = torch.get_rng_state()
    measure_latency(model, x, train=True)
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
    assert 2 < thrice.ratio / once.ratio < 4.5
    # 137 GFLOP cannot take less than this on any device of today; launches alone take microseconds.
    assert once.median_ms > 0.1
