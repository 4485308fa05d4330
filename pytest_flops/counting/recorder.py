"""Recording the steps of a forward pass while it runs, with the granularity and the names of `torch.fx`.

A leaf module (one from `torch.nn` that is no container: fx's own rule) is one `call_module` step; what is
called outside a leaf is a `call_function` or `call_method` step. A step that ran no ATen op (`size()`, an
assertion) gives no node. Costs reach the open step through `ShapeMode.tally`.
"""

from __future__ import annotations

import functools
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from pytest_flops.counting.autocast import Autocast
from pytest_flops.counting.callers import Methods, Place
from pytest_flops.counting.declared import count_by
from pytest_flops.counting.devices import ANSWERS, Answer, Devices
from pytest_flops.counting.fx_names import Names, identity_of, is_leaf, operator_identity, wrote_operator
from pytest_flops.counting.subject import Subject
from pytest_flops.counting.tally import Meter, Tally
from pytest_flops.counting.watched import WATCHED
from pytest_flops.errors import TraceError
from pytest_flops.metrics import Cost
from pytest_flops.results.report import Node, Op, Part

_NO_COST = Cost()
_TO = torch.Tensor.to
_SPECIAL = frozenset({*ANSWERS, *WATCHED, _TO})
"""The functions that are not simply called."""


class Share(Tally):
    """What one module does in a step, by its own code, while its cost is still being added up."""

    __slots__ = ("backward", "module")

    def __init__(self, module: str) -> None:
        super().__init__()
        self.module = module
        self.backward: Tally | None = None

    @property
    def whole(self) -> Cost:
        """The cost, the backward pass included."""
        return self.cost + self.backward.cost if self.backward is not None else self.cost

    @property
    def highest(self) -> int:
        """The most bytes alive while it or its backward pass ran."""
        return self.peak if self.backward is None else max(self.peak, self.backward.peak)


class Step(Share):
    """A node while its cost is still being added up; `inside` are the shares of modules inside a leaf."""

    __slots__ = ("inside", "is_backward", "is_loose", "module_type", "name", "op", "ran_nothing", "target")

    def __init__(self, name: str, op: Op, target: str, module: str, module_type: str) -> None:
        # Thousands are made: what the classes above set is set here, without a call of theirs.
        self.costs: list[Cost] = []
        self.peak = 0
        self.unsupported: dict[str, int] | None = None
        self.by_others: dict[str, int] | None = None
        self.module = module
        self.backward: Tally | None = None
        self.name = name
        self.op = op
        self.target = target
        self.module_type = module_type
        self.is_loose = False
        self.ran_nothing = False
        self.is_backward = False
        self.inside: list[Share] = []

    @property
    def shares(self) -> list[Share]:
        """The step's own share, and those of the modules inside."""
        return [self, *self.inside]

    @property
    def highest(self) -> int:
        """The most bytes alive while it or its backward pass ran."""
        own = self.peak if self.backward is None else max(self.peak, self.backward.peak)
        return max(own, *[share.highest for share in self.inside]) if self.inside else own

    @property
    def is_primitive(self) -> bool:
        """Whether it is a primitive that the model calls: what PyTorch's references in Python are made of."""
        return self.target.startswith("prims.")

    @property
    def is_free(self) -> bool:
        """Whether neither the step nor its backward pass costs anything."""
        return not any(any(share.whole) for share in self.shares)

    @property
    def tallies(self) -> Sequence[Tally]:
        """What adds up to the step: its shares, and the backward pass of each."""
        if not self.inside and self.backward is None:  # so are most: this is quick for them
            return (self,)
        return [tally for share in self.shares for tally in (share, share.backward) if tally is not None]

    def node(self, name: str) -> Node:
        """Return the step as a node of this name, its backward pass included."""
        place = (self.op, self.target, self.module, self.module_type)
        if not self.inside and self.backward is None:  # so are most: this is quick for them
            cost = self.cost
            return Node(name, *place, cost, cost if self.is_backward else _NO_COST, self.peak)
        cost = Cost.total([share.whole for share in self.shares])
        backward = Cost.total([share.backward.cost for share in self.shares if share.backward is not None])
        of_it_backward = cost if self.is_backward else backward
        return Node(name, *place, cost, of_it_backward, self.highest, tuple(_parts(self.inside)))


def _parts(shares: Iterable[Share]) -> Iterator[Part]:
    """Yield what each module inside a step did itself, all its calls together."""
    by_module: dict[str, list[Share]] = {}
    for share in shares:
        by_module.setdefault(share.module, []).append(share)
    for path, its in by_module.items():
        yield Part(path, Cost.total([share.whole for share in its]), max(share.highest for share in its))


class Recorder(TorchFunctionMode):
    """Record the steps of one forward pass; enter it through `recording`.

    `devices` is what answers where a tensor is, where PyTorch is not to; `autocast` what casts in its place,
    while the model has it switched on.
    """

    minds_devices = False
    """Whether ops run under autograd, which minds where gradients are."""

    def __init__(self, root_type: str) -> None:
        super().__init__()
        self.root_type = root_type
        self.steps: list[Step] = []
        self.meter: Meter
        self.methods: Methods
        self._stack: list[Place] = [("", root_type)]
        self._open: Step | None = None
        self.devices: Devices | None = None
        self.autocast: Autocast | None = None
        self.failed_declared: BaseException | None = None
        self._raised: tuple[BaseException, str] | None = None
        self._thread = threading.get_ident()
        self.problem: TraceError | None = None

    def __exit__(self, *error: object) -> None:
        """Leave the mode, unless PyTorch had just taken it off when something broke the run off."""
        stack = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
        if stack and stack[-1] is self:
            super().__exit__(*error)  # type: ignore[no-untyped-call]

    @property
    def where(self) -> str:
        """The path of the module that is running, or was when the last exception was raised."""
        return self._raised[1] if self._raised else self._stack[-1][0]

    def nodes(self) -> tuple[Node, ...]:
        """Return the steps as nodes, with the names that fx gives them."""
        return tuple(self.nodes_by_step().values())

    def nodes_by_step(self) -> dict[int, Node]:
        """Return the nodes by position in `steps`.

        A step that ran no op is no node. Nor is a loose op that costs nothing, unless the peak of the run
        came while it ran: then it is where the peak is.
        """
        ran = {i: step for i, step in enumerate(self.steps) if not step.ran_nothing}
        if free := {i: ran.pop(i) for i in [*ran] if ran[i].is_loose and ran[i].is_free}:
            highest = max(free, key=lambda i: free[i].highest)
            if free[highest].highest > max((step.highest for step in ran.values()), default=0):
                ran[highest] = free[highest]
        names = Names()
        return {i: ran[i].node(names.unique(ran[i].name)) for i in sorted(ran)}

    def mark(self, op: Op, name: str) -> None:
        """Record an input of the model, or the end of its forward pass."""
        self.steps.append(self._step(name, op, name))

    def open_loose(self, func: Any) -> Tally:
        """Record an ATen op that runs outside every function that PyTorch lets us see: nothing is missed."""
        name = func if isinstance(func, str) else func._schema.name.partition("::")[2]
        step = self._step(name, "call_function", str(func))
        step.is_loose = True
        self.steps.append(step)
        self.meter.memory.owner = step
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
        if func in _SPECIAL:
            if func in ANSWERS and self.devices is not None and len(args) == 1 and not kwargs:
                return self._say(ANSWERS[func], args[0])
            args, kwargs = self._watched(func, args, kwargs, caller)
        run = func if self.autocast is None else self.autocast.around(func)
        if self._open is not None and self._open.module is self._stack[-1][0]:
            return run(*args, **kwargs)  # most leaves run nothing but themselves
        name, op, target, is_ambiguous = identity_of(func)
        if not name:
            return run(*args, **kwargs)
        if self.meter.tally is not None:
            return self._record_inside(run, args, kwargs, caller)
        if is_ambiguous and wrote_operator(caller):
            name, op, target = operator_identity(name)
        place = self.methods.place(caller, self._stack[-1])
        return self.run_step(Step(name, op, target, *place), run, args, kwargs)

    def _watched(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], caller: types.FrameType
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Take note of a call that matters to a count, and return its arguments, which may be others then."""
        if func is _TO and self.minds_devices and self.devices is not None:
            return self.devices.moved(*args, **kwargs)
        watch = WATCHED.get(func)
        values = watch(self, args, kwargs, caller) if watch is not None else None
        return (args if values is None else (values, *args[1:])), kwargs

    def device_of(self, tensor: torch.Tensor) -> torch.device:
        """Return where a tensor is, or would be in a real run."""
        found: torch.device = tensor.device if self.devices is None else self._say(Devices.of, tensor)
        return found

    def _say(self, answer: Answer, tensor: torch.Tensor) -> Any:
        """Answer where a tensor is."""
        assert self.devices is not None
        try:
            return answer(self.devices, tensor)
        except LookupError as err:
            return self.meter.refuse(str(err))

    def _record_inside(
        self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], caller: types.FrameType
    ) -> Any:
        """Run a function call inside the open step, for the module whose code it is."""
        called = self._stack[-1]
        if self._open is None:
            return run(*args, **kwargs)
        place = self.methods.place(caller, called)
        if place is called:
            return run(*args, **kwargs)
        return self.run_inside(place[0], run, args, kwargs)

    def run_module(self, module: nn.Module, path: str, /, *args: Any, **kwargs: Any) -> Any:
        """Run one call of a module of the model, recording it as a step if the module is a leaf."""
        if threading.get_ident() != self._thread:
            raise self._refuse_thread(path)
        kind: type = type(module)
        self._stack.append((path, kind.__name__))
        try:
            if self.meter.tally is not None:
                return self.run_inside(path, module._call_impl, args, kwargs)
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
            step.ran_nothing = False  # a module is shown, whatever it does

    def run_step(
        self, step: Step, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run the work of one step while it is open. A subclass that measures does so here."""
        meter = self.meter
        answered = meter.answered
        memory = meter.memory
        memory.peak = memory.now
        self.steps.append(step)
        self._open = step
        self.charge(step)
        try:
            return run(*args, **kwargs)
        finally:
            self._open = None
            self.charge(None)
            step.ran_nothing = meter.answered == answered
            step.peak = memory.peak

    def run_inside(
        self, path: str, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run what a module does inside the open step, as its share of that step."""
        if self._open is None:  # the work of a loose op
            return run(*args, **kwargs)
        around, memory, share = self.meter.tally, self.meter.memory, Share(path)
        highest, memory.peak = memory.peak, memory.now
        self._open.inside.append(share)
        self.charge(share)
        try:
            return run(*args, **kwargs)
        finally:
            self.charge(around)
            share.peak = memory.peak
            memory.peak = max(highest, memory.peak)

    def charge(self, tally: Tally | None) -> None:
        """Let what runs from now on add to a step, or to the share of a module inside it; None ends that."""
        self.meter.tally = self.meter.memory.owner = tally

    def _step(self, name: str, op: Op, target: str) -> Step:
        return Step(name, op, target, *self._stack[-1])

    @property
    def is_here(self) -> bool:
        """Whether the thread that asks is the one that this records."""
        return threading.get_ident() == self._thread

    @contextmanager
    def declared(self, cost: Cost) -> Iterator[None]:
        """Count a block as what its author says that it costs, and nothing that is seen in it."""
        meter, outer = self.meter, self.meter.tally
        tally, opened = outer or self.open_declared(), self._open
        tally.costs.append(cost)
        self._open = None  # nor do modules have a share of it
        self.charge(Tally())
        try:
            yield
        except BaseException as err:
            self.failed_declared = err
            raise
        finally:
            self._open = opened
            self.charge(outer)
            meter.trust()
            tally.peak = max(tally.peak, meter.memory.peak)

    def open_declared(self) -> Tally:
        """Record a block whose cost its author declares."""
        memory = self.meter.memory
        memory.peak = memory.now
        step = self._step("declared_cost", "call_function", "pytest_flops.declared_cost")
        self.steps.append(step)
        return step


def recording(recorder: Recorder, meter: Meter, modules: Mapping[str, nn.Module]) -> Recorder:
    """Return a context in which every function call is recorded, and every call of `modules` (by path).

    The modules keep an attribute each, and `declared` the recorder: `preserve.Untouched` around this block
    puts both back.
    """
    # `nn.Module.__call__` hands over to this private attribute, as `module.compile()` sets it: one of the
    # instance, where patching the class would empty the attribute cache of every module class (3 ms), and
    # global hooks would run outside the user's own hooks, whose work belongs to the module.
    for path, module in modules.items():
        module.__dict__["_compiled_call_impl"] = functools.partial(recorder.run_module, module, path)
    recorder.meter = meter
    recorder.methods = Methods(modules, end=Subject.run.__code__)
    count_by(recorder)
    return recorder
