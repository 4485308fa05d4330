"""Recording the steps of a forward pass while it runs, with the granularity and the names of `torch.fx`.

A leaf module (one from `torch.nn` that is no container: fx's own rule) is one `call_module` step; what is
called outside a leaf is a `call_function` or `call_method` step. A step that ran no ATen op (`size()`, an
assertion) is idle and gives no node. Costs reach the open step through `ShapeMode.sink`.
"""

from __future__ import annotations

import builtins
import dis
import functools
import keyword
import operator
import re
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, Protocol

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from pytest_flops.counting.live_memory import LiveMemory
from pytest_flops.counting.shapes import Sink
from pytest_flops.errors import TraceError
from pytest_flops.results.report import Node, Op

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
_READS = frozenset({torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.tolist})
"""Ways for values to leave PyTorch: what is done with them there cannot be seen."""
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


class Step:
    """A node while its cost is still being added up."""

    __slots__ = (
        "backward",
        "flops",
        "is_backward",
        "is_idle",
        "is_stray",
        "macs",
        "module",
        "module_type",
        "name",
        "op",
        "peak_memory",
        "target",
        "unsupported",
    )

    def __init__(self, name: str, op: Op, target: str, module: str, module_type: str) -> None:
        self.name = name
        self.op = op
        self.target = target
        self.module = module
        self.module_type = module_type
        self.flops = 0
        self.macs = 0
        self.peak_memory = 0
        self.unsupported: dict[str, int] | None = None
        self.is_stray = False
        self.is_idle = False
        self.is_backward = False
        self.backward: Sink | None = None

    @property
    def costs(self) -> bool:
        return bool(self.flops or (self.backward is not None and self.backward.flops))

    @property
    def highest(self) -> int:
        """The most bytes alive while the step or its backward pass ran."""
        return max(self.peak_memory, self.backward.peak_memory if self.backward is not None else 0)

    def node(self, name: str) -> Node:
        """Return the step as a node of this name, its backward pass included."""
        forward = (0, 0) if self.is_backward else (self.flops, self.macs)
        flops, macs = self.flops, self.macs
        if self.backward is not None:
            flops, macs = flops + self.backward.flops, macs + self.backward.macs
        place = (self.op, self.target, self.module, self.module_type)
        return Node(name, *place, flops, macs, flops - forward[0], macs - forward[1], self.highest)


class Meter(Protocol):
    """What a recorder shows the open step to: `ShapeMode`, which counts its ATen ops in `answered`."""

    sink: Sink | None
    answered: int
    memory: LiveMemory

    def read(self, tensor: Any, name: str) -> None:
        """Take note that the values of a tensor leave PyTorch."""


class Names:
    """Give out names as `torch.fx.Graph` does: unique, and never a Python builtin."""

    def __init__(self) -> None:
        self._used: set[str] = set()
        self._last: dict[str, int] = {}

    def unique(self, wanted: str) -> str:
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


class Recorder(TorchFunctionMode):
    """Record the steps of one forward pass; enter it through `recording`."""

    def __init__(self, root_type: str) -> None:
        super().__init__()
        self.root_type = root_type
        self.steps: list[Step] = []
        self.meter: Meter
        self._stack = [("", root_type)]
        self._raised: tuple[BaseException, str] | None = None
        self._thread = threading.get_ident()
        self.problem: TraceError | None = None

    @property
    def where(self) -> str:
        """The path of the module that is running, or was when the last exception was raised."""
        return self._raised[1] if self._raised else self._stack[-1][0]

    def nodes(self) -> tuple[Node, ...]:
        """Return the steps as nodes, with the names that fx gives them."""
        return tuple(self.nodes_by_step().values())

    def nodes_by_step(self) -> dict[int, Node]:
        """Return the nodes by position in `steps`.

        Idle steps have none, nor strays that cost nothing, unless the most memory was alive while they ran.
        """
        busy = {i: step for i, step in enumerate(self.steps) if not step.is_idle}
        peak = max((step.highest for step in busy.values() if step.costs or not step.is_stray), default=0)
        highest = max(busy.values(), key=attrgetter("highest"), default=None)
        names = Names()
        return {
            i: step.node(names.unique(step.name))
            for i, step in busy.items()
            if step.costs or not step.is_stray or (step is highest and step.highest > peak)
        }

    def mark(self, op: Op, name: str) -> None:
        """Record an input of the model, or the end of its forward pass."""
        self.steps.append(self._step(name, op, name))

    def open_stray(self, func: Any) -> Sink:
        """Record an ATen op that runs outside every function that PyTorch lets us see: nothing is missed."""
        name = func._schema.name.partition("::")[2] if func is not None else "numpy"
        step = self._step(name, "call_function", str(func or name))
        step.is_stray = True
        self.steps.append(step)
        return step

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return self.record(func, args, kwargs or {}, sys._getframe(1))

    def record(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], caller: types.FrameType
    ) -> Any:
        """Run a function call, and record it as a step if none is open; `caller` is the frame it is in."""
        if func in _READS:
            self.meter.read(args[0], func.__name__)
        if self.meter.sink is not None:
            return func(*args, **kwargs)
        name, op, target, is_ambiguous = _identity(func)
        if not name:
            return func(*args, **kwargs)
        if is_ambiguous and _wrote_operator(caller):
            name, op, target = _operator_identity(name)
        return self.run_step(self._step(name, op, target), func, args, kwargs)

    def run_module(self, module: nn.Module, path: str, /, *args: Any, **kwargs: Any) -> Any:
        """Run one call of a module of the model, recording it as a step if the module is a leaf."""
        if threading.get_ident() != self._thread:
            raise self._refuse_thread(path)
        if self.meter.sink is not None:
            return module._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]
        kind: type = type(module)
        self._stack.append((path, kind.__name__))
        try:
            if path == "" or not is_leaf(kind):
                return module._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]
            return self._run_leaf(module, args, kwargs)
        except BaseException as err:
            if self._raised is None or self._raised[0] is not err:
                self._raised = (err, path)
            raise
        finally:
            self._stack.pop()

    def _refuse_thread(self, path: str) -> TraceError:
        self.problem = TraceError(
            f"{self.root_type} runs module {path!r} on another thread, where its work cannot be seen: count "
            "a version that runs on one."
        )
        return self.problem

    def _run_leaf(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        path, kind = self._stack[-1]
        step = Step(path, "call_module", path, path, kind)
        try:
            return self.run_step(step, module._call_impl, args, kwargs)
        finally:
            step.is_idle = False  # a module is shown, whatever it does

    def run_step(
        self, step: Step, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run the work of one step while it is open. A subclass that measures does so here."""
        meter = self.meter
        answered = meter.answered
        memory = meter.memory
        memory.peak = memory.now
        self.steps.append(step)
        meter.sink = step
        try:
            return run(*args, **kwargs)
        finally:
            meter.sink = None
            step.is_idle = meter.answered == answered
            step.peak_memory = memory.peak

    def _step(self, name: str, op: Op, target: str) -> Step:
        return Step(name, op, target, *self._stack[-1])


@functools.lru_cache(maxsize=4096)
def is_leaf(kind: type) -> bool:
    """Tell whether modules of a class are one step: fx's own rule, from `torch.nn` and no container."""
    if issubclass(kind, torch.jit.ScriptModule):
        return True
    return kind.__module__.startswith(("torch.nn", "torch.ao.nn")) and not issubclass(kind, CONTAINERS)


@contextmanager
def recording(recorder: Recorder, meter: Meter, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Record every function call, and every call of `modules` (by path), until the end of the block.

    The modules keep an attribute each, which `preserve.untouched` around this block takes away.
    """
    # `nn.Module.__call__` hands over to this private attribute, as `module.compile()` sets it: one of the
    # instance, where patching the class would empty the attribute cache of every module class (3 ms), and
    # global hooks would run outside the user's own hooks, whose work belongs to the module.
    for path, module in modules.items():
        module.__dict__["_compiled_call_impl"] = functools.partial(recorder.run_module, module, path)
    recorder.meter = meter
    with recorder:
        yield


@functools.lru_cache(maxsize=4096)
def _identity(func: Callable[..., Any]) -> tuple[str, Op, str, bool]:
    """Return fx's name, op and target for a function, and whether it may have been written as an operator.

    The name is empty for attribute access (`x.shape`), which is no step.
    """
    name = getattr(func, "__name__", type(func).__name__)
    if name in ("__get__", "__set__", "__delete__"):
        return "", "call_method", "", False
    if not getattr(func, "__qualname__", "").startswith(("Tensor.", "TensorBase.", "_TensorBase.")):
        return name, "call_function", _target(func), False
    if name.startswith("__"):
        return *_operator_identity(name), False
    return name, "call_method", name, name.rstrip("_") in _OPERATORS


def _operator_identity(name: str) -> tuple[str, Op, str]:
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


def _wrote_operator(frame: types.FrameType) -> bool:
    """Tell whether the instruction that a frame is at is an operator (`x + y`), not a call (`x.add(y)`)."""
    while frame.f_code.co_filename in _TORCH_FILES and frame.f_back is not None:
        frame = frame.f_back  # `x ** y` goes through a Python wrapper
    return dis.opname[frame.f_code.co_code[frame.f_lasti]].startswith(_OPERATOR_INSTRUCTIONS)
