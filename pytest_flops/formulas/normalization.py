"""Normalisation layers: (x − mean)·rstd, 2 per element, and 1 each for a scale and a shift.

Statistics are not counted, neither those of the batch nor the update of the running ones: that is the
seed's convention, and it makes train and eval mode equal.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pytest_flops.formulas.registry import Formula, no_flops, register_flop_formula


def norm(weight_at: int) -> Formula:
    """Return the formula of a normalisation whose weight and bias are arguments `weight_at` and the next."""

    def formula(x: Tensor, *args: Any, out: Any = None, **__: Any) -> int:
        affine = [arg for arg in args[weight_at - 1 : weight_at + 1] if arg is not None]
        return (2 + len(affine)) * x.numel()

    return formula


batch_norm = norm(1)
register_flop_formula(
    [
        "aten::batch_norm",
        "aten::instance_norm",
        "aten::_batch_norm_impl_index",
        "aten::native_batch_norm",
        "aten::_native_batch_norm_legit",
        "aten::_native_batch_norm_legit_functional",
        "aten::_native_batch_norm_legit_no_training",
        "aten::_batch_norm_with_update",
        "aten::_batch_norm_with_update_functional",
        "aten::_batch_norm_no_update",
        "aten::cudnn_batch_norm",
        "aten::miopen_batch_norm",
        "aten::batch_norm_elemt",
        "aten::quantized_batch_norm",
        "aten::native_group_norm",
    ]
)(batch_norm)
register_flop_formula(["aten::layer_norm", "aten::native_layer_norm", "aten::group_norm"])(norm(2))

register_flop_formula(
    [
        "aten::batch_norm_stats",
        "aten::batch_norm_update_stats",
        "aten::batch_norm_gather_stats",
        "aten::batch_norm_gather_stats_with_counts",
    ]
)(no_flops)


@register_flop_formula("aten::_fused_rms_norm")
def fused_rms_norm(
    x: Tensor, normalized_shape: Any, weight: Tensor | None = None, *_: Any, out: Any, **__: Any
) -> int:
    """Count what `rms_norm` decomposes to where there is no fused kernel: statistics included.

    Square, mean and scale each element, add eps and take the reciprocal root per row; and the weight.
    """
    rows: int = out[1].numel()
    return (3 + (weight is not None)) * x.numel() + 2 * rows


def norm_backward(weight_at: int, mask_at: int) -> Formula:
    """Return the gradient of a normalisation: standardise x again (2 per element), then for the input
    two sums and their use, dx = rstd·(g − mean(g) − x̂·mean(g·x̂)), 7 per element, one more with a weight;
    for the weight Σ g·x̂, 2 per element; for the bias Σ g, 1 per element."""

    def formula(grad: Tensor, x: Tensor, *args: Any, out: Any = None, **__: Any) -> int:
        affine = args[weight_at - 2] is not None
        to_input, to_weight, to_bias = args[mask_at - 2]
        per_element: int = 2 * (to_input or to_weight) + (7 + affine) * to_input + 2 * to_weight + to_bias
        return per_element * x.numel()

    return formula


register_flop_formula("aten::native_batch_norm_backward")(norm_backward(2, 9))
register_flop_formula("aten::native_layer_norm_backward")(norm_backward(5, 7))
register_flop_formula("aten::native_group_norm_backward")(norm_backward(4, 9))


@register_flop_formula(["aten::cudnn_batch_norm_backward", "aten::miopen_batch_norm_backward"])
def vendor_batch_norm_backward(x: Tensor, grad: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    """Count as `native_batch_norm_backward`, all three gradients."""
    return 13 * x.numel()


register_flop_formula("aten::batch_norm_backward")(norm_backward(2, 9))


@register_flop_formula("aten::batch_norm_backward_reduce")
def batch_norm_backward_reduce(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Any, *asked: bool, **__: Any
) -> int:
    """Count what the devices that share a batch do apart: x̂, 2 per element; Σ g·x̂, 2; Σ g, 1."""
    return 5 * x.numel()


@register_flop_formula("aten::batch_norm_backward_elemt")
def batch_norm_backward_elemt(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Any, *_: Any, **__: Any
) -> int:
    """Count dx = rstd·(g − mean(g) − x̂·mean(g·x̂)) from sums that are there: 2 for x̂, 4, and the weight."""
    return (6 + (weight is not None)) * x.numel()


@register_flop_formula("aten::_fused_rms_norm_backward")
def fused_rms_norm_backward(
    grad: Tensor, x: Tensor, shape: Any, rstd: Tensor, weight: Any, mask: Any, *_: Any, **__: Any
) -> int:
    """Count x̂ (1 per element), dx = rstd·(g·w − x̂·mean(g·w·x̂)), 5 and the weight, and Σ g·x̂, 2."""
    to_input, to_weight = mask
    per_element: int = 1 + (5 + (weight is not None)) * to_input + 2 * to_weight
    return per_element * x.numel()


@register_flop_formula("aten::_weight_norm_interface")
def weight_norm(v: Tensor, g: Tensor, *_: Any, **__: Any) -> int:
    """Count v·(g/‖v‖): the norms, 2 per element, a division per norm, and a product per element."""
    return 3 * v.numel() + g.numel()


@register_flop_formula("aten::_weight_norm_interface_backward")
def weight_norm_backward(grad: Tensor, v: Tensor, g: Tensor, *_: Any, **__: Any) -> int:
    """Count Σ g·v, 2 per element, and dv = (g/‖v‖)·(dw − v·Σ/‖v‖²), 3 per element; 4 per norm."""
    return 5 * v.numel() + 4 * g.numel()
