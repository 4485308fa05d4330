"""In what order ops lay out their results, from strides alone: pointwise ones, and some of channels last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pytest_flops.counting.calls import Call
from pytest_flops.counting.op_results import New, contiguous


def like_all(
    tensors: Sequence[Tensor], size: Sequence[int], dtype: torch.dtype, *, with_number: bool = False
) -> New:
    """Describe the result of a pointwise op on tensors that broadcast to a size.

    The rules are those of ATen/TensorIterator.cpp: contiguous if all are; channels last if all are; as they
    stand if all have the same dense strides; else the dimensions are sorted by stride, first those
    of the first tensor. `with_number` says that a number stands beside them: a tensor without dimensions.
    """
    full = not with_number and all(tensor.shape == torch.Size(size) for tensor in tensors)
    if full and all(tensor.is_contiguous() for tensor in tensors):
        return contiguous(size, dtype)
    if full and len(size) in _CHANNELS_LAST:
        order, memory_format = _CHANNELS_LAST[len(size)]
        if all(tensor.is_contiguous(memory_format=memory_format) for tensor in tensors):
            return _laid_out(order, size, dtype)
    first = tensors[0]
    if full and all(t.stride() == first.stride() for t in tensors) and is_permuted(size, first.stride()):
        return same_layout(first, dtype)
    return _laid_out(_sorted_dims(tensors, size), size, dtype)


_CHANNELS_LAST = {
    4: ((1, 3, 2, 0), torch.channels_last),
    5: ((1, 4, 3, 2, 0), torch.channels_last_3d),
}
"""The dimensions from the innermost, by how many there are."""


_aten = torch.ops.aten
_FOLLOWS = {
    **dict.fromkeys(
        (
            _aten.conv2d.default,
            _aten.conv2d.padding,
            _aten.conv3d.default,
            _aten.conv3d.padding,
            _aten.conv_transpose2d.input,
            _aten.conv_transpose3d.input,
            _aten.convolution.default,
        ),
        slice(0, 2),
    ),
    _aten.convolution_backward.default: slice(1, 3),
    **dict.fromkeys(
        (
            _aten.group_norm.default,
            _aten.native_group_norm.default,
            _aten.pad.default,
            _aten.reflection_pad2d.default,
            _aten.reflection_pad2d_backward.default,
            _aten.replication_pad2d_backward.default,
            _aten.replication_pad2d.default,
            _aten.max_unpool2d.default,
            _aten.pixel_shuffle.default,
            _aten.channel_shuffle.default,
            _aten.native_channel_shuffle.default,
        ),
        slice(0, 1),
    ),
}
"""Ops whose kernels for meta leave all contiguous, and the arguments that decide where kernels of the CPU do
not: of a convolution its input and weight (ATen/native/ConvUtils.h), of others the first."""


def as_kernels_lay_out(call: Call, result: Any) -> Any:
    """Return the results of an op in channels last where kernels give them so: where what decides is."""
    decisive = call.args[_FOLLOWS[call.func]] if call.func in _FOLLOWS else ()
    return _channels_last(result) if any(map(_is_channels_last, decisive)) else result


def _channels_last(result: Any) -> Any:
    if isinstance(result, (tuple, list)):
        return type(result)(map(_channels_last, result))
    if result is None or result.ndim not in _CHANNELS_LAST:
        return result
    made = torch.empty_like(result, memory_format=_CHANNELS_LAST[result.ndim][1])
    return result if result.stride() == made.stride() else made.copy_(result)


def _is_channels_last(tensor: Tensor) -> bool:
    """Tell whether strides are those of channels last, as c10's `is_channels_last_strides_2d` says it."""
    if tensor.ndim not in _CHANNELS_LAST:
        return False
    size, stride, least = tensor.shape, tensor.stride(), 0
    for dim in _CHANNELS_LAST[tensor.ndim][0]:
        if not size[dim] or not stride[1] or stride[dim] < least or (dim == 0 and least == stride[1]):
            return False
        least = stride[dim] * max(size[dim], 1)
    return True


def same_layout(tensor: Tensor, dtype: torch.dtype | None = None) -> New:
    """Describe a new tensor with the strides of a dense one."""
    dtype = dtype or tensor.dtype
    return New(tensor.shape, tensor.stride(), dtype, tensor.numel() * dtype.itemsize)


def _laid_out(order: Sequence[int], size: Sequence[int], dtype: torch.dtype) -> New:
    """Describe a new dense tensor, given its dimensions from the innermost."""
    strides, step = [0] * len(size), 1
    for dim in order:
        strides[dim] = step
        step *= size[dim]
    return New(torch.Size(size), tuple(strides), dtype, step * dtype.itemsize)


def is_permuted(size: Sequence[int], stride: Sequence[int]) -> bool:
    """Tell whether strides are those of a dense tensor with its dimensions in another order."""
    expected = 1
    for step, length in sorted((s, n) for s, n in zip(stride, size, strict=True) if n > 1):
        if step != expected:
            return False
        expected *= length
    return True


def _sorted_dims(tensors: Sequence[Tensor], size: Sequence[int]) -> list[int]:
    """Return the dimensions from the innermost, by an insertion sort that leaves ties as they are."""
    strides = [_broadcast_strides(tensor, size) for tensor in tensors]
    order = [*reversed(range(len(size)))]
    for position in range(1, len(order)):
        here = position
        for there in reversed(range(position)):
            comparison = _compare(order[there], order[here], strides, size)
            if comparison > 0:
                order[there], order[here] = order[here], order[there]
                here = there
            elif comparison < 0:
                break
    return order


def _broadcast_strides(tensor: Tensor, size: Sequence[int]) -> list[int]:
    """Return a tensor's strides in the dimensions of a result: 0 where it is broadcast."""
    missing = len(size) - tensor.ndim
    own = zip(tensor.shape, tensor.stride(), size[missing:], strict=True)
    return [0] * missing + [0 if length == 1 and full != 1 else stride for length, stride, full in own]


def _compare(a: int, b: int, strides: Sequence[Sequence[int]], size: Sequence[int]) -> int:
    """Return 1 where dimension `b` belongs inside of `a`, -1 where it does not, 0 where no tensor tells."""
    for stride in strides:
        if stride[a] == 0 or stride[b] == 0:
            continue
        if stride[a] != stride[b]:
            return 1 if stride[a] > stride[b] else -1
        if size[a] > size[b]:
            return 1
    return 0
