"""Quantised ops: counted as the ops on real numbers that they stand for.

Scale and zero point of input and output are part of the number format: quantising and dequantising are
casts, and count as little as any cast.
"""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor

from pytest_flops.formulas.contraction import dots
from pytest_flops.formulas.convolution import transposed_cost
from pytest_flops.formulas.normalization import norm
from pytest_flops.formulas.pointwise import per_element
from pytest_flops.formulas.registry import Formula, no_flops, register_flop_formula
from pytest_flops.metrics import Cost

CASTS = """
        quantize_per_tensor quantize_per_channel quantize_per_tensor_dynamic dequantize int_repr q_scale
        q_zero_point q_per_channel_scales q_per_channel_zero_points q_per_channel_axis qscheme
        _empty_affine_quantized _empty_per_channel_affine_quantized _make_per_tensor_quantized_tensor
        _make_per_channel_quantized_tensor empty_quantized
    """
register_flop_formula([f"aten::{name}" for name in CASTS.split()])(no_flops)


def linear(activation: int = 0) -> Formula:
    """Return the formula of a linear map by a packed weight, and `activation` per output element."""

    def formula(x: Tensor, packed: Any, *_: Any, out: Tensor, **__: Any) -> Cost:
        _weight, bias = packed.unpack()
        return dots(out.numel(), x.shape[-1]) + out.numel() * (activation + (bias is not None))

    return formula


def convolution(activation: int = 0) -> Formula:
    """Return the formula of a convolution by a packed weight, and `activation` per output element."""

    def formula(x: Tensor, *args: Any, out: Tensor, **__: Any) -> Cost:
        weight, bias = next(arg for arg in args if hasattr(arg, "unpack")).unpack()
        return dots(out.numel(), prod(weight.shape[1:])) + out.numel() * (activation + (bias is not None))

    return formula


def conv_transpose(x: Tensor, packed: Any, *_: Any, out: Tensor, **__: Any) -> Cost:
    """Count a transposed convolution by a packed weight."""
    weight, bias = packed.unpack()
    cost = transposed_cost(x, weight, packed.stride(), packed.dilation(), packed.groups())
    return cost + (out.numel() if bias is not None else 0)


LINEAR = {
    0: "linear linear_dynamic linear_dynamic_fp16",
    1: "linear_relu linear_relu_dynamic linear_relu_dynamic_fp16 linear_tanh",
    4: "linear_leaky_relu",
}
for _activation, _names in LINEAR.items():
    register_flop_formula([f"quantized::{name}" for name in _names.split()])(linear(_activation))

for _d in (1, 2, 3):
    register_flop_formula([f"quantized::conv{_d}d", f"quantized::conv{_d}d_dynamic"])(convolution())
    register_flop_formula(f"quantized::conv{_d}d_relu")(convolution(1))
    register_flop_formula([f"quantized::conv_transpose{_d}d", f"quantized::conv_transpose{_d}d_dynamic"])(
        conv_transpose
    )
register_flop_formula("quantized::conv2d_add")(convolution(1))
register_flop_formula("quantized::conv2d_add_relu")(convolution(2))

PER_ELEMENT = {
    0: "cat dropout",
    1: """
        add add_out add_scalar add_scalar_out mul mul_out mul_scalar mul_scalar_out celu elu sigmoid
        threshold cat_relu
    """,
    2: "add_relu add_relu_out add_scalar_relu mul_relu mul_relu_out mul_scalar_relu clamp relu6",
    4: "leaky_relu prelu",
    5: "hardswish",
}
for _flops, _names in PER_ELEMENT.items():
    register_flop_formula([f"quantized::{name}" for name in _names.split()])(per_element(_flops))

register_flop_formula([f"quantized::batch_norm{kind}" for kind in ("", "1d", "2d", "3d")])(norm(1))
register_flop_formula("quantized::instance_norm")(norm(1))
register_flop_formula(["quantized::layer_norm", "quantized::group_norm"])(norm(2))


@register_flop_formula(
    [f"quantized::batch_norm{kind}" for kind in ("_relu", "1d_relu", "2d_relu", "3d_relu")]
)
def batch_norm_relu(x: Tensor, *args: Any, out: Tensor, **__: Any) -> Cost:
    """Count `batch_norm` and a comparison."""
    return Cost(out.numel()) + norm(1)(x, *args)


@register_flop_formula("quantized::matmul")
def matmul(a: Tensor, b: Tensor, *_: Any, out: Tensor, **__: Any) -> Cost:
    """Count one dot product per output element."""
    return dots(out.numel(), a.shape[-1])


FAKE = """
        fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask
        _fake_quantize_per_tensor_affine_cachemask_tensor_qparams _fake_quantize_learnable_per_tensor_affine
        _fake_quantize_learnable_per_channel_affine _fused_moving_avg_obs_fq_helper
    """
# Scale, round, shift, two borders, shift back, scale back: here the model computes what a cast would do
register_flop_formula([f"aten::{name}" for name in FAKE.split()])(per_element(7))
