"""Quantised ops: counted as the ops on real numbers that they stand for.

Scale and zero point of input and output are part of the number format: quantising and dequantising are
casts, and count as little as any cast; so does packing a weight. An op of its own that chooses scale and zero
point counts what it does.
"""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor

from pytest_flops.formulas.contraction import dots
from pytest_flops.formulas.convolution import transposed_cost
from pytest_flops.formulas.normalization import norm
from pytest_flops.formulas.pointwise import per_element
from pytest_flops.formulas.pooling import maximum
from pytest_flops.formulas.recurrent import POINTWISE
from pytest_flops.formulas.registry import Formula, no_flops, register_flop_formula
from pytest_flops.formulas.softmax import softmax
from pytest_flops.metrics import Cost

CASTS = """
        quantize_per_tensor quantize_per_channel quantize_per_tensor_dynamic dequantize int_repr q_scale
        q_zero_point q_per_channel_scales q_per_channel_zero_points q_per_channel_axis qscheme
        _empty_affine_quantized _empty_per_channel_affine_quantized _make_per_tensor_quantized_tensor
        _make_per_channel_quantized_tensor empty_quantized
    """
register_flop_formula([f"aten::{name}" for name in CASTS.split()])(no_flops)

# As PyTorch exports a quantised model, and by whichever backend it runs
DECOMPOSED_CASTS = """
        quantize_per_tensor dequantize_per_tensor quantize_per_channel dequantize_per_channel
        quantize_per_token dequantize_per_token quantize_per_channel_group dequantize_per_channel_group
        convert_element_type
    """
register_flop_formula([f"quantized_decomposed::{name}" for name in DECOMPOSED_CASTS.split()])(no_flops)

PACKING = """
        conv_prepack conv1d_prepack conv2d_prepack conv3d_prepack conv_transpose1d_prepack
        conv_transpose2d_prepack conv_transpose3d_prepack linear_prepack linear_prepack_fp16
        linear_prepack_legacy linear_prepack_fp16_legacy linear_unpack linear_unpack_fp16
        embedding_bag_prepack embedding_bag_unpack embedding_bag_byte_prepack embedding_bag_byte_unpack
        embedding_bag_4bit_prepack embedding_bag_4bit_unpack embedding_bag_2bit_prepack
        embedding_bag_2bit_unpack make_quantized_cell_params make_quantized_cell_params_dynamic
        make_quantized_cell_params_fp16
    """
register_flop_formula([f"quantized::{name}" for name in PACKING.split()])(no_flops)
register_flop_formula(
    [
        "aten::_convert_weight_to_int4pack",
        "aten::_convert_weight_to_int4pack_for_cpu",
        "aten::_dyn_quant_pack_4bit_weight",
    ]
)(no_flops)


def choose_qparams(extremes: int, per_pair: int) -> Formula:
    """Return the formula of choosing scale and zero point, by `extremes` of all elements for each pair."""

    def formula(x: Tensor, *_: Any, out: Any, **__: Any) -> int:
        scales: Tensor = out[0]
        return extremes * max(x.numel() - scales.numel(), 0) + per_pair * scales.numel()

    return formula


_choose = "quantized_decomposed::choose_qparams"
# Both extremes against 0, 2; their difference, over the range, at least ε, 3; the least over the scale,
# rounded, from the first number, within two borders, 5
register_flop_formula(f"{_choose}.tensor")(choose_qparams(2, 10))
# Both extremes against 0, 2; the larger of them, one negated, 2; over half the range, at least ε, 2
register_flop_formula(f"{_choose}_symmetric.tensor")(choose_qparams(2, 6))
# Both extremes against 0, 2; their difference, over the range, at least ε, 3; both over the scale, 2; errors
# from either end of the range, and whether their sum is above 0, 4; two candidates, two borders, rounded, 5
register_flop_formula(f"{_choose}_per_token_asymmetric")(choose_qparams(2, 16))


@register_flop_formula(f"{_choose}_per_token")
def choose_qparams_per_token(x: Tensor, *_: Any, out: Any, **__: Any) -> int:
    """Count absolute values and the largest of each row, which is at least ε, over the range."""
    scales: Tensor = out[0]
    return 2 * x.numel() + scales.numel()


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


def cell(kind: str) -> Formula:
    """Return the formula of a recurrent cell: linear maps by two packed weights, and its pointwise work."""

    def formula(x: Tensor, hx: Any, w_ih: Any, w_hh: Any, *_: Any, **__: Any) -> Cost:
        state: Tensor = hx[0] if isinstance(hx, (list, tuple)) else hx
        rows, H = x.shape[0], state.shape[-1]
        (ih, b_ih), (hh, b_hh) = w_ih.unpack(), w_hh.unpack()
        gates = dots(rows * ih.shape[0], x.shape[-1]) + dots(rows * hh.shape[0], H)
        biases: int = rows * ih.shape[0] * ((b_ih is not None) + (b_hh is not None))
        return gates + biases + POINTWISE[kind] * rows * H

    return formula


for _kind in POINTWISE:
    register_flop_formula(f"quantized::quantized_{_kind}_cell_dynamic")(cell(_kind))


def embedding_bag(
    weight: Any,
    indices: Tensor,
    offsets: Any = None,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    pruned: bool = False,
    per_sample_weights: Any = None,
    *_: Any,
    out: Tensor,
    **__: Any,
) -> int:
    """Count n−1 additions per bag and feature, and n products with sample weights."""
    bags, d = out.shape
    n = indices.numel()
    return max(n - bags, 0) * d + (n * d if per_sample_weights is not None else 0)


EMBEDDING_BAGS = "byte 4bit byte_rowwise_offsets 4bit_rowwise_offsets 2bit_rowwise_offsets"
register_flop_formula([f"quantized::embedding_bag_{name}" for name in EMBEDDING_BAGS.split()])(embedding_bag)
register_flop_formula(["quantized::embedding_byte", "quantized::embedding_4bit"])(no_flops)  # a lookup

register_flop_formula("quantized::softmax")(softmax)
register_flop_formula("quantized::max_pool1d")(maximum(1))
register_flop_formula("quantized::max_pool2d")(maximum(2))


def dequantised_linear(activation: int) -> Formula:
    """Return the formula of `linear` on real numbers by a packed weight, which quantises its input itself."""
    count = linear(activation)
    return lambda x, scale, zero_point, packed, *_, out, **__: count(x, packed, out=out)


_dequantised = "quantized::linear_with_input_q_dq_qweight_dq"
register_flop_formula(f"{_dequantised}_output_fp32")(dequantised_linear(0))
register_flop_formula(f"{_dequantised}_relu_output_fp32")(dequantised_linear(1))

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
    0: "cat cat_out dropout",
    1: """
        add add_out add_scalar add_scalar_out mul mul_out mul_scalar mul_scalar_out celu elu sigmoid
        threshold cat_relu cat_relu_out
    """,
    2: """
        add_relu add_relu_out add_scalar_relu add_scalar_relu_out mul_relu mul_relu_out mul_scalar_relu
        mul_scalar_relu_out clamp relu6
    """,
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
        _fused_moving_avg_obs_fq_helper_functional
    """
# Scale, round, shift, two borders, shift back, scale back: here the model computes what a cast would do
register_flop_formula([f"aten::{name}" for name in FAKE.split()])(per_element(7))


@register_flop_formula("quantized_decomposed::fake_quant_per_channel")
def fake_quant_per_channel(x: Tensor, scales: Tensor, *_: Any, **__: Any) -> int:
    """Count the same 7; 3 for whether the borders held, which its gradient asks; 2 to turn a scale over."""
    return 10 * x.numel() + 2 * scales.numel()
