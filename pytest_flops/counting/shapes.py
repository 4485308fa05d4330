"""Memoised shape-only execution: what every ATen op of a forward pass returns and costs.

`ShapeMode` answers ops while a model runs. In a shape-only run floating-point inputs, parameters, floating
buffers and all that derives from them are *symbolic*: no arithmetic happens, an op's result is a meta tensor,
and (op, argument metadata) -> (result metadata, cost) is remembered. Integer and boolean inputs and whatever
`forward` makes out of nothing symbolic stay *concrete* and are computed for real on the CPU, so that
`mask.all()`, `.item()` and `arange` work as ever; but a result of more elements than `CONCRETE_LIMIT` (a mask
of length × length) is symbolic. In a real run everything is concrete.

The mode runs under `torch.inference_mode`: there composite ops (`linear`, `scaled_dot_product_attention`,
`batch_norm`) arrive whole, the same on CPU, CUDA and meta, before a backend chooses how to decompose them.
The cost of a composite without a formula is the sum over its decomposition *on metadata*, also in a real run,
so that a real run and a shape-only run answer from the same source.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._C import DispatchKey  # what an op's kernels are listed by; torch publishes no other name
from torch._ops import OpOverload  # the type of `torch.ops.aten.add.Tensor`; torch publishes no alias
from torch.utils._python_dispatch import TorchDispatchMode  # documented for extending; no public alias yet
from torch.utils._pytree import tree_map_only  # private, for want of a public one

from pytest_flops.counting.autocast import Autocast
from pytest_flops.counting.calls import Call, tensors_in, traits_of
from pytest_flops.counting.concrete import is_big, may_be_big
from pytest_flops.counting.costs import by_formula
from pytest_flops.counting.fused_attention import bytes_beside, is_fused, laid_out, layout_of
from pytest_flops.counting.known_values import KnownValues
from pytest_flops.counting.layouts import as_kernels_lay_out
from pytest_flops.counting.live_memory import LiveMemory, keep_alive, storage_key
from pytest_flops.counting.memo import Memo, Outcome
from pytest_flops.counting.op_results import (
    META,
    New,
    Result,
    Several,
    UnrepeatableError,
    View,
    build,
    is_plain,
    meta_like,
    specify,
)
from pytest_flops.counting.preserve import UndoLog, storage_address
from pytest_flops.counting.process import leave_inference_mode
from pytest_flops.counting.shape_rules import result_by_rule
from pytest_flops.counting.subclasses import hand_over, has_code
from pytest_flops.counting.tally import Tally
from pytest_flops.counting.traffic import new_bytes, with_traffic
from pytest_flops.counting.unseen import ADDRESSES, Unwritten
from pytest_flops.formulas import formula_for
from pytest_flops.formulas.registry import needs_values
from pytest_flops.metrics import Cost
from pytest_flops.results.report import KERNEL

CPU = torch.device("cpu")
_is_seen_by_functions = torch._C._is_torch_function_mode_enabled  # private, for want of a public way to ask
_LIFT = torch.ops.aten.lift_fresh.default
_DETACH = torch.ops.aten.detach.default
_TO_COPY = torch.ops.aten._to_copy.default
_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
_HOLDING = {
    torch.ops.aten.matmul.default: DispatchKey.CompositeImplicitAutograd,
    torch.ops.aten.linear.default: DispatchKey.CompositeImplicitAutograd,
    torch.ops.aten.einsum.default: DispatchKey.CompositeImplicitAutograd,
    torch.ops.aten._scaled_dot_product_attention_math.default: DispatchKey.CompositeImplicitAutograd,
    torch.ops.aten._safe_softmax.default: DispatchKey.CompositeExplicitAutograd,
    _ATTENTION: DispatchKey.CompositeImplicitAutograd,
}
"""Composites that have a formula, and hold more than arguments and results: copies of arguments that are laid
out otherwise than a kernel wants, scores. By the key of the kernel that takes them apart."""
_MOVES = {torch.ops.aten.to.dtype_layout, _TO_COPY}
_ZERO = torch.ops.aten._efficientzerotensor.default


class NeedsRealTensorsError(RuntimeError):
    """The forward pass reads a value that a shape-only run does not have."""


class NeedsAutogradError(RuntimeError):
    """The forward pass needs what inference mode leaves out."""


memo = Memo()


def forget() -> None:
    """Empty the process-wide memo, as a fresh process has it. For benchmarks and tests."""
    memo.clear()


class Functions(AbstractContextManager["Functions"], Protocol):
    """The mode that sees the functions which the ops of a run are in."""

    def open_loose(self, func: OpOverload | str) -> Tally:
        """Return the tally for an op that is in no function."""


class ShapeMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answer every ATen op of a run and add its cost to the open `tally`.

    `symbolic` are the tensors that are not on meta and still stand for metadata only: parameters and floating
    buffers; `autograd` says that the run is under it. `functions` gives the tally for a loose op, one that
    arrives while no step is open. `answered` counts the ops, `memory` keeps account of the tensors that are
    alive.
    After the run, `failure` is the first reason why a shape-only run could not answer, also where the user's
    code swallowed it, and `undo` puts back what was written to tensors that were there before.
    """

    tally: Tally | None

    def __init__(
        self,
        *,
        real: bool,
        symbolic: Iterable[Tensor] = (),
        autograd: bool = False,
        functions: Functions,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.real = real
        self.tally = None
        self.answered = 0
        self.failure: Exception | None = None
        self.autocast: Autocast | None = None
        self.memory = LiveMemory()
        self.undo = UndoLog()
        self.unwritten = Unwritten()
        self._unwritten = self.unwritten.made
        self._functions = functions
        self._open_loose = functions.open_loose
        self._symbolic = {id(tensor) for tensor in symbolic}
        self._known = KnownValues()
        self._knows = autograd and not real
        self._overwritten: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._stand_ins: dict[int, tuple[Any, Tensor]] = {}
        self._written: set[int] = set()
        self._inferring = False
        self._outcomes = memo.current()
        self._kinds = {mode: torch.inference_mode(mode) for mode in (True, False)}

    def close(self) -> None:
        """Put back what was written, and end the account; may be called any number of times."""
        self.undo.restore()
        self.memory.close()

    def __exit__(self, *error: Any) -> None:
        """Leave the mode, unless PyTorch had just taken it off when something broke the run off."""
        for kind in self._kinds.values():  # before the run's own is left: each brings back what it found
            leave_inference_mode(kind)
        # Private, like the stack of modes itself
        depth = torch._C._len_torch_dispatch_stack()
        if depth and torch._C._get_dispatch_stack_at(depth - 1) is self:
            super().__exit__(*error)  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep torch._dynamo out: private, and without it a process's first mode imports 2 s of compiler."""
        return False

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if types and (own := [kind for kind in types if has_code(kind)]):
            # Its code asks where tensors are, as the model does.
            functions = nullcontext() if _is_seen_by_functions() else self._functions
            return hand_over(self, functions, func, own, args, kwargs or {})
        self.answered += 1
        call = Call.of(func, args, kwargs or {})
        if _is_seen_by_functions():
            # Outside of functions the recorder's mode is on. We, and PyTorch's kernels for meta, ask where
            # tensors are as well, and are not to be told what models are.
            with torch._C.DisableTorchFunction():
                return self._answer_cast(call)
        if self.tally is not None and self.autocast is None:  # so are most
            return self._answer(call)
        return self._answer_cast(call)

    def _answer_cast(self, call: Call) -> Any:
        return self.answer(call) if self.autocast is None else self.autocast.answer(call)

    def answer(self, call: Call) -> Any:
        """Answer an op as it is, as part of the open step or as a step of its own."""
        return self._answer_loose(call) if self.tally is None else self._answer(call)

    def _is_shape_inference(self, call: Call) -> bool:
        """Tell whether a primitive is called for the shape of what need not be computed, not by the model.

        PyTorch takes the product with a tangent that is zero to the meta device, whose kernels are Python.
        """
        is_primitive = call.func.namespace == "prims"
        return is_primitive and not self._inferring and not getattr(self.tally, "is_primitive", False)

    def _answer_loose(self, call: Call) -> Any:
        """Answer an op that runs outside of all steps, as a step of its own."""
        self.tally = tally = self._open_loose(call.func)
        self.memory.peak = self.memory.now
        try:
            return self._answer(call)
        finally:
            self.tally = None
            tally.peak = max(tally.peak, self.memory.peak)

    def _answer(self, call: Call) -> Any:
        if self._unwritten and not self._inferring and self.unwritten.are_read(call):
            self.note_unsupported(KERNEL)
        for tensor in call.tensors:
            if tensor.is_meta or self._is_symbolic(tensor):
                values = self._values(call)
                return self._answer_symbolic(call) if values is None else self._answer_known(call, values)
        if self._knows and not self._inferring:
            return self._answer_new(call)
        return self._answer_concrete(call)

    def make_symbolic(self, tensors: Iterable[Tensor]) -> None:
        """Let tensors that have data stand for their metadata only."""
        self._symbolic.update(map(id, tensors))

    def wrote(self, tensor: Tensor) -> bool:
        """Tell whether the run wrote, or would have written, into a tensor that was there before it."""
        stand_in = self._stand_ins.get(id(tensor), (tensor, tensor))[1]
        return not self._written.isdisjoint((storage_key(tensor), storage_key(stand_in)))

    def _is_symbolic(self, tensor: Tensor) -> bool:
        """Tell whether a tensor that has data stands for its metadata only."""
        if id(tensor) in self._symbolic:
            return True
        return bool(self._overwritten) and storage_address(tensor) in self._overwritten

    def with_values(self, tensor: Tensor, reason: str) -> Tensor:
        """Return what has the values of a tensor; stop a shape-only run that has not, and say why it asks."""
        if not self.real and (tensor.is_meta or self._is_symbolic(tensor)):
            if tensor.is_meta and (value := self._known.of(tensor)) is not None:
                return value
            self.refuse(reason)
        return tensor

    def refuse(self, reason: str) -> None:
        """Stop a run that has no answer on shapes, also where the user's code swallows the exception."""
        self.failure = self.failure or NeedsRealTensorsError(reason)
        raise self.failure

    def need_autograd(self, reason: str) -> None:
        """Stop a run in inference mode that cannot do without autograd."""
        self.failure = self.failure or NeedsAutogradError(reason)
        raise self.failure

    def returned(self, output: Iterable[Any]) -> None:
        """Take note of what the model returns: what nobody was seen to write into, a kernel wrote."""
        with torch._C.DisableTorchFunction():  # the recorder is still on
            tensors = [value for value in output if isinstance(value, Tensor)]
            are_unseen = bool(self._unwritten) and self.unwritten.are_returned(tensors)
        if are_unseen:
            self.note_unsupported(KERNEL)

    def read(self, tensor: Tensor, name: str) -> Tensor:
        """Return what has the values of a tensor that leave PyTorch: what is done with them is not seen."""
        tensor = self.with_values(tensor, f"{name} reads values")
        if name in ADDRESSES or tensor.is_floating_point() or tensor.is_complex():
            self.note_unsupported(name)
        self.unwritten.written([tensor])
        return tensor

    def trust(self) -> None:
        """Take note that what was done up to now is known, though no op was seen to do it."""
        self.unwritten.made.clear()

    def note_unsupported(self, name: str) -> None:
        """Note work that has no answer."""
        (self.tally or self._open_loose(name)).note_unsupported({name: 1})

    # -- symbolic: from the memo, or on meta ------------------------------------------------------------

    def _answer_symbolic(self, call: Call) -> Any:
        if call.func is _DETACH:  # autograd saves results so; it would hold a view and its base in a circle
            return call.func(self._stand_in(call.tensors[0]))
        try:
            outcome = self._outcomes.get(call.key)
        except TypeError:  # an argument without a hash: nothing to look up
            outcome = None
        if outcome is None and self._is_shape_inference(call):
            return call.on([meta_like(tensor) for tensor in call.tensors], META)()
        if outcome is None and (outcome := self._by_rule(call)) is None:
            return self._find_out(call)
        return self._give(call, outcome)

    def _give(self, call: Call, outcome: Outcome) -> Any:
        """Return what an op returns whose outcome is known, and take its cost into account."""
        self._add(outcome)
        if outcome.written:
            self._make_symbolic([call.tensors[position] for position in outcome.written])
        result = build(outcome.result, call.tensors, self._stand_in, self.memory.born)
        if outcome.workspace:
            self.memory.reach(outcome.workspace)
        return result

    def _by_rule(self, call: Call) -> Outcome | None:
        """Return, and remember, the outcome of an op that need not run; None where it has to."""
        if formula_for(call.func) is None or traits_of(call.func).outs:
            return None
        result: Result = _moved(call) if call.func is _TO_COPY else result_by_rule(call)
        if result is None:
            return None
        out = build(result, call.tensors, self._stand_in, _unborn)
        outcome = by_formula(call, out, _new_bytes(result))
        if outcome is None:
            return None
        outcome = outcome._replace(result=result, written=call.written)
        if call.func is _ATTENTION:
            outcome = outcome._replace(workspace=bytes_beside(*call.args, **call.kwargs))
        memo.store(call.key, outcome)
        return outcome

    def _find_out(self, call: Call) -> Any:
        """Run an op on metadata, and remember what came of it where metadata says it all."""
        by_values = needs_values(call.func)
        stand_ins = [t if by_values and self._has_value(t) else self._stand_in(t) for t in call.tensors]
        try:
            result, tally = self._infer(call.on(stand_ins, META))
        except Exception as err:
            return self._find_out_from_values(call, err)
        try:
            # A primitive costs nothing where PyTorch calls it to know a shape.
            if by_values or traits_of(call.func).changes_metadata or call.func.namespace == "prims":
                raise UnrepeatableError
            outcome = _outcome(call, specify(result, stand_ins), tally)
            memo.store(call.key, outcome)
        except (UnrepeatableError, TypeError):
            return self._give_once(call, result, tally, stand_ins)
        return self._give(call, outcome)

    def _give_once(self, call: Call, result: Any, tally: Tally, stand_ins: list[Tensor]) -> Any:
        """Return a result that no description can give again."""
        self._make_symbolic(call.mutated)
        self._add(_outcome(call, None, tally))
        if traits_of(call.func).changes_metadata:
            self._require_meta(call, stand_ins)
        self.memory.reach(tally.peak)
        self.memory.made(tensors_in(result), stand_ins)
        return result

    def _find_out_from_values(self, call: Call, failure: Exception) -> Any:
        """Run an op that metadata alone does not decide with the values of its concrete whole numbers.

        A mask as an index, the lengths of packed sequences. Nothing is remembered.
        """
        mixed = [tensor if self._has_value(tensor) else self._stand_in(tensor) for tensor in call.tensors]
        try:
            if all(tensor.is_meta for tensor in mixed):
                raise failure
            result, tally = self._infer(call.on(mixed, META))
        except Exception:
            failure = _what_is_missing(call.func, failure)
            if not self.real and not self._inferring:
                self.failure = self.failure or failure
            raise failure from None
        return self._give_once(call, result, tally, mixed)

    def _has_value(self, tensor: Tensor) -> bool:
        is_whole = not (tensor.is_floating_point() or tensor.is_complex())
        return is_whole and not tensor.is_meta and not self._is_symbolic(tensor)

    def _infer(self, call: Call) -> tuple[Any, Tally]:
        """Run a call whose tensors are on meta, apart from the rest: return its result and its cost."""
        if traits_of(call.func).reads_values:
            raise NeedsRealTensorsError(f"{call.func} reads a value")
        outer = self.tally, self.memory, self._inferring
        self.tally, self.memory, self._inferring = (tally := Tally()), LiveMemory(), True
        try:
            result = self._evaluate(call)
            tally.peak = self.memory.peak
            return result, tally
        finally:
            self.memory.close()
            self.tally, self.memory, self._inferring = outer

    def _stand_in(self, tensor: Tensor) -> Tensor:
        """Return the meta tensor that stands for a tensor: itself, or for a symbolic one always the same."""
        if tensor.is_meta:
            return tensor
        if not self._is_symbolic(tensor):
            return meta_like(tensor)
        key = id(tensor)
        if key not in self._stand_ins:
            with self._kinds[tensor.is_inference()]:  # a view must be of its base's kind
                stand_in = meta_like(tensor)
            if key in self._symbolic:
                self._stand_ins[key] = tensor, stand_in
            else:  # one that the run made: it may come to its end before the run does
                keep_alive(tensor.untyped_storage(), holder=stand_in.untyped_storage())
                self._stand_ins[key] = weakref.ref(tensor, partial(self._stand_ins.pop, key)), stand_in
        return self._stand_ins[key][1]

    def _require_meta(self, call: Call, stand_ins: list[Tensor]) -> None:
        """Refuse to reshape a tensor that has data: what `forward` holds is not its stand-in on meta."""
        is_out = bool(traits_of(call.func).outs)  # which is reshaped only where its size does not fit
        mutated = {*map(id, call.mutated)}
        for tensor, stand_in in zip(call.tensors, stand_ins, strict=True):
            keeps = tensor.is_meta or (is_out and tensor.shape == stand_in.shape)
            if id(tensor) in mutated and not keeps:
                reason = f"{call.func} reshapes a tensor in place"
                self.failure = self.failure or NeedsRealTensorsError(reason)
                raise self.failure

    def _make_symbolic(self, tensors: Iterable[Tensor]) -> None:
        """Note concrete tensors just written with values that nobody has: from now on they are symbolic."""
        tensors = list(tensors)
        self._known.lose(tensors)
        for tensor in tensors:
            self._written.add(storage_key(tensor))
            address = 0 if tensor.is_meta or id(tensor) in self._symbolic else storage_address(tensor)
            if address and address not in self._overwritten:
                forget = partial(self._overwritten.pop, address)
                self._overwritten[address] = weakref.ref(tensor.untyped_storage(), forget)

    # -- concrete: for real -----------------------------------------------------------------------------

    def _answer_concrete(self, call: Call) -> Any:
        if not self.real and not self._inferring:
            if self._goes_to_meta(call):
                device = META
            elif may_be_big(call) and (outcome := self._too_big(call)) is not None:
                return self._give(call, outcome)
            else:
                device = CPU
            call = call.on([tensor.cpu() for tensor in call.tensors], device)
        self.undo.remember(mutated := call.mutated)
        self._written.update(map(storage_key, mutated))
        is_composite = call.tensors and formula_for(call.func) is None
        outcome = self._outcome_of_metadata(call) if is_composite else None
        if outcome is None:
            result = self._evaluate(call)
        else:
            result = call()
            self._add(outcome)
            self.memory.reach(outcome.workspace + _new_bytes(outcome.result))
        # A `torch.tensor` is made out of sight, and only lifted into it: its argument was not there before.
        arguments = () if call.func is _LIFT else call.tensors
        self.undo.created(made := tensors_in(result), arguments)
        if not self._inferring:
            self.unwritten.note(call, made, self.tally)
        self.memory.made(made, arguments)
        return result

    def _goes_to_meta(self, call: Call) -> bool:
        """Tell whether what a call returns is of a tangent that is zero, which has no values."""
        if call.tensors:
            return call.func in _MOVES and call.tensors[0]._is_zerotensor()
        return call.func is _ZERO and call.kwargs.get("device") == META

    def _too_big(self, call: Call) -> Outcome | None:
        """Return the outcome of an op whose result is too much to compute for real; None for all others."""
        outcome = None if needs_values(call.func) else self._outcome_of_metadata(call)
        return outcome if outcome is not None and is_big(outcome.result) else None

    def _outcome_of_metadata(self, call: Call) -> Outcome | None:
        """Find the result and cost of an op on values from metadata; None where it takes values to know."""
        try:
            outcome = self._outcomes.get(call.key) or self._by_rule(call)
            if outcome is None:
                stand_ins = [meta_like(tensor) for tensor in call.tensors]
                result, tally = self._infer(call.on(stand_ins, META))
                outcome = _outcome(call, specify(result, stand_ins), tally)
                memo.store(call.key, outcome)
        except Exception:  # whatever a meta kernel says for want of values: the run on values will know
            return None
        return outcome

    # -- under autograd: on meta, with values known ------------------------------------------------------

    def _values(self, call: Call) -> list[Tensor] | None:
        """Return the values of all tensors of a call; None where those of one are not known."""
        if self._inferring or not self._known or traits_of(call.func).changes_metadata:
            return None
        values: list[Tensor] = []
        for tensor in call.tensors:
            value = self._known.of(tensor) if tensor.is_meta else tensor
            if value is None or (value is tensor and self._is_symbolic(tensor)):
                return None
            values.append(value)
        return values

    def _answer_known(self, call: Call, values: list[Tensor]) -> Any:
        """Run an op on values that are known, and return what it does on meta."""
        result = self._compute(call.on(values, CPU))
        given = {id(value): tensor for value, tensor in zip(values, call.tensors, strict=True)}
        keys = {*map(storage_key, values)}
        if any(storage_key(made) in keys and id(made) not in given for made in tensors_in(result)):
            return call.on([self._stand_in(tensor) for tensor in call.tensors], META)()  # views share twins
        return tree_map_only(
            Tensor, lambda made: given[id(made)] if id(made) in given else self._known.keep(made), result
        )

    def _answer_new(self, call: Call) -> Any:
        """Run an op on values, and return what it makes anew on meta if that may get a gradient."""
        # A `torch.tensor` is made out of sight, and only lifted into it.
        keys = set() if call.func is _LIFT else {*map(storage_key, call.tensors)}

        def kept(made: Tensor) -> Tensor:
            is_itself = storage_key(made) in keys or call.func is _ZERO
            return made if is_itself else self._known.keep(made)

        return tree_map_only(Tensor, kept, self._compute(call))

    def _compute(self, call: Call) -> Any:
        """Run an op on values for real, with all that it is made of."""
        self._knows = False
        try:
            return self._answer_concrete(call)
        finally:
            self._knows = True

    # -- costs ------------------------------------------------------------------------------------------

    def _evaluate(self, call: Call) -> Any:
        """Run an op and add its cost to the open tally: by its formula, else over its decomposition."""
        if formula_for(call.func) is not None:
            result = self._run(call)
            if (outcome := by_formula(call, result)) is not None:
                self._add(outcome)
                return result
        with self:
            result = call.func.decompose(*call.args, **call.kwargs)
        if result is NotImplemented:
            result = call()
            self._count_reference(call, result)
        return result

    def _run(self, call: Call) -> Any:
        """Run an op that has a formula, and take note of what it holds inside."""
        if call.func is _ATTENTION and is_fused(*call.args, **call.kwargs):
            result = call()
            result = laid_out(result, layout_of(call.args[0], result.shape))
            self.memory.reach(result.nbytes + bytes_beside(*call.args, **call.kwargs))
            return result
        if _may_hold(call):
            return self._weigh(call)
        return as_kernels_lay_out(call, call.wanted(call()))

    def _weigh(self, call: Call) -> Any:
        """Run an op over its decomposition, whose parts count for memory alone."""
        outer, self.tally = self.tally, Tally()
        try:
            with self:
                # Private, and what eager PyTorch itself runs: `decompose` prefers Python where there is some,
                # which imports sympy.
                return call.func._op_dk(_HOLDING[call.func], *call.args, **call.kwargs)
        finally:
            self.tally = outer

    def _count_reference(self, call: Call, result: Any) -> None:
        """Count an op over PyTorch's reference decomposition, on metadata; without one it is unsupported."""
        # Private: PyTorch publishes the table only through its exporter, which is far heavier.
        decomposition = torch._decomp.decomposition_table.get(call.func)
        new = new_bytes(call, result)
        if decomposition is None:
            self._add(Outcome(None, with_traffic(call, Cost(), new), {str(call.func): 1}))
            return
        on_meta = call.on([meta_like(tensor) for tensor in call.tensors], META)
        outer, self.tally = self.tally, (parts := Tally())
        try:
            with self:
                decomposition(*on_meta.args, **on_meta.kwargs)
        finally:
            self.tally = outer
        cost = with_traffic(call, parts.cost, new)  # its kernel is one, whatever it computes
        self._add(Outcome(None, cost, parts.unsupported, by_others=parts.by_others))

    def _add(self, outcome: Outcome) -> None:
        tally = self.tally
        assert tally is not None
        seen = self.memory.is_seen
        tally.add(outcome if seen else outcome._replace(cost=outcome.cost.arithmetic))


def _what_is_missing(func: OpOverload, failure: Exception) -> Exception:
    """Return why an op did not run on metadata: a want of values or of a kernel, or else what it said itself.

    A kernel for metadata may refuse what the one for values takes, and an op may be given what does not fit.
    """
    if isinstance(failure, NotImplementedError):
        if torch.Tag.dynamic_output_shape in func.tags:
            return NeedsRealTensorsError(f"the size of what {func} returns depends on values")
        return NeedsRealTensorsError(f"{func} has no kernel for shapes alone")
    if "meta tensor" in str(failure).lower() and not isinstance(failure, NeedsRealTensorsError):
        return NeedsRealTensorsError(str(failure))
    return failure


def _may_hold(call: Call) -> bool:
    return call.func in _HOLDING and all(tensor.layout is torch.strided for tensor in call.tensors)


def _moved(call: Call) -> View | None:
    """Describe what a move off meta returns, to where a tensor is in a real run: that takes no copy."""
    x, device = call.args[0], call.kwargs.get("device")
    others = {value for name, value in call.kwargs.items() if name not in ("device", "non_blocking")}
    if device is None or device == META or not is_plain(x) or others - {None, False, x.dtype, x.layout}:
        return None
    return View(0, x.shape, x.stride(), 0)


def _outcome(call: Call, result: Result, tally: Tally) -> Outcome:
    workspace = max(tally.peak - _new_bytes(result), 0)
    return Outcome(result, tally.cost, tally.unsupported, workspace, call.written, tally.by_others)


def _new_bytes(result: Result) -> int:
    if type(result) is Several:
        return sum(map(_new_bytes, result.parts))
    return result.nbytes if type(result) is New else 0


def _unborn(tensor: Tensor, nbytes: int) -> None:
    """Keep a tensor that only stands for a result out of the account."""
