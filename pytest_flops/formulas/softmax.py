"""Softmax and its kin. The subtraction of the maximum, which only guards against overflow, is not counted."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor

from pytest_flops.formulas.registry import register_flop_formula


def rows(x: Tensor, dim: int) -> int:
    """Return how many lines along `dim` there are in `x`: one for a scalar."""
    dim = dim % x.ndim if x.ndim else 0
    return prod(x.shape[:dim]) * prod(x.shape[dim + 1 :])


@register_flop_formula(["aten::softmax", "aten::_softmax", "aten::special_softmax", "aten::_safe_softmax"])
@register_flop_formula(["aten::_sparse_softmax"])
def softmax(x: Tensor, dim: int, *_: Any, **__: Any) -> int:
    """Count 3n−1 per row: n exponentials, n−1 additions, n divisions."""
    return max(3 * x.numel() - rows(x, dim), 0)


@register_flop_formula(["aten::log_softmax", "aten::_log_softmax", "aten::special_log_softmax"])
@register_flop_formula(["aten::_sparse_log_softmax"])
def log_softmax(x: Tensor, dim: int, *_: Any, **__: Any) -> int:
    """Count 3n per row: n exponentials, n−1 additions, one logarithm, n subtractions."""
    return 3 * x.numel()


@register_flop_formula("aten::_nested_tensor_softmax_with_shape")
def nested_softmax(x: Tensor, query: Tensor, *_: Any, **__: Any) -> int:
    """Count `softmax` of scores, padded as they are."""
    return softmax(x, -1)


@register_flop_formula("aten::_masked_softmax")
def masked_softmax(x: Tensor, mask: Tensor, dim: int | None = None, *_: Any, **__: Any) -> int:
    """Count `softmax`; the mask selects."""
    return softmax(x, -1 if dim is None else dim)


@register_flop_formula(["aten::logsumexp", "aten::special_logsumexp"])
def logsumexp(x: Tensor, *_: Any, **__: Any) -> int:
    """Count 2n per row: n exponentials, n−1 additions, one logarithm."""
    return 2 * x.numel()


@register_flop_formula(["aten::_softmax_backward_data", "aten::_masked_softmax_backward"])
@register_flop_formula(["aten::_sparse_softmax_backward_data"])
def softmax_backward(grad: Tensor, y: Tensor, dim: Any, *_: Any, **__: Any) -> int:
    """Count 4n−1 per row for y·(g − Σ g·y): n products, n−1 additions, n subtractions, n products."""
    axis = dim if isinstance(dim, int) else -1  # the masked one has its mask here
    return max(4 * y.numel() - rows(y, axis), 0)


@register_flop_formula(["aten::_log_softmax_backward_data", "aten::_sparse_log_softmax_backward_data"])
def log_softmax_backward(grad: Tensor, y: Tensor, dim: int, *_: Any, **__: Any) -> int:
    """Count 4n−1 per row for g − exp(y)·Σ g: n−1 additions, n exponentials, n products, n subtractions."""
    return max(4 * y.numel() - rows(y, dim), 0)
