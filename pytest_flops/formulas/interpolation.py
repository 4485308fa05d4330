"""Resampling. An output element is a weighted sum of t input elements, 2t−1; the nearest one is a lookup.

Coordinates and weights are not counted: they are the same for all channels, and for all images of a batch.
"""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor

from pytest_flops.formulas.registry import Formula, no_flops, register_flop_formula


def weighted_sum(taps: int) -> Formula:
    """Return the formula of an interpolation that weighs `taps` input elements per output element."""
    return lambda *_, out, **__: (2 * taps - 1) * out.numel()


def spread(taps: int) -> Formula:
    """Return its gradient: each goes to `taps` elements, weighted and added. One tap needs no weight."""
    return lambda grad, *_, **__: (2 * taps if taps > 1 else 1) * grad.numel()


TAPS = {
    "upsample_linear1d": 2,
    "upsample_bilinear2d": 4,
    "upsample_trilinear3d": 8,
    "upsample_bicubic2d": 16,
}
for _name, _taps in TAPS.items():
    register_flop_formula(f"aten::{_name}")(weighted_sum(_taps))
    register_flop_formula(f"aten::{_name}_backward")(spread(_taps))
for _name in [f"{kind}{d}d" for kind in ("upsample_nearest", "_upsample_nearest_exact") for d in (1, 2, 3)]:
    register_flop_formula(f"aten::{_name}")(no_flops)
    register_flop_formula(f"aten::{_name}_backward")(spread(1))


def antialiased(support: int) -> Formula:
    """Return the formula of an antialiased filter that reaches `support` source pixels to either side.

    Shrinking widens it by the factor; columns are filtered before rows.
    """

    def formula(x: Tensor, *_: Any, out: Tensor, **__: Any) -> int:
        *_batch, H, W = x.shape
        h, w = out.shape[-2:]
        rows, columns = _taps_of(support, H, h), _taps_of(support, W, w)
        images = prod(out.shape[:-2])
        return images * ((2 * columns - 1) * H * w + (2 * rows - 1) * h * w)

    return formula


def _taps_of(support: int, source: int, target: int) -> int:
    return -(-2 * support * max(source, target) // target)


for _kind, _support in {"bilinear": 1, "bicubic": 2, "lanczos": 3}.items():
    register_flop_formula(f"aten::_upsample_{_kind}2d_aa")(antialiased(_support))


@register_flop_formula(["aten::_upsample_bilinear2d_aa_backward", "aten::_upsample_bicubic2d_aa_backward"])
@register_flop_formula("aten::_upsample_lanczos2d_aa_backward")
def antialiased_backward(grad: Tensor, *_: Any, out: Tensor, **__: Any) -> int:
    """Count a product and an addition for 4 taps in each direction, at least, per gradient."""
    return 2 * 8 * grad.numel()


GRID_TAPS = {0: 2, 2: 4}  # per dimension: linear and cubic; 1 is the nearest, a lookup


@register_flop_formula(["aten::grid_sampler", "aten::grid_sampler_2d", "aten::grid_sampler_3d"])
@register_flop_formula(["aten::_grid_sampler_2d_cpu_fallback", "aten::cudnn_grid_sampler"])
def grid_sampler(x: Tensor, grid: Tensor, mode: int = 0, *_: Any, out: Tensor, **__: Any) -> int:
    """Count the weighted sum of the neighbours: 2 or 4 per dimension, by mode."""
    taps: int = GRID_TAPS.get(mode, 1) ** (x.ndim - 2)
    return (2 * taps - 1 if taps > 1 else 0) * out.numel()


@register_flop_formula("aten::_grid_sampler_2d_cpu_fallback_backward")
def grid_sampler_fallback_backward(
    grad: Tensor, x: Tensor, grid: Tensor, mode: int, *_: Any, **__: Any
) -> int:
    """Count `grid_sampler_backward` for the input and the grid."""
    return grid_sampler_backward(grad, x, grid, mode, (True, True))


@register_flop_formula("aten::cudnn_grid_sampler_backward")
def cudnn_grid_sampler_backward(x: Tensor, grid: Tensor, grad: Tensor, *_: Any, **__: Any) -> int:
    """Count `grid_sampler_backward` for the input and the grid, of linear interpolation."""
    return grid_sampler_backward(grad, x, grid, 0, (True, True))


@register_flop_formula(["aten::grid_sampler_2d_backward", "aten::grid_sampler_3d_backward"])
def grid_sampler_backward(grad: Tensor, x: Tensor, grid: Tensor, mode: int = 0, *args: Any, **__: Any) -> int:
    """Count a product and an addition per tap: for the input, and in each dimension for the grid."""
    taps: int = GRID_TAPS.get(mode, 1) ** (x.ndim - 2)
    to_input, to_grid = map(bool, args[-1])
    return 2 * taps * (to_input + (x.ndim - 2) * to_grid) * grad.numel()
