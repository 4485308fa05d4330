"""What common ops return, told from their arguments without a kernel.

PyTorch's meta kernels of normalisations, activations and the like are Python reference code that takes 0.3 to
3 ms a call, and they were most of a first trace. In the plain case (contiguous tensors of one dtype) the
result is plain to see. Any doubt is left to PyTorch. A test holds the answers given here against the CPU's,
over PyTorch's operator database.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload  # the type of `torch.ops.aten.add.Tensor`; torch publishes no alias

from pytest_flops.counting.calls import Call
from pytest_flops.counting.op_results import META, New, Same, contiguous_stride, is_plain

RuleResult = New | Same | None

_aten = torch.ops.aten


_Rule = Callable[[Call], RuleResult]


def result_by_rule(call: Call) -> RuleResult:
    """Return the description of an op's result, or None where only PyTorch can tell."""
    func, tensors = call.func, call.tensors
    rule = _rule_for(func)
    if rule is None or not tensors or call.args[0] is not tensors[0]:
        return None
    dtype = tensors[0].dtype
    if not all(tensor.dtype is dtype and is_plain(tensor) and tensor.numel() for tensor in tensors):
        return None  # the strides of empty tensors are anybody's guess
    if func is not _aten.layer_norm.default and not all(map(_is_dense, tensors)):
        return None  # layer_norm makes a contiguous tensor of any
    return rule(call)


def _is_dense(tensor: Tensor) -> bool:
    """Tell whether a tensor has the strides of a new one; `is_contiguous` allows others where a size is 1."""
    return tensor.stride() == contiguous_stride(tensor.shape)


@functools.cache
def _rule_for(func: OpOverload) -> _Rule | None:
    named = _RULES.get(func)
    return _pointwise if named is None and torch.Tag.pointwise in func.tags else named


def _fresh(size: Sequence[int], dtype: torch.dtype) -> New:
    return New(torch.Size(size), contiguous_stride(size), dtype, math.prod(size) * dtype.itemsize)


# One rule for all pointwise ops -----------------------------------------------------------------------------

_IN_PLACE = "in place"
_Learned = torch.dtype | str | None
_learned: dict[tuple[object, ...], _Learned] = {}
_PLAIN = frozenset({Tensor, int, float, bool, str, type(None)})


def _pointwise(call: Call) -> RuleResult:
    """Tensors that broadcast to the largest give one of its size; the dtype is learned from a tiny call."""
    tensors = call.tensors
    size = max((tensor.shape for tensor in tensors), key=lambda shape: (len(shape), math.prod(shape)))
    if not all(_broadcasts(tensor.shape, size) for tensor in tensors):
        return None
    values = (*call.args, *call.kwargs.values())
    kinds = tuple(Tensor if isinstance(value, Tensor) else type(value) for value in values)
    if not _PLAIN.issuperset(kinds):
        return None
    key = (call.func, tensors[0].dtype, kinds, (*call.kwargs,), torch.get_default_dtype())
    if key not in _learned:
        _learned[key] = _learn(call)
    learned = _learned[key]
    if learned is _IN_PLACE:
        return Same(0) if tensors[0].shape == size else None
    return _fresh(size, learned) if isinstance(learned, torch.dtype) else None


def _broadcasts(shape: Sequence[int], size: Sequence[int]) -> bool:
    full = size[len(size) - len(shape) :]
    return all(length in (1, there) for length, there in zip(shape, full, strict=True))


def _learn(call: Call) -> _Learned:
    """Run an op on one element each and see what it returns; None for anything but one like it."""
    first = torch.empty(1, dtype=call.tensors[0].dtype, device=META)

    def tiny(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return first if value is call.tensors[0] else torch.empty_like(first)

    try:
        result = call.func(
            *map(tiny, call.args), **{name: tiny(value) for name, value in call.kwargs.items()}
        )
    except Exception:  # PyTorch will say what is wrong when it is asked with the real arguments
        return None
    if result is first:
        return _IN_PLACE
    if type(result) is not Tensor or result.shape != first.shape or result._is_view():
        return None
    return result.dtype


# Ops by name ------------------------------------------------------------------------------------------------


def _keeping(fits: Callable[..., bool]) -> _Rule:
    """Make the rule of an op that returns something like its first argument, provided that the others fit."""

    def rule(call: Call) -> RuleResult:
        if call.kwargs or not fits(*call.args):
            return None
        return _fresh(call.tensors[0].shape, call.tensors[0].dtype)

    return rule


def _are(size: Sequence[int], *values: Any) -> bool:
    """Tell whether all tensors among the values have this size."""
    return all(value.shape == tuple(size) for value in values if isinstance(value, Tensor))


def _fits_batch_norm(x: Tensor, *others: Any) -> bool:
    return x.ndim > 1 and _are(x.shape[1:2], *others)


def _fits_layer_norm(x: Tensor, size: Sequence[int], *others: Any) -> bool:
    return 0 < len(size) <= x.ndim and x.shape[-len(size) :] == tuple(size) and _are(size, *others)


def _fits_group_norm(x: Tensor, groups: int, *others: Any) -> bool:
    return x.ndim > 1 and groups > 0 and x.shape[1] % groups == 0 and _are(x.shape[1:2], *others)


def _fits_softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> bool:
    return dtype is None and x.is_floating_point() and -x.ndim <= dim < x.ndim


def _fits_roll(x: Tensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> bool:
    return 0 < len(shifts) == len(dims) and all(-x.ndim <= dim < x.ndim for dim in dims)


def _linear(call: Call) -> RuleResult:
    x, weight, *bias = call.tensors
    if call.kwargs or x.ndim < 1 or weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        return None
    return _fresh((*x.shape[:-1], weight.shape[0]), x.dtype) if _are(weight.shape[:1], *bias) else None


def _over_dims(call: Call) -> RuleResult:
    """A mean or sum over dimensions: `(x, dims, keepdim=False)`."""
    x, dims, keepdim, *others = (*call.args, False, False)
    dims = [dims] if isinstance(dims, int) else dims
    if call.kwargs or len(others) > 1 or not dims or not x.is_floating_point():
        return None
    if not all(-x.ndim <= dim < x.ndim for dim in dims):
        return None
    gone = {dim % x.ndim for dim in dims}
    sizes = enumerate(x.shape)
    return _fresh([1 if dim in gone else size for dim, size in sizes if keepdim or dim not in gone], x.dtype)


_RULES: Mapping[OpOverload, _Rule] = {
    _aten.hardswish.default: _pointwise,  # these two lack the tag
    _aten.hardswish_.default: _pointwise,
    _aten.batch_norm.default: _keeping(_fits_batch_norm),
    _aten.layer_norm.default: _keeping(_fits_layer_norm),
    _aten.group_norm.default: _keeping(_fits_group_norm),
    _aten.softmax.int: _keeping(_fits_softmax),
    _aten.roll.default: _keeping(_fits_roll),
    _aten.linear.default: _linear,
    _aten.mean.dim: _over_dims,
    _aten.sum.dim_IntList: _over_dims,
}
