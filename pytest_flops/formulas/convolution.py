"""Convolutions, transposed ones, and their gradients.

Weights are (Cout, Cin/groups, *K), transposed ones (Cin, Cout/groups, *K): the groups are in the weight's
shape. Padding is counted as work: a product with a padded zero like any other, and of a transposed
convolution also the products that land in the cropped margin.

A complex product counts as four real ones, though PyTorch makes three real convolutions of a complex one.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd, prod
from typing import Any

from torch import Tensor

from pytest_flops.formulas.contraction import dots, sums
from pytest_flops.formulas.registry import Formula, real_parts, register_flop_formula
from pytest_flops.metrics import Cost

Ints = int | Sequence[int]


def convolution_cost(weight: Tensor, out: Tensor) -> Cost:
    """Return the cost of one dot product of length Cin/groups·ΠK per output element."""
    return dots(out.numel(), prod(weight.shape[1:]), parts=real_parts(weight))


def transposed_cost(x: Tensor, weight: Tensor, stride: Ints, dilation: Ints, groups: int) -> Cost:
    """Return the cost of a transposed convolution: each input element is spread over Cout/groups·ΠK products.

    An output element that gathers p products takes p−1 additions: in all, the products less the elements
    that get any.
    """
    spatial = weight.ndim - 2
    K = weight.shape[2:]
    L = x.shape[-spatial:]
    N = prod(x.shape[: -spatial - 1])
    parts = real_parts(x)
    products = x.numel() * prod(weight.shape[1:]) * parts * parts
    touched = (
        N
        * weight.shape[1]
        * groups
        * prod(map(_touched, L, K, per_dim(stride, spatial), per_dim(dilation, spatial)))
    )
    return Cost(2 * products - touched * parts, products)


def _touched(L: int, K: int, stride: int, dilation: int) -> int:
    """Return how many distinct positions i·stride + j·dilation there are, for i < L and j < K.

    Two pairs (i, j) meet where i grows by dilation/g while j falls by stride/g: each such step within the
    L×K pairs joins two of them.
    """
    g = gcd(stride, dilation)
    return L * K - max(L - dilation // g, 0) * max(K - stride // g, 0)


def per_dim(value: Ints, dims: int) -> Sequence[int]:
    """Return one number per spatial dimension; an int, or a list of one, stands for all of them."""
    values = [value] if isinstance(value, int) else value
    return list(values) * dims if len(values) == 1 else values


def _with_bias(cost: Cost, bias: Tensor | None, out: Tensor) -> Cost:
    return cost + out.numel() * real_parts(out) if bias is not None else cost


@register_flop_formula(["aten::convolution", "aten::_convolution", "aten::convolution_overrideable"])
def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    transposed: bool,
    output_padding: Ints,
    groups: int,
    *_: Any,
    out: Tensor,
    **__: Any,
) -> Cost:
    """Count 2·(Cin/groups)·ΠK − 1 per output element, and its bias; a transposed one by the same algebra."""
    cost = (
        transposed_cost(x, weight, stride, dilation, groups) if transposed else convolution_cost(weight, out)
    )
    return _with_bias(cost, bias, out)


@register_flop_formula(
    [
        *(f"aten::conv{d}d" for d in (1, 2, 3)),
        "aten::_convolution_mode",
        "aten::mkldnn_convolution",
        "aten::_mps_convolution",
        "aten::_nnpack_spatial_convolution",
    ]
)
def forward(x: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Any, out: Tensor, **__: Any) -> Cost:
    """Count 2·(Cin/groups)·ΠK − 1 per output element, and its bias."""
    return _with_bias(convolution_cost(weight, out), bias, out)


@register_flop_formula("aten::cudnn_convolution")
def without_bias(x: Tensor, weight: Tensor, *_: Any, out: Tensor, **__: Any) -> Cost:
    """Count as `forward`; the bias is an op of its own."""
    return convolution_cost(weight, out)


@register_flop_formula(["aten::miopen_convolution", "aten::miopen_depthwise_convolution"])
def miopen(x: Tensor, weight: Tensor, bias: Tensor | None, *_: Any, out: Tensor, **__: Any) -> Cost:
    """Count as `forward`."""
    return _with_bias(convolution_cost(weight, out), bias, out)


@register_flop_formula(
    [
        "aten::thnn_conv2d",
        "aten::_slow_conv2d_forward",
        "aten::slow_conv3d",
        "aten::slow_conv3d_forward",
        "aten::slow_conv_dilated2d",
        "aten::slow_conv_dilated3d",
        "aten::_conv_depthwise2d",
        "aten::conv_depthwise3d",
    ]
)
def with_kernel_size(
    x: Tensor, weight: Tensor, kernel_size: Ints, bias: Tensor | None = None, *_: Any, out: Tensor, **__: Any
) -> Cost:
    """Count as `forward`: native kernels, which get the kernel's size as an argument of its own."""
    return _with_bias(convolution_cost(weight, out), bias, out)


@register_flop_formula("aten::conv_tbc")
def conv_tbc(x: Tensor, weight: Tensor, bias: Tensor, *_: Any, out: Tensor, **__: Any) -> Cost:
    """Count 2·K·Cin − 1 per output element, and its bias; the weight is (K, Cin, Cout)."""
    K, Cin, _Cout = weight.shape
    return dots(out.numel(), K * Cin) + out.numel()


def fused(extra: int) -> Formula:
    """Return the formula of `cudnn_convolution_relu` and its kind: `extra` per element behind the bias."""

    def formula(x: Tensor, weight: Tensor, *args: Any, out: Tensor, **__: Any) -> Cost:
        bias = args[2] if extra > 1 else args[0]
        return _with_bias(convolution_cost(weight, out), bias, out) + extra * out.numel()

    return formula


for _name, _extra in {"relu": 1, "add_relu": 2}.items():
    register_flop_formula([f"aten::{lib}_convolution_{_name}" for lib in ("cudnn", "miopen")])(fused(_extra))


@register_flop_formula([f"aten::conv_transpose{d}d" for d in (1, 2, 3)])
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    out: Tensor,
    **__: Any,
) -> Cost:
    """Count every product, and every addition of one to another; and the bias."""
    return _with_bias(transposed_cost(x, weight, stride, dilation, groups), bias, out)


@register_flop_formula(["aten::slow_conv_transpose2d", "aten::slow_conv_transpose3d"])
def slow_conv_transpose(
    x: Tensor,
    weight: Tensor,
    kernel_size: Ints,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    dilation: Ints = 1,
    *,
    out: Tensor,
    **__: Any,
) -> Cost:
    """Count as `conv_transpose`: native kernels, without groups."""
    return conv_transpose(x, weight, bias, stride, padding, output_padding, 1, dilation, out=out)


@register_flop_formula("aten::cudnn_convolution_transpose")
def cudnn_conv_transpose(
    x: Tensor,
    weight: Tensor,
    padding: Ints,
    output_padding: Ints,
    stride: Ints,
    dilation: Ints,
    groups: int,
    *_: Any,
    out: Tensor,
    **__: Any,
) -> Cost:
    """Count as `conv_transpose`; the bias is an op of its own."""
    return transposed_cost(x, weight, stride, dilation, groups)


@register_flop_formula(["aten::convolution_backward", "aten::convolution_backward_overrideable"])
def convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    *settings: Any,
    out: Any,
    **__: Any,
) -> Cost:
    """Count the gradients that the output mask asks for.

    With respect to the input: the transposed convolution of the gradient (for a transposed one, the plain).
    With respect to the weight: each element is a dot product over batch and positions, so that the
    multiply-accumulates are those of the forward pass. With respect to the bias: a sum.
    """
    stride, dilation, transposed, groups, output_mask = _backward_settings(*settings)
    parts = real_parts(x)
    forward_macs = (x if transposed else grad).numel() * prod(weight.shape[1:]) * parts * parts
    cost = Cost(0)
    if output_mask[0]:
        spread = transposed_cost(grad, weight, stride, dilation, groups)
        cost += convolution_cost(weight, x) if transposed else spread
    if output_mask[1]:
        cost += sums(forward_macs, weight.numel() * parts)
    if len(output_mask) > 2 and output_mask[2]:
        cost += max(grad.numel() - grad.shape[1], 0) * parts
    return cost


@register_flop_formula("aten::_slow_conv2d_backward")
def slow_conv2d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, size: Ints, stride: Ints, padding: Ints, *mask: Any, **__: Any
) -> Cost:
    """Count `convolution_backward`, all gradients where no mask says which."""
    asked = mask[0] if mask else (True, True, True)
    return convolution_backward(
        grad, x, weight, None, stride, padding, [1, 1], False, [0, 0], 1, asked, out=None
    )


def _backward_settings(*args: Any) -> tuple[Ints, Ints, bool, int, Sequence[bool]]:
    # `convolution_backward` says bias_sizes first, `convolution_backward_overrideable` has no such argument
    bias_sizes = 0 if isinstance(args[3], bool) else 1
    stride, _padding, dilation, transposed, _output_padding, groups, mask = args[bias_sizes : bias_sizes + 7]
    return stride, dilation, transposed, groups, mask
