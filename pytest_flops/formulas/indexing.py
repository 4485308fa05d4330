"""Lookups that add: scatter with reduction, index_add, embedding bags, and the gradients of plain lookups.

A value that is written over another is no arithmetic; one that is added to it is one operation.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pytest_flops.formulas.registry import real_parts, register_flop_formula


@register_flop_formula(["aten::scatter_add", "aten::scatter.reduce", "aten::scatter.value_reduce"])
def scatter_add(x: Tensor, dim: int, index: Tensor, *_: Any, **__: Any) -> int:
    """Count one per index."""
    return index.numel() * real_parts(x)


@register_flop_formula("aten::scatter_reduce")
def scatter_reduce(x: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, **__: Any) -> int:
    """Count one per index; a mean is divided by the number of terms, which is counted first."""
    return index.numel() + (index.numel() + x.numel() if reduce == "mean" else 0)


@register_flop_formula("aten::index_add")
def index_add(
    x: Tensor, dim: int, index: Tensor, source: Tensor, *_: Any, alpha: complex = 1, **__: Any
) -> int:
    """Count one addition per source element, and its scale."""
    return (1 + (alpha != 1)) * source.numel() * real_parts(x)


@register_flop_formula("aten::index_reduce")
def index_reduce(x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, **__: Any) -> int:
    """Count one per source element; a mean is divided by the number of terms, which is counted first."""
    return source.numel() + (index.numel() + x.numel() if reduce == "mean" else 0)


@register_flop_formula(["aten::index_put", "aten::_unsafe_index_put", "aten::_index_put_impl"])
def index_put(x: Tensor, indices: Any, values: Tensor, accumulate: bool = False, *_: Any, **__: Any) -> int:
    """Count one addition per value given, where values accumulate."""
    return accumulate * values.numel() * real_parts(x)


@register_flop_formula("aten::put")
def put(x: Tensor, index: Tensor, source: Tensor, accumulate: bool = False, *_: Any, **__: Any) -> int:
    """Count one addition per value, where values accumulate."""
    return accumulate * source.numel() * real_parts(x)


@register_flop_formula("aten::_unsafe_masked_index_put_accumulate")
def masked_index_put(x: Tensor, mask: Tensor, indices: Any, values: Tensor, **__: Any) -> int:
    """Count one addition per value."""
    return values.numel()


@register_flop_formula(["aten::col2im", "aten::unfold_backward"])
def fold(x: Tensor, *_: Any, **__: Any) -> int:
    """Count one addition per element of every window."""
    return x.numel() * real_parts(x)


@register_flop_formula([f"aten::replication_pad{d}d_backward" for d in (1, 2, 3)])
@register_flop_formula([f"aten::reflection_pad{d}d_backward" for d in (1, 2, 3)])
def pad_backward(grad: Tensor, x: Tensor, *_: Any, **__: Any) -> int:
    """Count one addition per gradient that falls together with another: all that padding repeats."""
    return max(grad.numel() - x.numel(), 0) * real_parts(grad)


@register_flop_formula("aten::_segment_reduce_backward")
def segment_reduce_backward(grad: Tensor, y: Tensor, x: Tensor, reduce: str, *_: Any, **__: Any) -> int:
    """Count nothing per element for a sum; a quotient for a mean; for an extreme whether it is the one, and
    the quotient among equals; for a product, g·y/x."""
    per_element = {"sum": 0, "mean": 1, "max": 2, "min": 2, "prod": 2}
    return per_element[reduce] * x.numel()


@register_flop_formula("aten::segment_reduce")
def segment_reduce(x: Tensor, reduce: str, *_: Any, out: Tensor, **__: Any) -> int:
    """Count one per element; a mean is divided once per segment."""
    return x.numel() + (out.numel() if reduce == "mean" else 0)


@register_flop_formula(["aten::embedding_bag", "aten::_embedding_bag", "aten::_embedding_bag_forward_only"])
def embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    *_: Any,
    out: Any,
    **__: Any,
) -> int:
    """Count n−1 additions (or comparisons) per bag and feature, n products with sample weights, and the
    division of a mean. Which bags are empty is data, and not asked."""
    bags, d = out[0].shape
    n = indices.numel()
    combine: int = max(n - bags, 0) * d
    return combine + (n * d if per_sample_weights is not None else 0) + (bags * d if mode == 1 else 0)


@register_flop_formula(["aten::embedding_renorm"])
def embedding_renorm(weight: Tensor, indices: Tensor, *_: Any, **__: Any) -> int:
    """Count the norm of each row looked up, 2d, its comparison and quotient, and d to scale it."""
    return indices.numel() * (3 * weight.shape[-1] + 2)


@register_flop_formula("aten::embedding_dense_backward")
def embedding_backward(
    grad: Tensor, indices: Tensor, num_weights: int, padding_idx: int, scale_grad_by_freq: bool, **__: Any
) -> int:
    """Count one addition per gradient, and its division by the frequency."""
    return (1 + scale_grad_by_freq) * grad.numel()


@register_flop_formula(["aten::_embedding_bag_dense_backward", "aten::_embedding_bag_backward"])
def embedding_bag_backward(grad: Tensor, indices: Tensor, *_: Any, **__: Any) -> int:
    """Count a scale and an addition per index and feature."""
    return 2 * indices.numel() * grad.shape[-1]


@register_flop_formula("aten::_embedding_bag_per_sample_weights_backward")
def sample_weights_backward(grad: Tensor, weight: Tensor, indices: Tensor, *_: Any, **__: Any) -> int:
    """Count a dot product of gradient and row per index."""
    return indices.numel() * max(2 * grad.shape[-1] - 1, 0)
