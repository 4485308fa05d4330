"""Reductions and scans: n−1 operations combine n numbers; and what means, deviations and norms do besides."""

from __future__ import annotations

from math import inf
from typing import Any

from torch import Tensor

from pytest_flops.formulas.registry import one_per_element, real_parts, reduction, register_flop_formula
from pytest_flops.formulas.softmax import rows

# torch tags most of these itself, but only since it has a tag for reductions
REDUCTIONS = """
        sum nansum prod amax amin max min all any argmax argmin median nanmedian kthvalue _is_all_true
        _is_any_true _sparse_sum _sparse_csr_sum _sparse_csr_prod hash_tensor
    """
register_flop_formula([f"aten::{name}" for name in REDUCTIONS.split()])(reduction)
register_flop_formula(["aten::max.other", "aten::min.other", "aten::max.out", "aten::min.out"])(
    one_per_element
)


@register_flop_formula(["aten::aminmax", "aten::_aminmax"])
def aminmax(x: Tensor, *_: Any, out: Any, **__: Any) -> int:
    """Count two reductions."""
    return 2 * reduction(x, out=out)


@register_flop_formula("aten::mean")
def mean(x: Tensor, *_: Any, **__: Any) -> int:
    """Count n per output: n−1 additions and a division."""
    return x.numel() * real_parts(x)


@register_flop_formula("aten::count_nonzero")
def count_nonzero(x: Tensor, *_: Any, out: Tensor, **__: Any) -> int:
    """Count n comparisons and n−1 additions per output."""
    return x.numel() + max(x.numel() - out.numel(), 0)


@register_flop_formula("aten::trace")
def trace(x: Tensor, **__: Any) -> int:
    """Count the additions along the diagonal."""
    return max(min(x.shape) - 1, 0) * real_parts(x)


@register_flop_formula(["aten::var", "aten::var_mean"])
def var(x: Tensor, *_: Any, **__: Any) -> int:
    """Count 4n per output: the mean n, n differences, n squares, their mean n."""
    return 4 * x.numel() * real_parts(x)


@register_flop_formula(["aten::std", "aten::std_mean"])
def std(x: Tensor, *_: Any, out: Any, **__: Any) -> int:
    """Count `var` and a square root per output."""
    deviation: Tensor = out[0] if isinstance(out, (list, tuple)) else out
    return var(x) + deviation.numel()


@register_flop_formula(["aten::linalg_vector_norm", "aten::norm", "aten::native_norm"])
def vector_norm(x: Tensor, p: Any = 2, *_: Any, out: Tensor, **__: Any) -> int:
    """Count 2n per output: n powers, n−1 additions, a root; orders 0, 1 and ±∞ take no root."""
    rootless = p in (0, 1, inf, -inf)
    return max((2 * x.numel() - rootless * out.numel()), 0) * real_parts(x)


@register_flop_formula("aten::renorm")
def renorm(x: Tensor, p: Any, dim: int, maxnorm: Any, *_: Any, **__: Any) -> int:
    """Count the norm of each slice, 2n, a comparison and a division per slice, and n to scale it."""
    return 3 * x.numel() + 2 * x.shape[dim]


@register_flop_formula(["aten::cumsum", "aten::cumprod", "aten::cummax", "aten::cummin"])
def scan(x: Tensor, dim: int, *_: Any, **__: Any) -> int:
    """Count n−1 per row."""
    return max(x.numel() - rows(x, dim), 0) * real_parts(x)


@register_flop_formula(["aten::_cummax_helper", "aten::_cummin_helper"])
def scan_helper(x: Tensor, values: Tensor, indices: Tensor, dim: int, **__: Any) -> int:
    """Count as `scan`."""
    return scan(x, dim)


@register_flop_formula(["aten::logcumsumexp", "aten::_logcumsumexp"])
def logcumsumexp(x: Tensor, dim: int, *_: Any, **__: Any) -> int:
    """Count log(e^a + e^b), 4, for each of n−1 steps per row."""
    return 4 * scan(x, dim)


@register_flop_formula("aten::dist")
def dist(x: Tensor, y: Tensor, *_: Any, **__: Any) -> int:
    """Count 3n: n differences, n powers, n−1 additions and a root."""
    return 3 * max(x.numel(), y.numel())


@register_flop_formula(
    ["aten::cdist", "aten::_cdist_forward", "aten::_euclidean_dist", "aten::_pdist_forward"]
)
def pairwise_distances(x: Tensor, *_: Any, out: Tensor, **__: Any) -> int:
    """Count 3d per pair of points in d dimensions: d differences, d powers, d−1 additions and a root."""
    return 3 * x.shape[-1] * out.numel()


@register_flop_formula(["aten::_cdist_backward"])
def cdist_backward(grad: Tensor, x: Tensor, *_: Any, **__: Any) -> int:
    """Count 5 per coordinate of each pair: difference, power, quotient, product with the gradient, sum."""
    return 5 * x.shape[-1] * grad.numel()


@register_flop_formula(["aten::_pdist_backward"])
def pdist_backward(grad: Tensor, x: Tensor, *_: Any, **__: Any) -> int:
    """Count as `cdist_backward`, for both points of each pair."""
    return 6 * x.shape[-1] * grad.numel()
