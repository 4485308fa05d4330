"""The ops of torchvision, by name: they need not be loaded. Boxes are data; what they cover is not asked."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor

from pytest_flops.formulas.contraction import dots
from pytest_flops.formulas.ordering import log2_ceil
from pytest_flops.formulas.registry import register_flop_formula
from pytest_flops.metrics import Cost


@register_flop_formula(["torchvision::nms", "torchvision::qnms"])
def nms(boxes: Tensor, *_: Any, **__: Any) -> int:
    """Count a sort of n scores, n areas, 3 each, and the overlap of each pair, as if none were suppressed.

    Overlap: 4 comparisons for the corners, 2 differences and 2 clamps for the sides, their product, the union
    (a sum, a difference), the quotient and its comparison: 13.
    """
    n = boxes.shape[0]
    return n * log2_ceil(n) + 3 * n + 13 * (n * (n - 1) // 2)


@register_flop_formula(["torchvision::roi_align", "torchvision::qroi_align"])
def roi_align(
    x: Tensor, rois: Tensor, scale: float, height: int, width: int, samples: int, *_: Any, out: Any, **__: Any
) -> int:
    """Count samples² bilinear values (7 each) and their mean per output; adaptive sampling counts as 2²."""
    pooled: Tensor = out[0] if isinstance(out, (list, tuple)) else out
    r = samples if samples > 0 else 2
    return 8 * r * r * pooled.numel()


register_flop_formula("torchvision::ps_roi_align")(roi_align)


@register_flop_formula(["torchvision::roi_pool", "torchvision::ps_roi_pool"])
def roi_pool(x: Tensor, rois: Tensor, *_: Any, **__: Any) -> int:
    """Count one per element of the whole feature map for each region: the bound that shapes give."""
    return rois.shape[0] * prod(x.shape[1:])


@register_flop_formula("torchvision::_roi_align_backward")
def roi_align_backward(
    grad: Tensor, rois: Tensor, scale: float, height: int, width: int, *args: Any, **__: Any
) -> int:
    """Count a product and an addition for 4 neighbours of each sample."""
    samples = args[4]
    r = samples if samples > 0 else 2
    return 8 * r * r * grad.numel()


@register_flop_formula("torchvision::deform_conv2d")
def deform_conv2d(
    x: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *args: Any, out: Tensor, **__: Any
) -> Cost:
    """Count the convolution with its bias, and a bilinear value (7) for each of Cin·ΠK taps, masked (1)."""
    N, Cin, *_size = x.shape
    taps = N * Cin * prod(weight.shape[2:]) * prod(out.shape[2:])
    use_mask: bool = args[-1]
    return dots(out.numel(), prod(weight.shape[1:])) + out.numel() + (7 + use_mask) * taps
