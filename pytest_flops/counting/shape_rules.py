"""What common ops return, told from their arguments without a kernel.

PyTorch's meta kernels of normalisations, activations and the like are Python reference code that takes 0.3 to
3 ms a call, and they were most of a first trace. In the plain case (contiguous tensors of one dtype) the
result is plain to see. Any doubt is left to PyTorch. A test holds the answers given here against the CPU's,
over PyTorch's operator database.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload  # the type of `torch.ops.aten.add.Tensor`; torch publishes no alias

from pytest_flops.counting import layer_shapes
from pytest_flops.counting.calls import Call
from pytest_flops.counting.layouts import is_permuted, like_all, same_layout
from pytest_flops.counting.op_results import (
    META,
    New,
    Same,
    Several,
    broadcast_size,
    contiguous,
    contiguous_stride,
    is_plain,
)

RuleResult = New | Same | Several | None

_aten = torch.ops.aten
CPU = torch.device("cpu")


class Rule(NamedTuple):
    """How an op's result is told, and of which arguments: dense and of one dtype unless it says otherwise."""

    tell: Callable[[Call], RuleResult]
    any_layout: bool = False
    any_dtype: bool = False

    def fits(self, tensors: Sequence[Tensor]) -> bool:
        """Tell whether the rule speaks of such tensors; the strides of empty ones are anybody's guess."""
        if not all(is_plain(tensor) and tensor.numel() for tensor in tensors):
            return False
        if not self.any_dtype and not all(tensor.dtype is tensors[0].dtype for tensor in tensors):
            return False
        return self.any_layout or all(map(_is_dense, tensors))


def result_by_rule(call: Call) -> RuleResult:
    """Return the description of an op's result, or None where only PyTorch can tell."""
    rule, tensors = _rule_for(call.func), call.tensors
    if rule is None or not tensors or not call.args or not rule.fits(tensors):
        return None
    first = call.args[0]
    if first is not tensors[0] and not (isinstance(first, (list, tuple)) and first[0] is tensors[0]):
        return None
    return rule.tell(call)


def _is_dense(tensor: Tensor) -> bool:
    """Tell whether a tensor has the strides of a new one; `is_contiguous` allows others where a size is 1."""
    return tensor.stride() == contiguous_stride(tensor.shape)


@functools.cache
def _rule_for(func: OpOverload) -> Rule | None:
    named = _RULES.get(func)
    return _POINTWISE if named is None and torch.Tag.pointwise in func.tags else named


# One rule for all pointwise ops -----------------------------------------------------------------------------

_IN_PLACE = "in place"
_Learned = torch.dtype | str | None
_learned: dict[tuple[object, ...], _Learned] = {}
_PLAIN = frozenset({int, float, bool, str, type(None)})
_IS_TENSOR = torch.TensorType.get().isSubtypeOf


def _pointwise(call: Call) -> RuleResult:
    """Tensors give one of the size that they broadcast to; the dtype is learned from a tiny call."""
    tensors = call.tensors
    size = broadcast_size(tensors)
    if size is None:
        return None
    kinds = [_kind(value) for value in (*call.args, *call.kwargs.values())]
    if not _PLAIN.issuperset(kind for kind in kinds if type(kind) is type):
        return None
    key = (call.func, *kinds, *call.kwargs, torch.get_default_dtype())
    if key not in _learned:
        _learned[key] = _learn(call)
    learned = _learned[key]
    if learned is _IN_PLACE:
        return Same(0) if tensors[0].shape == size and _is_dense(tensors[0]) else None
    if not isinstance(learned, torch.dtype) or _is_in_doubt(call):
        return None
    return like_all(tensors, size, learned, with_number=_has_number(call))


def _is_in_doubt(call: Call) -> bool:
    """Tell whether a dimension of one has a stride that says nothing, and the op may go its own way with it.

    A scalar is for some ops a tensor without dimensions and for others an option, and complex numbers are for
    some a dimension more.
    """
    odd = any(tensor.is_contiguous() and not _is_dense(tensor) for tensor in call.tensors)
    return odd and (
        any(tensor.is_complex() for tensor in call.tensors)
        or any(isinstance(value, (int, float)) for value in call.args) > _has_number(call)
    )


def _has_number(call: Call) -> bool:
    """Tell whether a number was given where the op takes a tensor, as in `x + 1`."""
    expected = zip(call.args, call.func._schema.arguments, strict=False)
    return any(
        isinstance(value, (int, float, complex)) and _IS_TENSOR(place.type) for value, place in expected
    )


def _kind(value: Any) -> object:
    """Return what of a value decides a result's dtype: a tensor without dimensions promotes like a number."""
    return (value.dtype, value.ndim == 0) if isinstance(value, Tensor) else type(value)


def _learn(call: Call) -> _Learned:
    """Run an op on one element each and see what it returns; None for anything but one like it.

    On the CPU: the kernels of meta tensors are Python that imports PyTorch's compiler, a second of it.
    """
    device = CPU if call.func.namespace == "aten" else META  # what a library's own kernel does is its affair
    ones = [
        torch.ones((1,) * min(tensor.ndim, 1), dtype=tensor.dtype, device=device) for tensor in call.tensors
    ]
    tiny = (learning := call.on(ones, device)).tensors
    try:
        result = learning()
    except Exception:  # PyTorch will say what is wrong when it is asked with the real arguments
        return None
    if result is tiny[0]:
        return _IN_PLACE
    if type(result) is not Tensor or result.ndim != max(t.ndim for t in tiny) or result._is_view():
        return None
    return result.dtype


_POINTWISE = Rule(_pointwise, any_layout=True, any_dtype=True)
_POINTWISE_CONTIGUOUS = Rule(_pointwise, any_dtype=True)


# Ops by name ------------------------------------------------------------------------------------------------


def _keeping(fits: Callable[..., bool]) -> Callable[[Call], RuleResult]:
    """Make the rule of an op that returns something like its first argument, provided that the others fit."""

    def rule(call: Call) -> RuleResult:
        if call.kwargs or not fits(*call.args):
            return None
        return contiguous(call.tensors[0].shape, call.tensors[0].dtype)

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


def _fits_triangle(x: Tensor, diagonal: int = 0) -> bool:
    return x.ndim > 1


def _linear(call: Call) -> RuleResult:
    x, weight, *bias = call.tensors
    if call.kwargs or x.ndim < 1 or weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        return None
    return contiguous((*x.shape[:-1], weight.shape[0]), x.dtype) if _are(weight.shape[:1], *bias) else None


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
    return contiguous(
        [1 if dim in gone else size for dim, size in sizes if keepdim or dim not in gone], x.dtype
    )


def _clone(call: Call) -> RuleResult:
    """`(x)`: as it is laid out, if it is dense."""
    x = call.tensors[0]
    return (
        same_layout(x)
        if not call.kwargs and len(call.args) == 1 and is_permuted(x.shape, x.stride())
        else None
    )


def _repeat(call: Call) -> RuleResult:
    """`(x, repeats)`."""
    x, repeats = call.args
    if len(repeats) < x.ndim or min(repeats, default=1) < 1:
        return None
    size = [1] * (len(repeats) - x.ndim) + list(x.shape)
    return contiguous([times * length for times, length in zip(repeats, size, strict=True)], x.dtype)


def _stack(call: Call) -> RuleResult:
    """`(tensors, dim)`."""
    tensors, dim = (*call.args, 0)[:2]
    size = list(tensors[0].shape)
    if call.kwargs or not -len(size) <= dim <= len(size) or not _are(size, *tensors):
        return None
    size.insert(dim if dim >= 0 else dim + len(size) + 1, len(tensors))
    return contiguous(size, tensors[0].dtype)


def _index(call: Call) -> RuleResult:
    """`(x, indices)`: an element for each place that the indices of all dimensions broadcast to."""
    x, indices = call.args
    are_whole = all(isinstance(index, Tensor) and index.dtype is torch.int64 for index in indices)
    size = broadcast_size(indices) if are_whole and len(indices) == x.ndim else None
    return None if size is None else like_all(indices, size, x.dtype, with_number=True)


def _dropout(call: Call) -> RuleResult:
    """`(x, p, train)`: nothing happens in eval mode, or without a chance to drop anything."""
    x, p, train = call.args
    if call.kwargs or not x.is_floating_point() or not 0 <= p <= 1:
        return None
    return like_all([x], x.shape, x.dtype) if train and p else Same(0)


_RULES: dict[OpOverload, Rule] = {
    _aten.hardswish.default: _POINTWISE,  # these two lack the tag
    _aten.hardswish_.default: _POINTWISE,
    _aten.masked_fill.Scalar: _POINTWISE_CONTIGUOUS,  # these make their own layout
    _aten.masked_fill.Tensor: _POINTWISE_CONTIGUOUS,
    _aten.mvlgamma.default: _POINTWISE_CONTIGUOUS,
    _aten.masked_fill_.Scalar: _POINTWISE,
    _aten.masked_fill_.Tensor: _POINTWISE,
    _aten.clone.default: Rule(_clone, any_layout=True),
    _aten.dropout.default: Rule(_dropout, any_layout=True),
    _aten.batch_norm.default: Rule(_keeping(_fits_batch_norm)),
    _aten.layer_norm.default: Rule(_keeping(_fits_layer_norm), any_layout=True),
    _aten.group_norm.default: Rule(_keeping(_fits_group_norm)),
    _aten.softmax.int: Rule(_keeping(_fits_softmax)),
    _aten.roll.default: Rule(_keeping(_fits_roll)),
    _aten.repeat.default: Rule(_repeat, any_layout=True),
    _aten.stack.default: Rule(_stack),
    _aten.index.Tensor: Rule(_index, any_layout=True, any_dtype=True),
    _aten.tril.default: Rule(_keeping(_fits_triangle)),
    _aten.triu.default: Rule(_keeping(_fits_triangle)),
    _aten.linear.default: Rule(_linear),
    _aten.mean.dim: Rule(_over_dims),
    _aten.sum.dim_IntList: Rule(_over_dims),
    _aten.conv1d.default: Rule(layer_shapes.convolution),
    _aten.conv2d.default: Rule(layer_shapes.convolution),
    _aten.conv3d.default: Rule(layer_shapes.convolution),
    _aten.max_pool1d.default: Rule(layer_shapes.pooling(1, has_dilation=True)),
    _aten.max_pool2d.default: Rule(layer_shapes.pooling(2, has_dilation=True)),
    _aten.max_pool3d.default: Rule(layer_shapes.pooling(3, has_dilation=True)),
    _aten.avg_pool1d.default: Rule(layer_shapes.pooling(1, has_dilation=False)),
    _aten.avg_pool2d.default: Rule(layer_shapes.pooling(2, has_dilation=False)),
    _aten.avg_pool3d.default: Rule(layer_shapes.pooling(3, has_dilation=False)),
    _aten.adaptive_avg_pool1d.default: Rule(layer_shapes.adaptive_pooling(1)),
    _aten.adaptive_avg_pool2d.default: Rule(layer_shapes.adaptive_pooling(2)),
    _aten.adaptive_avg_pool3d.default: Rule(layer_shapes.adaptive_pooling(3)),
    _aten.mm.default: Rule(layer_shapes.matrix_product, any_layout=True),
    _aten.bmm.default: Rule(layer_shapes.matrix_product, any_layout=True),
    _aten.addmm.default: Rule(layer_shapes.matrix_product_plus, any_layout=True),
    _aten.baddbmm.default: Rule(layer_shapes.matrix_product_plus, any_layout=True),
    _aten.scaled_dot_product_attention.default: Rule(layer_shapes.attention, any_layout=True, any_dtype=True),
    _aten.embedding.default: Rule(layer_shapes.embedding, any_layout=True, any_dtype=True),
    _aten.cat.default: Rule(layer_shapes.join),
    _aten.pad.default: Rule(layer_shapes.padding),
    _aten.constant_pad_nd.default: Rule(layer_shapes.padding),
    _aten.lstm.input: Rule(layer_shapes.recurrent),
    _aten.gru.input: Rule(layer_shapes.recurrent),
    _aten.rnn_tanh.input: Rule(layer_shapes.recurrent),
    _aten.rnn_relu.input: Rule(layer_shapes.recurrent),
}
if hasattr(_aten, "_grouped_mm"):  # since torch 2.8
    _RULES[_aten._grouped_mm.default] = Rule(layer_shapes.grouped_product, any_layout=True, any_dtype=True)
