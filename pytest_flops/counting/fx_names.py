"""Names, operators and leaves as `torch.fx` has them."""

from __future__ import annotations

import builtins
import dis
import functools
import keyword
import operator
import re
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pytest_flops.results.report import Op

CONTAINERS = (nn.Sequential, nn.DataParallel, nn.parallel.DistributedDataParallel)
"""Modules from `torch.nn` that run other modules and do nothing themselves: seen through, not leaves."""
# What Python calls for an operator, by name, and the operator that fx records for it (fx reads `x += y` as an
# addition). Names without underscores are also methods; the caller's instruction tells which was written.
_OPERATORS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "truediv": operator.truediv,
    "floordiv": operator.floordiv,
    "remainder": operator.mod,
    "mod": operator.mod,
    "pow": operator.pow,
    "matmul": operator.matmul,
    "neg": operator.neg,
    "pos": operator.pos,
    "invert": operator.invert,
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "gt": operator.gt,
    "le": operator.le,
    "ge": operator.ge,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "lshift": operator.lshift,
    "rshift": operator.rshift,
    "getitem": operator.getitem,
    "setitem": operator.setitem,
}
_OPERATOR_INSTRUCTIONS = ("BINARY_", "INPLACE_", "UNARY_", "COMPARE_OP")
_TORCH_FILES = (torch.overrides.__file__, torch._tensor.__file__)
_RESERVED = {
    *dir(builtins),
    *keyword.kwlist,
    "inf",
    "nan",
    "NoneType",
    "torch",
    "device",
    "fx_pytree",
    "pytree",
}


class Names:
    """Give out names as `torch.fx.Graph` does: unique, and never a Python builtin."""

    def __init__(self) -> None:
        self._used: set[str] = set()
        self._last: dict[str, int] = {}

    def unique(self, wanted: str) -> str:
        """Return the wanted name, or one made of it that was not given out yet."""
        name, base, number = _identifier(wanted)
        if number is None or name in self._used:
            number = self._last.get(base, 0)
            if name in _RESERVED:
                number += 1
                name = f"{base}_{number}"
        while name in self._used:
            number += 1
            name = f"{base}_{number}"
        self._used.add(name)
        self._last[base] = number
        return name


@functools.lru_cache(maxsize=8192)
def _identifier(wanted: str) -> tuple[str, str, int | None]:
    """Turn any text into a Python name in snake case; return it, its stem and the number it ends in."""
    name = re.sub("[^0-9a-zA-Z_]+", "_", re.sub("(?<=[a-z])([A-Z])", r"_\1", wanted)).lower() or "_unnamed"
    name = f"_{name}" if name[0].isdigit() else name
    head, _, tail = name.rpartition("_")
    return (name, head, int(tail)) if head and tail.isdigit() else (name, name, None)


@functools.lru_cache(maxsize=4096)
def is_leaf(kind: type) -> bool:
    """Tell whether modules of a class are one step: fx's own rule, from `torch.nn` and no container."""
    if issubclass(kind, torch.jit.ScriptModule):
        return True
    return kind.__module__.startswith(("torch.nn", "torch.ao.nn")) and not issubclass(kind, CONTAINERS)


@functools.lru_cache(maxsize=4096)
def identity_of(func: Callable[..., Any]) -> tuple[str, Op, str, bool]:
    """Return fx's name, op and target for a function, and whether it may have been written as an operator.

    The name is empty for attribute access (`x.shape`), which is no step.
    """
    name = getattr(func, "__name__", type(func).__name__)
    if name in ("__get__", "__set__", "__delete__"):
        return "", "call_method", "", False
    if not getattr(func, "__qualname__", "").startswith(("Tensor.", "TensorBase.", "_TensorBase.")):
        return name, "call_function", _target(func), False
    if name.startswith("__"):
        return *operator_identity(name), False
    return name, "call_method", name, name.rstrip("_") in _OPERATORS


def operator_identity(name: str) -> tuple[str, Op, str]:
    """Return fx's name, op and target for the operator that a special method stands for."""
    bare = name.strip("_")
    for candidate in (bare, bare[1:]):
        if (function := _OPERATORS.get(candidate)) is not None:
            return function.__name__, "call_function", str(function)
    return bare, "call_method", name


def _target(func: Callable[..., Any]) -> str:
    """Return how fx prints a function, without the address that changes from run to run."""
    text = str(func)
    if " at 0x" not in text:
        return text
    home = getattr(func, "__module__", None) or "torch"
    return f"{home}.{getattr(func, '__name__', type(func).__name__)}"


def wrote_operator(frame: types.FrameType) -> bool:
    """Tell whether the instruction that a frame is at is an operator (`x + y`), not a call (`x.add(y)`)."""
    while frame.f_code.co_filename in _TORCH_FILES and frame.f_back is not None:
        frame = frame.f_back  # `x ** y` goes through a Python wrapper
    return dis.opname[frame.f_code.co_code[frame.f_lasti]].startswith(_OPERATOR_INSTRUCTIONS)
