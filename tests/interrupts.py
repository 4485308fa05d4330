"""Breaking a trace off at any moment: does it leave the model and the process as they were?

    python tests/interrupts.py [MOMENTS] [SEED]

A signal (Ctrl-C, the alarm of pytest-timeout) may raise between any two lines of Python, those that put
things back included. Here the interpreter's own trace function raises before the n-th line that a trace of
a model runs.
"""

from __future__ import annotations

import functools
import gc
import random
import sys
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import numpy
import torch
import torch.backends.opt_einsum
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as module_code
from torch.overrides import TorchFunctionMode

from pytest_flops import trace
from tests.settings import setting


class Interrupted(BaseException):
    """What the signal's handler raises; no `except Exception` swallows it."""


class Busy(nn.Module):
    """Changes in its forward whatever there is to change."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(5, 5)
        self.norm = nn.BatchNorm1d(5)
        self.attention = nn.MultiheadAttention(5, 1, batch_first=True)
        self.calls = 0
        self.seen: list[int] = []
        self.register_buffer("steps", torch.zeros(5))

    @functools.lru_cache  # noqa: B019  # what a model may have, whatever one thinks of it
    def scale(self, n: int) -> Tensor:
        return torch.arange(n).float().mul(2.0)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(self.calls)
        self.last = self.steps.add_(1)
        torch.use_deterministic_algorithms(True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=False):
            x = self.norm(self.lin(x)) * self.scale(5)
        x = self.attention(x[None], x[None], x[None], need_weights=False)[0][0]
        return F.dropout(x, 0.5, self.training) + torch.rand(5)


def state_of(model: nn.Module) -> Any:
    """Return all that a trace could leave behind in a model, so that equal states are the same state."""

    def frozen(value: Any) -> Any:
        if isinstance(value, Tensor):
            return id(value), value.data_ptr(), value.tolist(), value.requires_grad, value.grad is None
        if isinstance(value, (dict, OrderedDict)):
            return id(value), [(key, frozen(item)) for key, item in value.items()]
        return (id(value), list(value)) if isinstance(value, list) else value

    own = [[frozen(v) for k, v in vars(m).items() if k != "_modules"] for m in model.modules()]
    return [list(vars(m)) for m in model.modules()], own, vars(type(model))["scale"].cache_info()


def state_of_process() -> Any:
    """Return the state of the process in values that can be compared."""
    hooks = {name: list(held) for name, held in vars(module_code).items() if name.endswith("hooks")}
    return (
        (torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist()),
        (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
        (torch.is_autocast_cache_enabled(), torch.autocast_increment_nesting() - 1),
        torch.autocast_decrement_nesting(),
        (torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()),
        (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        (torch.get_default_dtype(), torch.tensor([]).device, torch.get_num_threads()),
        torch.get_deterministic_debug_mode(),
        torch._C._get_deterministic_fill_uninitialized_memory(),
        torch.get_float32_matmul_precision(),
        torch.is_warn_always_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
        (torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()),
        (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()),
        torch._C._check_sparse_tensor_invariants(),
        torch._C._is_multithreading_enabled(),
        torch.backends.opt_einsum.set_flags(),
        list(warnings.filters),
        hooks,
        (F.scaled_dot_product_attention, nn.Module.__call__),
    )


def apart(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test on a thread of its own.

    What is raised at a line of an `except` block of contextlib leaves that block's exception in the state of
    the thread (CPython 3.11), as the context of whatever is raised on it later.
    """

    @functools.wraps(test)
    def on_a_thread(*args: Any, **kwargs: Any) -> None:
        with ThreadPoolExecutor(max_workers=1) as pool:
            pool.submit(test, *args, **kwargs).result()

    return on_a_thread


def traced_by(function: Callable[..., Any]) -> AbstractContextManager[None]:
    """Let the interpreter call a function at every line; afterwards who was called before."""
    return setting(sys.gettrace, sys.settrace, function)


def lines_where(
    run: Callable[[], object], wanted: Callable[[types.FrameType], bool]
) -> tuple[list[int], int]:
    """Return the numbers of the lines that a function runs in frames that are wanted, and of how many."""
    count, found = 0, []

    def at_line(frame: types.FrameType, event: str, arg: Any) -> Any:
        nonlocal count
        if event == "line":
            found.extend([count] if wanted(frame) else [])
            count += 1
        return at_line

    with traced_by(at_line):
        run()
    return found, count


def broken_off(run: Callable[[], object], moment: int) -> BaseException | None:
    """Run a function and raise before the line of this number; return what was raised, None if it was
    done."""
    left = moment

    def at_line(frame: Any, event: str, arg: Any) -> Any:
        nonlocal left
        if event == "line":
            left -= 1
            if left < 0:
                sys.settrace(None)
                raise Interrupted
        return at_line

    try:
        with traced_by(at_line):
            run()
    except Interrupted as err:
        return err
    return None


def moments_of(run: Callable[[], object], number: int, seed: int) -> list[int]:
    """Return numbers of lines that a function runs: half of them anywhere, half before or after `forward`."""
    inside, count = lines_where(run, lambda frame: frame.f_code is Busy.forward.__code__)
    around = [*range(inside[0]), *range(inside[-1], count)]
    draw = random.Random(seed)
    return sorted(draw.choices(range(count), k=number // 2) + draw.choices(around, k=number - number // 2))


class OfTheUser(TorchFunctionMode):
    """A mode that is active around the traces: one that is left too often takes this one away."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def damage(moments: int, seed: int, **how: Any) -> Iterator[tuple[int, str]]:
    """Break traces off at random moments; yield the first after which something is not as it was."""
    model, x = Busy(), torch.ones(3, 5)
    with OfTheUser():
        run = functools.partial(trace, model, x, **how)
        expected = run().flops
        before, process = state_of(model), state_of_process()
        for moment in moments_of(run, moments, seed):
            err = broken_off(
                run, moment
            )  # kept, as pytest keeps it: what only its end would undo stays broken
            found = {"model": state_of(model) != before, "process": state_of_process() != process}
            del err
            gc.collect()
            found |= {
                "model later": state_of(model) != before,
                "process later": state_of_process() != process,
            }
            found |= {"count": run().flops != expected}
            if any(found.values()):
                yield moment, " and ".join(what for what, is_broken in found.items() if is_broken)
                return


WAYS: dict[str, dict[str, Any]] = {
    "shapes": {},
    "training": {"train": True, "backward": True},
    "real": {"execute": "real", "train": True},
}


def main(moments: str = "2000", seed: str = "0") -> None:
    """Break off as many traces, and print at which moment something was broken, if at any."""
    share = int(moments) // len(WAYS) + 1
    for name, how in WAYS.items():
        found = list(damage(share, int(seed), **how))
        print(f"{name}: {'broken' if found else 'nothing broken'} in {share} moments", *found)


if __name__ == "__main__":
    main(*sys.argv[1:])
