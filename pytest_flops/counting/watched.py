"""Functions whose call matters to a count by itself, and what is done before they run.

By some of them values or addresses leave PyTorch, others look below a tensor, where a run on shapes has
nothing, and the rest take derivatives, which inference mode leaves out without a word.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, Protocol

import torch

from pytest_flops.counting.tally import Meter
from pytest_flops.counting.unseen import ADDRESSES, BELOW, LEAVING, OF_CUDA, is_known


class Watcher(Protocol):
    """What sees the functions that a model calls: a recorder."""

    meter: Meter

    def device_of(self, tensor: torch.Tensor) -> torch.device:
        """Return where a tensor is, or would be in a real run."""


Watch = Callable[[Watcher, tuple[Any, ...], dict[str, Any], types.FrameType], Any]
"""What is done before a function is called, with its arguments and the frame that calls it.

What it returns takes the place of the function's first argument, unless it is None.
"""


def _leaving(name: str) -> Watch:
    """Make what takes note that values leave PyTorch, or their address."""

    def watch(recorder: Watcher, args: tuple[Any, ...], kwargs: object, caller: types.FrameType) -> Any:
        if name == OF_CUDA and recorder.device_of(args[0]).type != "cuda":
            return None  # it is only asked for; PyTorch says that there is none
        if not is_known(caller):
            return recorder.meter.read(args[0], name)
        return None if name in ADDRESSES else recorder.meter.with_values(args[0], f"{name} reads values")

    return watch


def _below(name: str) -> Watch:
    """Make what takes note that a model looks below a tensor."""

    def watch(recorder: Watcher, args: tuple[Any, ...], kwargs: object, caller: types.FrameType) -> Any:
        return (
            None if is_known(caller) else recorder.meter.with_values(args[0], f"{name} looks below a tensor")
        )

    return watch


def _make_dual(recorder: Watcher, *_: object) -> None:
    """Refuse to go on in inference mode where a model takes derivatives forward: there are none in it."""
    if _lacks_autograd():
        recorder.meter.need_autograd("forward-mode differentiation has no tangents in inference mode")


def _requires_grad(recorder: Watcher, args: tuple[Any, ...], kwargs: dict[str, Any], _: object) -> None:
    """Refuse to go on in inference mode where a model has switched gradients on: they stay off, silently."""
    wants = (*args[1:], *kwargs.values(), True)[0]
    if wants and torch.is_grad_enabled() and _lacks_autograd():
        recorder.meter.need_autograd("gradients stay off in inference mode")


def _lacks_autograd() -> bool:
    """Tell whether autograd takes no part. Transforms such as `torch.func.jvp` bring one of their own."""
    # Private: PyTorch has no public way to ask whether a transform is running.
    return torch.is_inference_mode_enabled() and torch._C._functorch.peek_interpreter_stack() is None


WATCHED: dict[Callable[..., Any], Watch] = {
    **{func: _leaving(name) for func, name in LEAVING.items()},
    **{func: _below(name) for func, name in BELOW.items()},
    torch._make_dual: _make_dual,
    torch.Tensor.requires_grad_: _requires_grad,
}
"""The functions, and what is done before each."""
