"""Which attention a fused kernel computes, one that holds no scores, and how its result is laid out.

These are the conditions of the CPU's kernel. What only training asks for (dropout, a gradient for the mask)
it lacks, and kernels of GPUs have it: that counts as fused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pytest_flops.counting.layouts import like_all


def is_fused(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any
) -> bool:
    """Tell whether a fused kernel takes these arguments of `F.scaled_dot_product_attention`."""
    operands = (query, key, value)
    if not all(tensor.layout is torch.strided and tensor.numel() for tensor in operands):
        return False
    if query.ndim not in (3, 4) or {key.ndim, value.ndim} != {query.ndim}:
        return False
    if (
        len({tensor.shape[-1] for tensor in operands}) > 1
        or len({tensor.shape[0] for tensor in operands}) > 1
    ):
        return False
    if any(tensor.stride(-1) != 1 and tensor.shape[-1] > 1 for tensor in operands):
        return False
    if query.ndim == 3:
        return True
    heads = key.shape[1]
    return (
        heads == value.shape[1]
        and not query.shape[1] % heads
        and (attn_mask is None or attn_mask.ndim in (2, 4))
    )


def bytes_beside(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any
) -> int:
    """Return the size of what a fused attention makes beside its result.

    These are a number for each row of scores, and numbers in place of a mask of truth values.
    """
    rows = query[..., 0].numel() * torch.float32.itemsize
    if attn_mask is None or attn_mask.dtype is not torch.bool:
        return rows
    return rows + attn_mask.numel() * query.dtype.itemsize


def layout_of(tensor: Tensor, size: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of what a fused kernel makes in the layout of one of its inputs."""
    return like_all([tensor], size, tensor.dtype).stride


def laid_out(made: Tensor, stride: Sequence[int]) -> Tensor:
    """Return what the parts of an attention made with the strides that a fused kernel gives it.

    Joining the heads of such a result takes no copy. A gradient goes through as it comes.
    """
    if made.stride() == stride:
        return made
    order = sorted(range(made.ndim), key=lambda dim: -stride[dim])
    back = sorted(range(made.ndim), key=order.__getitem__)
    return made.permute(order).contiguous().permute(back)
