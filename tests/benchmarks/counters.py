"""The FLOP counters that `bench_trace.py` compares, and what one of them takes, in a process of its own."""

from __future__ import annotations

import contextlib
import functools
import gc
import multiprocessing
import os
import statistics
import time
import timeit
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import timm
import torch
from harness import peak_growth_mib
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pytest_flops import trace
from pytest_flops.counting.fx_names import is_leaf
from pytest_flops.counting.shapes import forget

Count = Callable[[nn.Module, Tensor], int]
COUNTERS: dict[str, Count] = {}
"""By name; each gets a model in eval mode and its input, both on meta or both on the CPU."""

ON_META = {"bare forward", "floor", "trace, cold", "trace, warm", "FlopCounterMode"}
ON_REAL = {"bare forward (real)", "FlopCounterMode (real)"}
"""What runs there only; any other counter is tried on meta first, and on the CPU where it raises."""


def counter(name: str) -> Callable[[Count], Count]:
    """Register a counter."""

    def register(count: Count) -> Count:
        COUNTERS[name] = count
        return count

    return register


@counter("bare forward")
@counter("bare forward (real)")
def bare(model: nn.Module, x: Tensor) -> int:
    """Run the model and count nothing: 1.00 in the table when on meta."""
    model(x)
    return 0


@counter("trace, cold")
def trace_cold(model: nn.Module, x: Tensor) -> int:
    """Count as the first trace of a process does, with an empty memo."""
    forget()
    return trace(model, x).flops


@counter("trace, warm")
def trace_warm(model: nn.Module, x: Tensor) -> int:
    """Count a model that has been counted before."""
    return trace(model, x).flops


@counter("FlopCounterMode")
@counter("FlopCounterMode (real)")
def torch_counter(model: nn.Module, x: Tensor) -> int:
    """Count with PyTorch's own counter."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as mode:
        model(x)
    return mode.get_total_flops()


@counter("fvcore")
def fvcore(model: nn.Module, x: Tensor) -> int:
    """Count MACs over a `torch.jit` trace."""
    from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(model, x).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return int(analysis.total())


@counter("ptflops")
def ptflops(model: nn.Module, x: Tensor) -> int:
    """Count MACs; it makes its own input."""
    from ptflops import get_model_complexity_info

    quiet = {"as_strings": False, "print_per_layer_stat": False, "verbose": False}
    macs, _ = get_model_complexity_info(model, tuple(x.shape[1:]), **quiet)
    if macs is None:
        raise RuntimeError("returned None")
    return int(macs)


@counter("thop")
def thop(model: nn.Module, x: Tensor) -> int:
    """Count MACs by hooks on modules."""
    from thop import profile

    return int(profile(model, inputs=(x,), verbose=False)[0])


@counter("torchinfo")
def torchinfo(model: nn.Module, x: Tensor) -> int:
    """Count MACs ("mult-adds") of modules by the sizes of their parameters."""
    from torchinfo import summary

    return int(summary(model, input_data=x, verbose=0, device=x.device).total_mult_adds)


@counter("calflops")
def calflops(model: nn.Module, x: Tensor) -> int:
    """Count FLOPs by patched functions."""
    from calflops import calculate_flops

    return int(calculate_flops(model, args=[x], print_results=False, output_as_string=False)[0])


@counter("torch_flops")
def torch_flops(model: nn.Module, x: Tensor) -> int:
    """Count FLOPs over a `torch.fx` graph."""
    from torch_flops import TorchFLOPsByFX

    graph = TorchFLOPsByFX(model)
    graph.propagate(x)
    return int(graph.print_total_flops(show=False))


@counter("DeepSpeed")
def deepspeed(model: nn.Module, x: Tensor) -> int:
    """Count FLOPs by patched functions; spared the warm-up that it does by default."""
    from deepspeed.profiling.flops_profiler import get_model_profile

    quiet = {"print_profile": False, "as_string": False, "warm_up": 0}
    return int(get_model_profile(model, args=[x], **quiet)[0])


# The floor --------------------------------------------------------------------------------------------------


class Replay(TorchFunctionMode):
    """Answer every call of a PyTorch function or leaf module with what it returned in a first run.

    What is left of a forward pass is the user's own Python code and the least that it takes to get hold of
    a call. A counter that runs this code once and sees the calls cannot be faster, whatever it remembers.
    """

    def __init__(self) -> None:
        super().__init__()
        self._answers: list[Any] = []
        self._left: Iterator[Any] | None = None
        self._inside = False

    def rewind(self) -> None:
        """Start again at the first answer."""
        self._left = iter(self._answers)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return next(self._left) if self._left else self._record(func, args, kwargs or {})

    def call_leaf(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Stand for the call of a leaf module."""
        return next(self._left) if self._left else self._record(module._call_impl, args, kwargs)

    def _record(self, func: Any, args: Any, kwargs: Any) -> Any:
        if self._inside:
            return func(*args, **kwargs)
        self._inside = True
        try:
            self._answers.append(func(*args, **kwargs))
        finally:
            self._inside = False
        return self._answers[-1]


@contextlib.contextmanager
def replaying(model: nn.Module, x: Tensor) -> Iterator[Count]:
    """Give the bare forward pass of this model with everything in it answered at once."""
    replay = Replay()
    leaves = [module for module in model.modules() if is_leaf(type(module))]
    for module in leaves:
        module.__dict__["_compiled_call_impl"] = functools.partial(replay.call_leaf, module)

    def run(model: nn.Module, x: Tensor) -> int:
        with replay:
            model(x)
        return 0

    run(model, x)

    def run_again(model: nn.Module, x: Tensor) -> int:
        replay.rewind()
        return run(model, x)

    try:
        yield run_again
    finally:
        for module in leaves:
            del module.__dict__["_compiled_call_impl"]


# One counter ------------------------------------------------------------------------------------------------


def build(name: str, device: str) -> tuple[nn.Module, Tensor]:
    """Return a model in eval mode and an image for it."""
    with torch.device(device):
        return timm.create_model(name).eval(), torch.zeros(1, 3, 224, 224)


def try_on(name: str, model: str) -> dict[str, Any]:
    """Return where a counter takes a model, if anywhere, with what memory, and what it raised elsewhere."""
    devices = ["meta"] if name in ON_META else ["cpu"] if name in ON_REAL else ["meta", "cpu"]
    reason = ""
    for device in devices:
        try:
            mib = memory(name, model, device)
        except Exception as err:  # whatever a counter raises is its answer
            reason = f"{type(err).__name__}: {err}".splitlines()[0][:150]
        else:
            return {"on": device, "MiB": mib, "reason": reason}
    return {"reason": reason}


def memory(name: str, model: str, device: str) -> float:
    """Return by how many MiB building a model and counting it raises the peak of a process."""
    context = multiprocessing.get_context("fork")  # a heap in which no large model has left room
    with context.Pool(1) as pool:
        return pool.apply(peak_growth_mib, (_build_and_count, name, model, device))


def _build_and_count(name: str, model: str, device: str) -> None:
    COUNTERS[name](*build(model, device))


def import_lazily(name: str) -> None:
    """Let a counter import what it does for its first model, which no later one pays for again."""
    for device in ("meta", "cpu"):
        with torch.device(device), contextlib.suppress(Exception):
            COUNTERS[name](nn.Sequential(nn.Conv2d(3, 2, 3)).eval(), torch.zeros(1, 3, 8, 8))


def measure(name: str, model_name: str, tried: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Return what a counter takes for a model, given where it takes it, and what it counts."""
    if "on" not in tried:
        return tried
    base, (model, x) = build(model_name, "meta"), build(model_name, tried["on"])
    count = COUNTERS[name](model, x)
    return {**tried, "count": count, **time_in_rounds(COUNTERS[name], (model, x), base, rounds)}


def measure_floor(model_name: str, rounds: int) -> dict[str, Any]:
    """Return what the floor takes: see `Replay`."""
    base, (model, x) = build(model_name, "meta"), build(model_name, "meta")
    with replaying(model, x) as run:
        return {"on": "meta", **time_in_rounds(run, (model, x), base, rounds)}


def time_in_rounds(
    count: Count, given: tuple[nn.Module, Tensor], base: tuple[nn.Module, Tensor], rounds: int
) -> dict[str, float]:
    """Return medians over rounds that each time a bare forward pass on meta and then the counter."""
    timers = [
        timeit.Timer(functools.partial(run, *arguments), timer=time.process_time)
        for run, arguments in ((bare, base), (count, given))
    ]
    times = []
    for _ in range(rounds + 1):  # the first warms up
        gc.collect()
        times.append([timer.timeit(1) * 1e3 for timer in timers])
    return {
        "ms": statistics.median(ms for _, ms in times[1:]),
        "ratio": statistics.median(ms / bare_ms for bare_ms, ms in times[1:]),
    }


def figures(name: str, rounds: int, models: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return what a counter takes for each model; from now on nobody sees what this process prints."""
    with open(os.devnull, "w") as nowhere:
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with torch.no_grad():
        if name == "floor":
            return {model: measure_floor(model, rounds) for model in models}
        import_lazily(name)
        taken = {model: try_on(name, model) for model in models}
        return {model: measure(name, model, taken[model], rounds) for model in models}
