"""The results of layers, told from the sizes of their arguments: convolution, pooling, products, lookups.

PyTorch would tell them too, by Python that first imports its compiler and sympy, which takes a second. Each
function here takes the call of an op and returns the description of its result, or None where the arguments
do not fit it or only PyTorch can tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pytest_flops.counting.calls import Call
from pytest_flops.counting.fused_attention import is_fused
from pytest_flops.counting.layouts import like_all
from pytest_flops.counting.op_results import New, Several, broadcasts, contiguous, transposed

Rule = Callable[[Call], "New | Several | None"]


def _several(value: Any, dims: int) -> list[int] | None:
    """Return a size for each dimension, where one may stand for all; None for anything but whole numbers."""
    sizes = [value] if isinstance(value, int) else list(value)
    sizes = sizes * dims if len(sizes) == 1 else sizes
    return sizes if len(sizes) == dims and all(type(size) is int for size in sizes) else None


# Convolution and pooling ------------------------------------------------------------------------------------


def convolution(call: Call) -> New | None:
    """`(x, weight, bias, stride, padding, dilation, groups)`, padding in numbers."""
    given: tuple[Any, ...] = (*call.args, *_CONVOLUTION[len(call.args) :])
    x, weight, bias, *options = given
    dims = weight.ndim - 2
    if call.kwargs or x.ndim not in (dims + 1, dims + 2) or isinstance(options[1], str):
        return None
    windows = [_several(option, dims) for option in options[:3]]
    groups, channels = options[3], x.shape[-dims - 1]
    if groups < 1 or weight.shape[0] % groups:
        return None
    if channels != weight.shape[1] * groups or (bias is not None and bias.shape != weight.shape[:1]):
        return None
    sizes = _windows(x.shape[-dims:], weight.shape[2:], *windows)
    return contiguous((*x.shape[: -dims - 1], weight.shape[0], *sizes), x.dtype) if sizes else None


_CONVOLUTION = (None, None, None, 1, 0, 1, 1)


def pooling(dims: int, *, has_dilation: bool) -> Rule:
    """Make the rule of `(x, kernel, stride, padding, dilation, ceil_mode)`; an average has no dilation."""

    def rule(call: Call) -> New | None:
        given: tuple[Any, ...] = (*call.args, *(None, None, [], 0)[len(call.args) :])
        x, kernel, stride, padding, *others = given
        dilation = others.pop(0) if has_dilation and others else 1
        ceil_mode = others[0] if others else False
        if call.kwargs or x.ndim not in (dims + 1, dims + 2):
            return None
        options = [_several(option, dims) for option in (kernel, stride or kernel, padding, dilation)]
        sizes = _windows(x.shape[-dims:], *options, ceil_mode=ceil_mode, most_padding=0.5)
        return contiguous((*x.shape[:-dims], *sizes), x.dtype) if sizes else None

    return rule


def adaptive_pooling(dims: int) -> Rule:
    """Make the rule of `(x, output_size)`."""

    def rule(call: Call) -> New | None:
        x, *sizes = call.args
        given = _several(sizes[0], dims) if len(sizes) == 1 and not call.kwargs else None
        if given is None or x.ndim not in (dims + 1, dims + 2) or min(given) < 1:
            return None
        return contiguous((*x.shape[:-dims], *given), x.dtype)

    return rule


def _windows(
    sizes: Sequence[int],
    *options: Sequence[int] | None,
    ceil_mode: bool = False,
    most_padding: float = math.inf,
) -> list[int]:
    """Return how many windows there are in each dimension; nothing where one has none.

    The options are kernel, stride, padding and dilation. `most_padding` is the largest padding allowed, as a
    share of the kernel.
    """
    found: list[int] = []
    if None in options:
        return found
    for n, k, s, p, d in zip(sizes, *filter(None, options), strict=True):
        room = n + 2 * p - d * (k - 1) - 1
        if room < 0 or k < 1 or s < 1 or d < 1 or not 0 <= p <= most_padding * k:
            return []
        count = room // s + 1
        if ceil_mode and room % s and count * s < n + p:  # the last one has to start inside
            count += 1
        found.append(count)
    return found


# Products ---------------------------------------------------------------------------------------------------


def matrix_product(call: Call) -> New | None:
    """`(a, b)`: two matrices, or two batches of as many."""
    a, b = call.args
    fits = a.ndim == b.ndim and a.shape[:-2] == b.shape[:-2] and a.shape[-1] == b.shape[-2]
    return contiguous((*a.shape[:-1], b.shape[-1]), a.dtype) if fits and not call.kwargs else None


def matrix_product_plus(call: Call) -> New | None:
    """`(bias, a, b)`, with factors by keyword."""
    bias, a, b = call.args
    result = matrix_product(call._replace(args=(a, b), kwargs={}))
    if result is None or not call.kwargs.keys() <= {"alpha", "beta"}:
        return None
    return result if broadcasts(bias.shape, result.size) else None


_GROUPED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def grouped_product(call: Call) -> New | None:
    """`(a, b, offsets, bias, dtype)`: products of groups of rows, of columns, of terms, or of a plain batch.

    PyTorch's kernel for meta tensors refuses float32, and float16 without a GPU, which the CPU's takes.
    """
    a, b, offsets, bias, dtype, *_ = (*call.args, None, None, None)
    if call.kwargs or bias is not None or dtype not in (None, a.dtype) or a.dtype not in _GROUPED_DTYPES:
        return None
    if a.dtype is not b.dtype or a.shape[-1] != b.shape[-2] or not all(map(_is_aligned, (a, b))):
        return None
    groups = {x.shape[0] for x in (a, b) if x.ndim == 3}
    groups |= {offsets.shape[0]} if offsets is not None else set()
    if (offsets is None) != (a.ndim == b.ndim == 3) or len(groups) != 1 or {a.ndim, b.ndim} - {2, 3}:
        return None
    return _padded((*(groups if a.ndim == b.ndim else ()), a.shape[-2], b.shape[-1]), a.dtype)


def _is_aligned(x: Tensor) -> bool:
    """Tell whether a matrix lies in rows, or in columns, that begin at multiples of 16 bytes."""
    inner, outer = sorted(x.stride()[-2:])
    return inner == 1 and outer * x.dtype.itemsize % 16 == 0


def _padded(size: Sequence[int], dtype: torch.dtype) -> New:
    """Describe a new tensor whose rows begin at multiples of 16 bytes where PyTorch was built with CUDA."""
    step = 16 // dtype.itemsize if torch.version.cuda else 1
    whole = contiguous((*size[:-1], -(-size[-1] // step) * step), dtype)
    last = sum((length - 1) * by for length, by in zip(size, whole.stride, strict=True))
    return whole._replace(size=torch.Size(size), nbytes=(last + 1) * dtype.itemsize)


# Lookups and joins ------------------------------------------------------------------------------------------


def embedding(call: Call) -> New | None:
    """`(weight, indices, ...)`."""
    weight, indices = call.args[:2]
    if weight.ndim != 2 or indices.is_floating_point() or indices.is_complex():
        return None
    return contiguous((*indices.shape, weight.shape[1]), weight.dtype)


def join(call: Call) -> New | None:
    """`(tensors, dim)`: they are alike but for one dimension."""
    tensors, dim = (*call.args, 0)[:2]
    first = tensors[0]
    if call.kwargs or not -first.ndim <= dim < first.ndim:
        return None
    sizes = [list(tensor.shape) for tensor in tensors]
    if any(len(size) != first.ndim for size in sizes):
        return None
    total = sum(size.pop(dim) for size in sizes)
    if any(size != sizes[0] for size in sizes):
        return None
    dim %= first.ndim
    return contiguous((*sizes[0][:dim], total, *sizes[0][dim:]), first.dtype)


def padding(call: Call) -> New | None:
    """`(x, pad, mode, value)`: with a constant, and no cropping."""
    x, pad, *others = call.args
    mode = others[0] if others else call.kwargs.get("mode", "constant")
    if mode != "constant" or len(pad) % 2 or len(pad) > 2 * x.ndim or min(pad, default=-1) < 0:
        return None
    sizes = list(x.shape)
    for position in range(len(pad) // 2):
        sizes[-1 - position] += pad[2 * position] + pad[2 * position + 1]
    return contiguous(sizes, x.dtype)


def attention(call: Call) -> New | None:
    """`(query, key, value, mask, dropout, ...)`: heads are the same, or groups of queries share one.

    A fused kernel lays its result out like the query. Where there is none, scores are held for a while: the
    parts of the op tell how many.
    """
    query, key, value = call.args[:3]
    options = {**dict(zip(("attn_mask",), call.args[3:], strict=False)), **call.kwargs}
    mask = options.get("attn_mask")
    if not _attends(query, key, value, options.get("enable_gqa")) or not is_fused(query, key, value, mask):
        return None
    if mask is not None and not broadcasts(mask.shape, (*query.shape[:-1], key.shape[-2])):
        return None
    return like_all([query], query.shape, query.dtype)


def _attends(query: Tensor, key: Tensor, value: Tensor, shares_heads: object) -> bool:
    """Tell whether these can be the operands of an attention, without broadcasting."""
    if not (query.ndim == key.ndim == value.ndim >= 3 and query.dtype is key.dtype is value.dtype):
        return False
    if key.shape[:-1] != value.shape[:-1] or key.shape[-1] != query.shape[-1]:
        return False
    around, others = query.shape[:-2], key.shape[:-2]
    in_groups = (
        bool(shares_heads) and len(around) == 2 and around[0] == others[0] and not around[1] % others[1]
    )
    return around == others or in_groups


# Recurrent layers -------------------------------------------------------------------------------------------


def recurrent(call: Call) -> Several | None:
    """`(x, state, weights, has_biases, layers, dropout, train, bidirectional, batch_first)`."""
    x, state, weights, *_, bidirectional, batch_first = call.args
    states = state if isinstance(state, (list, tuple)) else [state]
    if call.kwargs or x.ndim != 3 or not all(isinstance(each, Tensor) and each.ndim == 3 for each in states):
        return None
    batch, length = x.shape[:2] if batch_first else (x.shape[1], x.shape[0])
    directions = 2 if bidirectional else 1
    if weights[0].shape[1] != x.shape[2] or any(each.shape[1] != batch for each in states):
        return None
    features = directions * states[0].shape[2]
    output = contiguous((length, batch, features), x.dtype)
    output = transposed(output, 0, 1) if batch_first else output
    return Several(tuple, (output, *(contiguous(each.shape, x.dtype) for each in states)))
