"""The ops of torchvision, by name: they need not be loaded. Boxes are data; what they cover is not asked."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor

from pytest_flops.formulas.contraction import dots, sums
from pytest_flops.formulas.ordering import log2_ceil
from pytest_flops.formulas.registry import Formula, register_flop_formula
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


def bilinear_backward(samples_at: int) -> Formula:
    """Return the gradient of `roi_align`, whose argument `samples_at` is the number of samples."""

    def formula(grad: Tensor, *args: Any, **__: Any) -> int:
        """Count a product and an addition for 4 neighbours of each sample."""
        samples: int = args[samples_at - 1]
        r = samples if samples > 0 else 2
        return 8 * r * r * grad.numel()

    return formula


register_flop_formula("torchvision::_roi_align_backward")(bilinear_backward(9))
register_flop_formula("torchvision::_ps_roi_align_backward")(bilinear_backward(6))


@register_flop_formula("torchvision::_roi_pool_backward")
def roi_pool_backward(grad: Tensor, *_: Any, **__: Any) -> int:
    """Count one addition per gradient: to the element that was the largest."""
    return grad.numel()


@register_flop_formula("torchvision::_ps_roi_pool_backward")
def ps_roi_pool_backward(
    grad: Tensor, rois: Tensor, mapping: Tensor, scale: float, h: int, w: int, *sizes: Any, **__: Any
) -> int:
    """Count a quotient per gradient, and an addition to every element that its mean was of: as in `roi_pool`
    those of the whole feature map for each region."""
    _batch, *feature_map = sizes
    covered: int = rois.shape[0] * prod(feature_map)
    return grad.numel() + covered


@register_flop_formula("torchvision::deform_conv2d")
def deform_conv2d(
    x: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *args: Any, out: Tensor, **__: Any
) -> Cost:
    """Count the convolution with its bias, and a bilinear value (7) for each of Cin·ΠK taps, masked (1)."""
    use_mask: bool = args[-1]
    columns = _columns(x, weight, out)
    return dots(out.numel(), prod(weight.shape[1:])) + out.numel() + (7 + use_mask) * columns


@register_flop_formula("torchvision::_deform_conv2d_backward")
def deform_conv2d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *args: Any, **__: Any
) -> Cost:
    """Count five gradients, from the bilinear values of the forward pass.

    The products of the convolution, for the values and for the weight; the sum for the bias. For each tap
    then, masked (1): for the input a product and an addition at 4 neighbours; for the offset in both
    directions the slope between neighbours (2 differences, 2 products, 1 addition) times the gradient, added
    up; for the mask the value times the gradient, added up.
    """
    use_mask: bool = args[-1]
    columns, macs = _columns(x, weight, grad), grad.numel() * prod(weight.shape[1:])
    products = sums(macs, columns) + sums(macs, weight.numel()) + max(grad.numel() - weight.shape[0], 0)
    to_offset = 2 * columns * (5 + 1) + max(2 * columns - offset.numel(), 0)
    to_mask = use_mask * (columns + columns + max(columns - mask.numel(), 0))
    return products + 8 * columns + to_offset + to_mask


def _columns(x: Tensor, weight: Tensor, out: Tensor) -> int:
    """Return the number of values that the kernel meets: Cin·ΠK for each position of the result."""
    return x.shape[0] * x.shape[1] * prod(weight.shape[2:]) * prod(out.shape[2:])
