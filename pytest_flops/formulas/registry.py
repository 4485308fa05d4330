"""The one registry of FLOP formulas, and how an op without an entry gets its answer.

Formulas are kept by qualified name, `"aten::mm"` for every overload or `"aten::sum.dim_IntList"` for one, so
that a formula can stand here for an op that this torch does not have, or that a library brings in later.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch._C import DispatchKey  # what `has_kernel_for_dispatch_key` takes; torch publishes no other name
from torch._ops import OpOverload, OpOverloadPacket  # the types of `torch.ops.*`; torch publishes no alias

from pytest_flops.errors import FormulaError
from pytest_flops.metrics import Cost

Formula = Callable[..., "Cost | int"]
"""A formula is called as `formula(*args, out=result, **kwargs)`, with the op's own arguments and its result.

Tensors may have no data: read only `shape`, `ndim`, `numel()`, `dtype` and `is_complex()`. It returns FLOPs
as an int, a `Cost` where there are multiply-accumulates, or `NotImplemented` to leave the op to its
decomposition.
"""

DECOMPOSE = cast(Cost, NotImplemented)
"""What a formula returns to leave the op to its decomposition, with the type of a formula's answer."""

Op = OpOverload | OpOverloadPacket | str
F = TypeVar("F", bound=Formula)

_QUALIFIED_NAME = re.compile(r"\w+::\w+(\.\w+)?")
_formulas: dict[str, Formula] = {}
_shipped: dict[str, Formula] = {}
_changed: set[str] = set()
_generation = 0
_torchs: tuple[object, ...] = ()
_readers: set[Formula] = set()


def register_flop_formula(ops: Op | Iterable[Op], *, override: bool = False) -> Callable[[F], F]:
    """Register the decorated function as the FLOP formula of an operator, or of several.

    A formula is called as `formula(*args, out=result, **kwargs)`: with the arguments of the operator as they
    were given, and with what it returned. Tensors may have no data: read only `shape`, `ndim`, `numel()`,
    `dtype` and `is_complex()`. It returns FLOPs as an int, `Cost(flops, macs)` where there are
    multiply-accumulates, or `NotImplemented` to leave the operator to its decomposition.

    An operator of your own that returns the distance of each row of `x` from each row of `y`, of length d,
    gets its formula so; in a suite of tests this stands in a conftest.py::

        from pytest_flops import register_flop_formula

        @register_flop_formula("mylib::distances")
        def distances_flops(x, y, *, out):
            n, d = x.shape
            m = y.shape[0]
            return n * m * 3 * d  # d subtractions, d squares, d - 1 additions and a root for each pair

    `ops` is one operator or several: the name `"mylib::my_op"`, whose library may be loaded later,
    `torch.ops.mylib.my_op` (all overloads) or `torch.ops.mylib.my_op.default` (one overload). In-place
    operators use the formula of the one without the underscore, unless they have their own.

    Raises `FormulaError` for anything else, and for an operator that already has a formula unless `override`
    is set.
    """
    names = [_qualified_name(op) for op in _as_list(ops)]

    def register(formula: F) -> F:
        global _generation
        taken = [name for name in names if name in _formulas or _overloads_of(name)] if not override else []
        if taken:
            raise FormulaError(f"{', '.join(taken)} already has a formula; pass override=True to replace it")
        for overload in [each for name in names for each in _overloads_of(name)]:
            del _formulas[overload]  # "all overloads" means those too that have one of ours
        _formulas.update(dict.fromkeys(names, formula))
        _changed.update(names)
        _generation += 1
        return formula

    return register


def reads_values(formula: F) -> F:
    """Mark a formula that reads the whole numbers among its arguments, such as lengths, where there are any.

    It is then called with them for every call of its op, and has to tell by `is_meta` where they are unknown.
    """
    _readers.add(formula)
    return formula


def needs_values(func: OpOverload) -> bool:
    """Tell whether the cost of an op depends on whole numbers among its arguments, not on shapes alone."""
    return formula_for(func) in _readers


def _overloads_of(name: str) -> list[str]:
    """Return the overloads of an op that have a formula of this package by themselves."""
    return [
        each for each in _shipped if each.startswith(f"{name}.") and _formulas.get(each) is _shipped[each]
    ]


def seal() -> None:
    """Take all that is registered now for the package's own: what comes later is the user's."""
    _shipped.update(_formulas)
    _changed.clear()


def users_formulas() -> dict[str, Formula]:
    """Return the formulas that were registered by others than this package, by qualified name."""
    found = {name: _formulas[name] for name in _changed if name in _formulas}
    return {name: formula for name, formula in found.items() if _shipped.get(name) is not formula}


def generation() -> int:
    """Return a number that grows with every registration, PyTorch's registry included: what was counted under
    an older one is stale."""
    global _generation, _torchs
    if (torchs := (*_torchs_registry().items(),)) != _torchs:
        _torchs = torchs
        _generation += 1
    return _generation


@contextmanager
def registrations_undone() -> Iterator[None]:
    """Forget, at the end of the block, every formula that was registered in it: for tests of formulas."""
    global _generation
    before, formulas, changed = _generation, dict(_formulas), set(_changed)
    try:
        yield
    finally:
        if _generation != before:
            _formulas.clear()
            _formulas.update(formulas)
            _changed.clear()
            _changed.update(changed)
            _generation += 1  # what was counted in the block is stale as well


def formula_for(func: OpOverload) -> Formula | None:
    """Return the formula of an ATen op, or None where only its decomposition can tell.

    In order: a registered formula (the overload's before the op's); one registered with PyTorch's own
    counter; one FLOP per output element if torch tags the op pointwise; a reduction if it tags it so. An op
    that torch defines by other ops (composite) is left to these, tag or no tag: outside of inference mode
    they are all that a trace sees.
    """
    for name in _lookup_names(func):
        if name in _formulas:
            return _formulas[name]
    return torchs_formula_for(func) or _formula_by_kind(func)


def torchs_formula_for(func: OpOverload) -> Formula | None:
    """Return the formula that PyTorch's own `torch.utils.flop_counter.register_flop_formula` was given.

    It gives FLOPs by PyTorch's convention, two for each multiply-accumulate. It is asked only where nothing
    is registered here; None where it answers nothing, or is not asked.
    """
    theirs = _torchs_registry().get(func.overloadpacket)
    if theirs is None or any(name in _formulas for name in _lookup_names(func)):
        return None

    def formula(*args: Any, out: Any, **kwargs: Any) -> Cost:
        flops: int = theirs(*args, **kwargs, out_val=out)
        return Cost(flops, flops // 2)

    return formula


def is_others(func: OpOverload) -> bool:
    """Tell whether the formula of an op is not this package's: a user's, or one of torch's own counter."""
    name = next((name for name in _lookup_names(func) if name in _formulas), None)
    if name is None:
        return torchs_formula_for(func) is not None
    return _formulas[name] is not _shipped.get(name)


def torchs_names() -> list[str]:
    """Return the names of the ops that have a formula with PyTorch's own counter, and none here."""
    names = [_qualified_name(op) for op in _torchs_registry() if isinstance(op, OpOverloadPacket)]
    return [name for name in names if name not in _formulas]


def _torchs_registry() -> Mapping[Any, Callable[..., int]]:
    # Nobody registered anything with a module that nobody imported
    module = sys.modules.get("torch.utils.flop_counter")
    return getattr(module, "flop_registry", {})


@cache
def _formula_by_kind(func: OpOverload) -> Formula | None:
    if func.is_view:
        return no_flops
    if is_composite(func):
        return None
    tags = _tags(func)
    if torch.Tag.pointwise in tags:
        return one_per_element
    if getattr(torch.Tag, "reduction", None) in tags:
        return reduction
    return None


def is_composite(func: OpOverload) -> bool:
    """Tell whether torch defines an op by others, so that autograd takes it apart."""
    # Private: asked for the kernels of an op that has none (`prim::layout`) PyTorch raises
    name: str = func.name()  # type: ignore[no-untyped-call]
    return torch._C._dispatch_has_kernel(name) and func.has_kernel_for_dispatch_key(
        DispatchKey.CompositeImplicitAutograd
    )


def registered_names() -> frozenset[str]:
    """Return the qualified names of all ops, and of single overloads, that have a formula of their own."""
    return frozenset(_formulas)


def no_flops(*_: Any, **__: Any) -> int:
    """Zero by kind: the op moves, makes or names data."""
    return 0


def elements(tensors: Any) -> int:
    """Return the number of elements of a tensor, or of all tensors in a (nested) sequence."""
    if isinstance(tensors, Tensor):
        return tensors.numel()
    return sum(map(elements, tensors)) if isinstance(tensors, (list, tuple)) else 0


def one_per_element(*_: Any, out: Any, **__: Any) -> int:
    """Count one per element of the (first) output, two if it is complex: its real and imaginary part."""
    first: Tensor = out[0] if isinstance(out, (list, tuple)) else out
    return first.numel() * real_parts(first)


def reduction(x: Tensor, *_: Any, out: Any, **__: Any) -> int:
    """Count n−1 per output, which combine n numbers: the elements that go in less those that come out."""
    first = out[0] if isinstance(out, (list, tuple)) else out
    return max(x.numel() - elements(first), 0) * real_parts(x)


def real_parts(x: Tensor) -> int:
    """Return how many real numbers make an element of `x`: two if it is complex."""
    return 2 if x.is_complex() else 1


def _as_list(ops: Op | Iterable[Op]) -> list[Op]:
    # A packet is iterable (over its overload names), a string too
    return (
        [ops]
        if isinstance(ops, (OpOverload, OpOverloadPacket, str)) or not isinstance(ops, Iterable)
        else [*ops]
    )


def _qualified_name(op: Any) -> str:
    if isinstance(op, OpOverload):
        return f"{op._schema.name}.{op._overloadname}"
    if isinstance(op, OpOverloadPacket):
        return op._qualified_op_name
    if isinstance(op, str) and _QUALIFIED_NAME.fullmatch(op):
        return op
    raise FormulaError(
        f"a formula belongs to an op such as torch.ops.mylib.my_op or its name 'mylib::my_op', "
        f"not to {op!r} of type {type(op).__name__}"
    )


@cache
def _lookup_names(func: OpOverload) -> tuple[str, ...]:
    name, overload = func._schema.name, func._overloadname
    names = [name, name[:-1]] if name.endswith("_") else [name]
    return tuple(found for each in names for found in (f"{each}.{overload}", each))


def _tags(func: OpOverload) -> set[torch.Tag]:
    # In-place and out= overloads (`gelu_`, `elu.out`) lack tags that the functional op has
    namespace, _, name = func._schema.name.partition("::")
    tags = set(func.tags)
    for plain_name in {name, name.removesuffix("_")}:
        packet = getattr(getattr(torch.ops, namespace), plain_name, None)
        tags.update(*(getattr(packet, overload).tags for overload in packet.overloads()) if packet else ())
    return tags
