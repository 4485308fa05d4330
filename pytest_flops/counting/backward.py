"""The backward pass: running it, and finding which step of the forward pass each of its ops belongs to.

Autograd numbers its nodes in the order in which the forward pass makes them. A step owns the numbers that
were given out while it ran, so an op of the backward pass belongs to the step that owns the number of the
autograd node that is running. What a checkpoint computes again is a step of its own, and counts as backward.
"""

from __future__ import annotations

import dataclasses
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _disable_current_modes  # private: nothing public says "not counted"
from torch.utils._pytree import tree_leaves  # private, for want of a public one; see subject.py

from pytest_flops.counting.calls import Call
from pytest_flops.counting.costs import by_formula
from pytest_flops.counting.fused_attention import bytes_beside, is_fused, laid_out, layout_of
from pytest_flops.counting.live_memory import LiveMemory
from pytest_flops.counting.op_results import meta_like
from pytest_flops.counting.places import remade
from pytest_flops.counting.preserve import Untouched
from pytest_flops.counting.process import take_plain_ways
from pytest_flops.counting.recorder import Recorder, Share, Step
from pytest_flops.counting.subclasses import has_code
from pytest_flops.counting.tally import Tally
from pytest_flops.counting.traffic import addressed_bytes
from pytest_flops.errors import TraceError
from pytest_flops.metrics import Cost


class _Owner(NamedTuple):
    """Whose the numbers are that autograd gives out from the first one on; nobody's between steps."""

    first: int
    share: Share | None


class _ModuleSpan(NamedTuple):
    """The numbers that autograd gave out while a module ran, and the module's path and class name."""

    first: int
    last: int
    place: tuple[str, str]


@dataclass
class _Attention:
    """The numbers that autograd gave out while a fused attention ran, and what its backward pass moves."""

    first: int
    last: int
    backward_traffic: int
    """In bytes; 0 once it has been counted."""


class TrainingRecorder(Recorder):
    """Record a forward pass under autograd, and the backward pass that follows it."""

    minds_devices = True

    def __init__(self, root_type: str) -> None:
        super().__init__(root_type)
        self._in_backward = False
        self._owners: list[_Owner] = []
        self._modules: list[_ModuleSpan] = []
        self._attentions: list[_Attention] = []
        self._others: dict[int, Step] = {}

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Attribute what runs in this block to the forward pass that was recorded before it."""
        self._in_backward, self._memory = True, self.meter.memory
        try:
            yield
        finally:
            self._in_backward, self.meter.memory = False, self._memory

    @contextmanager
    def unpaid(self) -> Iterator[None]:
        """Let what runs in this block take memory, and cost nothing: it is not the model's."""
        self.charge(Tally())
        try:
            yield
        finally:
            self.charge(None)

    def run_module(self, module: nn.Module, path: str, /, *args: Any, **kwargs: Any) -> Any:
        """Run one call of a module, and note the numbers that autograd gives out meanwhile."""
        first = _next_number()
        try:
            return super().run_module(module, path, *args, **kwargs)
        finally:
            self._modules.append(_ModuleSpan(first, _next_number(), (path, type(module).__name__)))

    def run_step(
        self, step: Step, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run the work of one step, and note the numbers that autograd gives out meanwhile."""
        if (
            self._in_backward and len(self._stack) == 1
        ):  # Python inside a custom backward, not a recomputation
            return run(*args, **kwargs)
        step.is_backward = self._in_backward
        if self._in_backward:
            self.meter.memory = self._memory
        return super().run_step(step, run, args, kwargs)

    def charge(self, tally: Tally | None) -> None:
        """Let what runs from now on add to a step, and what its autograd nodes run later as well."""
        super().charge(tally)
        self._owners.append(_Owner(_next_number(), tally if isinstance(tally, Share) else None))

    def open_loose(self, func: Any) -> Tally:
        # Private: PyTorch offers no public way to ask which autograd node is running.
        """Return the tally for an op that runs outside of all steps: in the backward pass its step's."""
        node = torch._C._current_autograd_node() if self._in_backward else None
        if node is None:
            return super().open_loose(func)
        share, attention = self._owner(node), self._attention_of(node._sequence_nr())
        share.backward = share.backward or Tally()
        self._memory.owner = share
        self.meter.memory = self._memory if attention is None else _UNSEEN
        if attention is not None and attention.backward_traffic:  # all its parts together are one kernel
            share.backward.costs.append(Cost(memory_traffic=attention.backward_traffic, ops=1))
            attention.backward_traffic = 0
        return share.backward

    def open_declared(self) -> Tally:
        """Record a block whose cost its author declares, in a custom backward as the backward of its step."""
        return self.open_loose("declared_cost") if self._in_backward else super().open_declared()

    @property
    def is_here(self) -> bool:
        """Whether the thread that asks is one that this records: autograd has some of its own."""
        return self._in_backward or super().is_here

    def _owner(self, node: Any) -> Share:
        """Return what made an autograd node, or a step of its own for one that nothing made."""
        number = node._sequence_nr()
        place = bisect_right(self._owners, number, key=lambda owner: owner.first) - 1
        if place >= 0 and (share := self._owners[place].share) is not None:
            return share
        if number not in self._others:
            self._others[number] = self._step_of(node.name(), number)
        return self._others[number]

    def _step_of(self, name: str, number: int) -> Step:
        """Record a custom function's backward as a step of the module that called the function."""
        inside = [span for span in self._modules if span.first <= number < span.last]
        place = min(inside, key=lambda span: span.last - span.first).place if inside else self._stack[0]
        step = Step(name.rpartition("::")[2], "call_function", name, *place)
        step.is_loose = True
        self.steps.append(step)
        return step

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is _attention:
            return self.attend(*args, **(kwargs or {}))
        return self.record(func, args, kwargs or {}, sys._getframe(1))

    def attend(self, *args: Any, **kwargs: Any) -> Any:
        """Stand in for `F.scaled_dot_product_attention`."""
        if self.meter.tally is not None:
            return self._attend(*args, **kwargs)
        step = self._step("scaled_dot_product_attention", "call_function", "scaled_dot_product_attention")
        return self.run_step(step, self._attend, args, kwargs)

    def _attend(self, *args: Any, **kwargs: Any) -> Any:
        """Run attention, counting it by its formula: below autograd only some decomposition of it is seen.

        Where derivatives are taken forward, its parts are counted, with the products of their tangents.
        """
        if forward_ad._current_level >= 0:  # private, for want of a public way to ask
            with torch._C.DisableTorchFunction():
                return _attention(*args, **kwargs)
        tally, memory, first = self.meter.tally, self.meter.memory, _next_number()
        inputs = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if any(tensor.is_nested for tensor in inputs):
            raise TraceError(
                f"{self.root_type} attends over nested tensors, which PyTorch does where it cannot be seen: "
                "count it with padded tensors and a mask, or with torch.nn.attention.varlen."
            )
        fused = is_fused(*args, **kwargs)
        self.meter.tally, self.meter.memory = Tally(), _UNSEEN if fused else memory
        try:
            with torch._C.DisableTorchFunction():
                result = _attention(*args, **kwargs)
                result = laid_out(result, layout_of(inputs[0], result.shape)) if fused else result
        finally:
            self.meter.tally, self.meter.memory = tally, memory
        if fused:
            self._attentions.append(_Attention(first, _next_number(), _backward_traffic(result, inputs)))
            _hold_as_fused(memory, result, inputs, bytes_beside(*args, **kwargs), tally)
        call = Call.of(torch.ops.aten.scaled_dot_product_attention.default, args, kwargs)
        outcome = by_formula(call, result, addressed_bytes(result))
        assert tally is not None
        assert outcome is not None
        tally.add(outcome)
        return result

    def _attention_of(self, number: int) -> _Attention | None:
        """Return the fused attention that made an autograd node, if one did."""
        place = bisect_right(self._attentions, number, key=lambda attention: attention.first) - 1
        found = self._attentions[place] if place >= 0 else None
        return found if found is not None and number < found.last else None


class _Unseen(LiveMemory):
    """The account of a plain form of attention, which holds scores that a fused kernel does not."""

    is_seen = False

    def born(self, tensor: Tensor, nbytes: int) -> None: ...

    def made(self, results: Iterable[Tensor], arguments: Iterable[Tensor]) -> None: ...

    def reach(self, workspace: int) -> None: ...


_UNSEEN = _Unseen()


def _backward_traffic(result: Tensor, inputs: Sequence[Tensor]) -> int:
    """Return what a fused kernel moves: inputs, result and its gradient in, the gradients of inputs out."""
    distinct = {id(tensor): tensor for tensor in inputs}.values()
    read = sum(map(addressed_bytes, distinct)) + 2 * addressed_bytes(result)
    return read + sum(tensor.numel() * tensor.itemsize for tensor in inputs if tensor.requires_grad)


def _hold_as_fused(
    memory: LiveMemory, result: Tensor, inputs: Sequence[Tensor], beside: int, tally: Tally | None
) -> None:
    """Keep account of what a fused kernel holds, whose step adds to `tally`.

    These are its inputs, its result and so many bytes beside until its backward pass, which holds the
    gradient of the result as well, and makes those of all inputs at once.
    """
    memory.made([result], inputs)
    more = memory.hold(beside)
    if result.grad_fn is None:
        return
    held: list[Any] = [more, *(tensor.detach() for tensor in (result, *inputs))]
    result.register_hook(lambda gradient: held.append(gradient.detach()))  # type: ignore[no-untyped-call]
    waiting = [tensor for tensor in inputs if tensor.requires_grad and not tensor.is_leaf]
    sizes, expected = [tensor.nbytes for tensor in waiting], list[Any]()
    layouts = [layout_of(tensor, tensor.shape) for tensor in waiting]

    def arrived(position: int, gradient: Tensor) -> Tensor:
        if held:  # the first: its computation ends here
            expected.extend(map(memory.hold, sizes))
            if isinstance(tally, Share):
                tally.backward = tally.backward or Tally()
                tally.backward.peak = max(tally.backward.peak, memory.now)
            held.clear()
        expected[position] = None
        with _disable_current_modes():  # the fused kernel lays it out like its input at once
            gradient = laid_out(gradient, layouts[position])
        memory.made([gradient], ())
        return gradient

    for position, tensor in enumerate(waiting):  # a hook on a parameter would stay behind
        tensor.register_hook(partial(arrived, position))  # type: ignore[no-untyped-call]


_attention = F.scaled_dot_product_attention


def go_under_autograd(recorder: TrainingRecorder, found: Untouched, *, on_meta: bool) -> None:
    """Let a run have autograd, and meet the same ops on every device and in every version.

    Recurrent layers and einsum go by their parts, attention by its plain form. `found`, around the run, puts
    all of this back.
    """
    torch._C._set_grad_enabled(True)
    _spare_gradients(found, on_meta=on_meta)
    take_plain_ways()
    # `nn.MultiheadAttention` calls it inside a function that PyTorch runs with the recorder's mode off.
    F.scaled_dot_product_attention = recorder.attend


def _next_number() -> int:
    # Private, like `Node._sequence_nr`: the numbers by which PyTorch's profiler joins forward and backward.
    return int(torch._C._autograd._get_sequence_nr())


def asking_as(given: Tensor, made: Tensor) -> Tensor:
    """Return a tensor of the run's own that asks for a gradient as the given one does.

    One that is no leaf may be written into, so it is the result of something in the run too.
    """
    made.requires_grad_()
    return made if given.is_leaf else made.clone()


def losses_of(name: str, output: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Return what a backward pass starts from: tensors, and the gradient with respect to each.

    The loss is the scalars that the model returns, if it returns any; else one whose gradient with respect to
    every floating-point output is given, so that the loss itself costs nothing.
    """
    outputs = [leaf for leaf in _leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if not outputs:
        raise TraceError(
            f"{name} has no backward pass to count: no output depends on a parameter that requires a "
            "gradient."
        )
    outputs = [tensor for tensor in outputs if not tensor.ndim] or outputs
    return outputs, [torch.ones_like(tensor) for tensor in outputs]


def _leaves(output: Any) -> list[Any]:
    if dataclasses.is_dataclass(output) and not isinstance(output, (type, dict)):
        return [leaf for field in dataclasses.fields(output) for leaf in _leaves(getattr(output, field.name))]
    return list(tree_leaves(output))


def _spare_gradients(found: Untouched, *, on_meta: bool) -> None:
    """Let a backward pass write its gradients where nobody keeps them, and end where the run began.

    Parameters, floating buffers and whatever else wants a gradient are replaced for the run, wherever they
    are: by tensors on meta, because autograd minds the device of a gradient, or by others of the same data.
    These have no gradient yet, no hooks and no history. A tensor with code of its own stays.
    """
    stand_ins: dict[int, Tensor] = {}

    def replace(tensor: Tensor) -> Tensor:
        if has_code(type(tensor)):  # what holds its data stands for shapes already
            tensor.grad = None
            return tensor
        if id(tensor) not in stand_ins:
            data = meta_like(tensor) if on_meta and not tensor.is_meta else tensor.detach()
            made = nn.Parameter(data, requires_grad=False) if isinstance(tensor, nn.Parameter) else data
            stand_ins[id(tensor)] = asking_as(tensor, made) if tensor.requires_grad else made
        return stand_ins[id(tensor)]

    for module in found.modules:
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            setattr(module, name, replace(parameter))
        for name, buffer in list(module.named_buffers(recurse=False, remove_duplicate=False)):
            if buffer.requires_grad or (on_meta and (buffer.is_floating_point() or buffer.is_complex())):
                setattr(module, name, replace(buffer))
    for place in found.places:
        place.put(remade(place.get(), lambda leaf: replace(leaf) if _wants_gradient(leaf) else leaf))


def _wants_gradient(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad
