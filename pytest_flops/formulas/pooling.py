"""Pooling. Windows count whole, with what they cover of the padding or of nothing (ceil_mode)."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd, prod
from typing import Any

from torch import Tensor

from pytest_flops.formulas.convolution import Ints, per_dim
from pytest_flops.formulas.registry import Formula, register_flop_formula


def average(spatial: int) -> Formula:
    """Return the formula of average pooling: ΠK per output, for ΠK−1 additions and a division."""

    def formula(x: Tensor, kernel_size: Ints, *_: Any, out: Tensor, **__: Any) -> int:
        return prod(per_dim(kernel_size, spatial)) * out.numel()

    return formula


def maximum(spatial: int) -> Formula:
    """Return the formula of max pooling: ΠK−1 comparisons per output; the indices come with them."""

    def formula(x: Tensor, kernel_size: Ints, *_: Any, out: Any, **__: Any) -> int:
        return (prod(per_dim(kernel_size, spatial)) - 1) * _pooled(out).numel()

    return formula


for _d in (1, 2, 3):
    register_flop_formula(f"aten::avg_pool{_d}d")(average(_d))
    register_flop_formula(
        [f"aten::max_pool{_d}d", f"aten::max_pool{_d}d_with_indices", f"aten::quantized_max_pool{_d}d"]
    )(maximum(_d))
for _d in (2, 3):
    register_flop_formula([f"aten::mkldnn_max_pool{_d}d", f"aten::fractional_max_pool{_d}d"])(maximum(_d))


def covered(x: Tensor, output_size: Ints, spatial: int) -> int:
    """Return the sizes of all windows of an adaptive pooling, added up.

    The o windows over a length L run from ⌊iL/o⌋ to ⌈(i+1)L/o⌉; together they hold L + o − gcd(L, o)
    elements, for neighbours share one wherever their border is not a whole number.
    """
    lengths, windows = x.shape[-spatial:], per_dim(output_size, spatial)
    return prod(x.shape[:-spatial]) * prod(map(lambda L, o: L + o - gcd(L, o), lengths, windows))


def adaptive_average(spatial: int) -> Formula:
    """Return the formula of adaptive average pooling: as many as the window has elements, per output."""

    def formula(x: Tensor, *_: Any, out: Tensor, **__: Any) -> int:
        return covered(x, out.shape[-spatial:], spatial)

    return formula


def adaptive_maximum(spatial: int) -> Formula:
    """Return the formula of adaptive max pooling: one less than the window has elements, per output."""

    def formula(x: Tensor, *_: Any, out: Any, **__: Any) -> int:
        pooled = _pooled(out)
        return covered(x, pooled.shape[-spatial:], spatial) - pooled.numel()

    return formula


for _d in (1, 2, 3):
    register_flop_formula(f"aten::adaptive_avg_pool{_d}d")(adaptive_average(_d))
    register_flop_formula(f"aten::adaptive_max_pool{_d}d")(adaptive_maximum(_d))
for _d in (2, 3):
    register_flop_formula(f"aten::_adaptive_avg_pool{_d}d")(adaptive_average(_d))
register_flop_formula("aten::mkldnn_adaptive_avg_pool2d")(adaptive_average(2))


def _pooled(out: Any) -> Tensor:
    pooled: Tensor = out[0] if isinstance(out, (list, tuple)) else out
    return pooled


@register_flop_formula([f"aten::max_pool{d}d_with_indices_backward" for d in (2, 3)])
@register_flop_formula([f"aten::adaptive_max_pool{d}d_backward" for d in (2, 3)])
@register_flop_formula([f"aten::fractional_max_pool{d}d_backward" for d in (2, 3)])
@register_flop_formula(
    ["aten::max_pool2d_backward"] + [f"aten::mkldnn_max_pool{d}d_backward" for d in (2, 3)]
)
def max_backward(grad: Tensor, *_: Any, **__: Any) -> int:
    """Count one addition per gradient: it goes to the element that won."""
    return grad.numel()


@register_flop_formula([f"aten::avg_pool{d}d_backward" for d in (2, 3)])
def average_backward(grad: Tensor, x: Tensor, kernel_size: Sequence[int], *_: Any, **__: Any) -> int:
    """Count a division per gradient and ΠK additions: it goes to every element of its window."""
    return (1 + prod(per_dim(kernel_size, x.ndim - 2 if x.ndim > 3 else 2))) * grad.numel()


@register_flop_formula([f"aten::_adaptive_avg_pool{d}d_backward" for d in (2, 3)])
@register_flop_formula(["aten::adaptive_avg_pool3d_backward", "aten::mkldnn_adaptive_avg_pool2d_backward"])
def adaptive_average_backward(grad: Tensor, x: Tensor, *_: Any, **__: Any) -> int:
    """Count a division per gradient, and one addition for every element of its window."""
    spatial = x.ndim - 2
    return grad.numel() + covered(x, grad.shape[-spatial:], spatial)
