"""Matrix products and everything that is one: linear, einsum, bilinear, grouped and quantised products."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from pytest_flops.formulas.registry import DECOMPOSE, real_parts, register_flop_formula
from pytest_flops.metrics import Cost

SPARSE = {torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc}


def dots(n: int, k: int, *, parts: int = 1) -> Cost:
    """Return the cost of `n` dot products of length `k`: k multiplications and k−1 additions each.

    With `parts=2` the numbers are complex: the real and the imaginary part of the result are a real dot
    product of length 2k each, so that one complex multiply-accumulate is four real ones.
    """
    n, k = n * parts, k * parts
    return Cost(max(2 * k - 1, 0) * n, k * n)


def sums(macs: int, results: int) -> Cost:
    """Return the cost of so many products that are added up to so many results, in terms of any number."""
    return Cost(max(2 * macs - results, 0), macs)


def scaled(n: int, alpha: complex, beta: complex, parts: int = 1) -> int:
    """Return the FLOPs of `beta·bias + alpha·product` on `n` elements, the product itself apart.

    The addition counts unless beta is 0, a multiplication by alpha or beta unless that is 1 (beta: or 0).
    """
    multiply = 1 if parts == 1 else 6
    scale_bias = 0 if beta in (0, 1) else multiply
    scale_product = 0 if alpha == 1 else multiply
    return ((parts if beta != 0 else 0) + scale_bias + scale_product) * n


@register_flop_formula(["aten::mm", "aten::_int_mm", "aten::_sparse_sparse_matmul", "aten::hspmm"])
def mm(a: Tensor, b: Tensor, *_: Any, **__: Any) -> Cost:
    """Count (2k−1)·m·n for (m,k)·(k,n); with a sparse operand only what it stores."""
    m, k = a.shape
    _k, n = b.shape
    return sparse_products(a, b) or dots(m * n, k, parts=real_parts(a))


@register_flop_formula(["aten::bmm"])
def bmm(a: Tensor, b: Tensor, *_: Any, **__: Any) -> Cost:
    """Count (2k−1)·m·n for each of B products (m,k)·(k,n)."""
    B, m, k = a.shape
    n = b.shape[2]
    return sparse_products(a, b) or dots(B * m * n, k, parts=real_parts(a))


@register_flop_formula(
    ["aten::matmul", "aten::linalg_matmul", "aten::mv", "aten::dot", "aten::vdot", "aten::inner"]
)
def matmul(a: Tensor, b: Tensor, *_: Any, out: Tensor, **__: Any) -> Cost:
    """Count one dot product over the last dimension of `a` for each output element."""
    if not a.ndim or not b.ndim:
        return Cost(out.numel() * (6 if out.is_complex() else 1))  # `inner` of a scalar scales
    return sparse_products(a, b) or dots(out.numel(), a.shape[-1], parts=real_parts(a))


def sparse_products(a: Tensor, b: Tensor) -> Cost | None:
    """Return the cost of a product with a sparse operand; None where neither is.

    Each stored element of `a` meets a row of `b`, or each of `b` a column of `a`, and what comes is added.
    """
    if a.layout in SPARSE:
        products = stored(a) * (b.shape[-1] if b.ndim > 1 else 1)
    elif b.layout in SPARSE:
        products = stored(b) * prod(a.shape[:-1])
    else:
        return None
    products *= 4 if a.is_complex() else 1
    return Cost(2 * products, products)


def stored(a: Tensor) -> int:
    """Return how many elements a sparse tensor stores."""
    return (a._values() if a.layout is torch.sparse_coo else a.values()).numel()


@register_flop_formula("aten::sparse_sampled_addmm")
def sampled_addmm(
    bias: Tensor, a: Tensor, b: Tensor, *_: Any, beta: complex = 1, alpha: complex = 1, **__: Any
) -> Cost:
    """Count one dot product per element that `bias` stores, and what adds it."""
    n = bias.values().numel()
    return dots(n, a.shape[-1], parts=real_parts(a)) + scaled(n, alpha, beta, real_parts(a))


@register_flop_formula("aten::_sparse_mm_reduce_impl")
def sparse_mm_reduce(a: Tensor, b: Tensor, reduce: str, *_: Any, out: Any, **__: Any) -> Cost:
    """Count a product and its combination (sum, maximum…) per stored element; a mean is divided."""
    result: Tensor = out[0]
    products = stored(a) * b.shape[1]
    return Cost(2 * products, products) + (result.numel() if reduce == "mean" else 0)


@register_flop_formula("aten::linear")
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Any, out: Tensor, **__: Any) -> Cost:
    """Count (2·in−1) per output element, and its bias; with a sparse operand its parts."""
    if x.layout in SPARSE or weight.layout in SPARSE:
        return DECOMPOSE
    n = out.numel()
    return dots(n, weight.shape[-1], parts=real_parts(x)) + (n * real_parts(x) if bias is not None else 0)


@register_flop_formula(["aten::addmm", "aten::_sparse_addmm", "aten::sspaddmm"])
def addmm(
    bias: Tensor, a: Tensor, b: Tensor, *_: Any, beta: complex = 1, alpha: complex = 1, **__: Any
) -> Cost:
    """Count `mm` and what adds the bias."""
    return mm(a, b) + scaled(a.shape[0] * b.shape[1], alpha, beta, real_parts(a))


@register_flop_formula("aten::_addmm_activation")
def addmm_activation(
    bias: Tensor, a: Tensor, b: Tensor, *_: Any, beta: complex = 1, alpha: complex = 1, **__: Any
) -> Cost:
    """Count `addmm` and one per element for the ReLU or GELU behind it."""
    return addmm(bias, a, b, beta=beta, alpha=alpha) + a.shape[0] * b.shape[1]


@register_flop_formula("aten::baddbmm")
def baddbmm(
    bias: Tensor, a: Tensor, b: Tensor, *_: Any, beta: complex = 1, alpha: complex = 1, **__: Any
) -> Cost:
    """Count `bmm` and what adds the bias."""
    return bmm(a, b) + scaled(a.shape[0] * a.shape[1] * b.shape[2], alpha, beta, real_parts(a))


@register_flop_formula("aten::addbmm")
def addbmm(
    bias: Tensor, a: Tensor, b: Tensor, *_: Any, beta: complex = 1, alpha: complex = 1, **__: Any
) -> Cost:
    """Count one dot product of length B·k per output element: the products are summed over the batch."""
    B, m, k = a.shape
    n = b.shape[2]
    return dots(m * n, B * k, parts=real_parts(a)) + scaled(m * n, alpha, beta, real_parts(a))


@register_flop_formula("aten::addmv")
def addmv(
    bias: Tensor, a: Tensor, x: Tensor, *_: Any, beta: complex = 1, alpha: complex = 1, **__: Any
) -> Cost:
    """Count `mv` and what adds the bias."""
    m, k = a.shape
    return dots(m, k, parts=real_parts(a)) + scaled(m, alpha, beta, real_parts(a))


@register_flop_formula("aten::addr")
def addr(
    bias: Tensor, x: Tensor, y: Tensor, *_: Any, beta: complex = 1, alpha: complex = 1, **__: Any
) -> int:
    """Count the outer product, one multiplication per element, and what adds the bias."""
    n = x.shape[0] * y.shape[0]
    parts = real_parts(x)
    return n * (1 if parts == 1 else 6) + scaled(n, alpha, beta, parts)


@register_flop_formula("aten::_foreach_mm")
def foreach_mm(a: Sequence[Tensor], b: Sequence[Tensor], *_: Any, **__: Any) -> Cost:
    """Count every product of the list."""
    return sum(map(mm, a, b), Cost(0))


@register_flop_formula("aten::_scaled_mm")
def scaled_mm(
    a: Tensor, b: Tensor, scale_a: Any, scale_b: Any, bias: Any = None, *_: Any, out: Any, **__: Any
) -> Cost:
    """Count `mm`, one scaling per output element, and the bias."""
    n = a.shape[0] * b.shape[1]
    return mm(a, b) + n * (1 + (bias is not None))


@register_flop_formula("aten::_scaled_mm_v2")
def scaled_mm_v2(a: Tensor, b: Tensor, *args: Any, out: Any, **__: Any) -> Cost:
    """Count as `scaled_mm`."""
    return scaled_mm(a, b, args[0], args[3], args[6], out=out)


@register_flop_formula(["aten::_grouped_mm", "transformers::grouped_mm_fallback"])
def grouped_mm(
    a: Tensor, b: Tensor, offs: Any = None, bias: Any = None, *_: Any, out: Tensor, **__: Any
) -> Cost:
    """Count one dot product per output element, whichever dimension is ragged, for each row has one group.

    With a ragged inner dimension, (m, Σk)·(Σk, n), the G groups share the Σk products of an element of `mm`,
    and add them up to G sums, or to Σk of them where there are more groups than products.
    """
    shift = out.numel() if bias is not None else 0
    if a.ndim == b.ndim == 2:
        (m, k), n = a.shape, b.shape[1]
        return Cost((2 * k - min(out.shape[0], k)) * m * n + shift, m * k * n)
    return dots(out.numel(), a.shape[-1]) + shift


@register_flop_formula("transformers::grouped_mm_fallback_backward")
def grouped_mm_backward(x: Tensor, weight: Tensor, offs: Any, grad: Tensor, *_: Any, **__: Any) -> Cost:
    """Count a product with the weights (for the input) and one with the input (for them), as `grouped_mm`."""
    (S, k), (G, _k, n) = x.shape, weight.shape
    return dots(S * k, n) + Cost((2 * S - min(G, S)) * k * n, S * k * n)


@register_flop_formula("aten::_scaled_grouped_mm")
def scaled_grouped_mm(
    a: Tensor,
    b: Tensor,
    scale_a: Any,
    scale_b: Any,
    offs: Any = None,
    bias: Any = None,
    *_: Any,
    out: Tensor,
    **__: Any,
) -> Cost:
    """Count `grouped_mm`, and one scaling per output element."""
    return grouped_mm(a, b, offs, bias, out=out) + out.numel()


@register_flop_formula("aten::_scaled_grouped_mm_v2")
def scaled_grouped_mm_v2(a: Tensor, b: Tensor, *args: Any, out: Tensor, **__: Any) -> Cost:
    """Count as `scaled_grouped_mm`."""
    _scale_a, _recipe_a, _swizzle_a, _scale_b, _recipe_b, _swizzle_b, *rest = args
    offs, bias, *_ = (*rest, None, None)
    return scaled_grouped_mm(a, b, None, None, offs, bias, out=out)


@register_flop_formula(
    ["aten::_weight_int8pack_mm", "aten::_weight_int4pack_mm", "aten::_weight_int4pack_mm_for_cpu"]
)
@register_flop_formula(["aten::_weight_int4pack_mm_with_scales_and_zeros", "aten::_dyn_quant_matmul_4bit"])
def packed_weight_mm(x: Tensor, *_: Any, out: Tensor, **__: Any) -> Cost:
    """Count (2k−1)·m·n; unpacking the weight is a cast."""
    return dots(out.numel(), x.shape[-1])


@register_flop_formula("aten::_mixed_dtypes_linear")
def mixed_dtypes_linear(x: Tensor, *_: Any, out: Tensor, bias: Any = None, **__: Any) -> Cost:
    """Count `linear`; unpacking the weight is a cast."""
    return dots(out.numel(), x.shape[-1]) + (out.numel() if bias is not None else 0)


@register_flop_formula("aten::_sparse_semi_structured_linear")
def semi_structured_linear(
    x: Tensor, weight: Tensor, *_: Any, out: Tensor, bias: Any = None, **__: Any
) -> Cost:
    """Count the products with the stored half of the weight, (out, in/2), and the bias."""
    return dots(out.numel(), weight.shape[1]) + (out.numel() if bias is not None else 0)


register_flop_formula("aten::mkldnn_linear")(linear)


@register_flop_formula("mkl::_mkl_linear")
def mkl_linear(x: Tensor, packed: Tensor, weight: Tensor, bias: Tensor | None, *_: Any, out: Tensor) -> Cost:
    """Count `linear`."""
    return linear(x, weight, bias, out=out)


@register_flop_formula(["aten::linear_backward", "aten::mkldnn_linear_backward"])
def linear_backward(x: Tensor, grad: Tensor, weight: Tensor, mask: Sequence[bool], **__: Any) -> Cost:
    """Count a product with the weight (for the input), one with the input (for it), a sum for the bias."""
    rows, features = prod(grad.shape[:-1]), weight.shape[0]
    cost = Cost(0)
    if mask[0]:
        cost += dots(x.numel(), features)
    if mask[1]:
        cost += dots(weight.numel(), rows)
    return cost + mask[2] * max(grad.numel() - features, 0)


@register_flop_formula("aten::mkldnn_linear_backward_input")
def linear_backward_input(size: Any, grad: Tensor, weight: Tensor, *_: Any, out: Tensor, **__: Any) -> Cost:
    """Count a product with the weight."""
    return dots(out.numel(), weight.shape[0])


@register_flop_formula("aten::mkldnn_linear_backward_weights")
def linear_backward_weights(grad: Tensor, x: Tensor, weight: Tensor, biased: bool, **__: Any) -> Cost:
    """Count a product with the input, and a sum for the bias."""
    return linear_backward(x, grad, weight, (False, True, biased))


@register_flop_formula("aten::matmul_backward")
def matmul_backward(grad: Tensor, a: Tensor, b: Tensor, mask: Sequence[bool], **__: Any) -> Cost:
    """Count the products of the forward pass for each operand, added up where it broadcasts."""
    macs: int = grad.numel() * a.shape[-1]
    cost = Cost(0)
    for operand, asked in zip((a, b), mask, strict=True):
        cost += sums(macs, operand.numel()) * int(asked)
    return cost


@register_flop_formula("aten::_trilinear")
def trilinear(
    a: Tensor,
    b: Tensor,
    c: Tensor,
    expand_a: Sequence[int],
    expand_b: Sequence[int],
    expand_c: Sequence[int],
    sumdim: Sequence[int],
    *_: Any,
    out: Tensor,
    **__: Any,
) -> Cost:
    """Count Σ a·b·c, 3K−1 per output: two products for each of K terms, and the additions between them."""
    shapes = map(_expanded, (a, b, c), (expand_a, expand_b, expand_c))
    sizes = [max(size) for size in zip(*shapes, strict=True)]
    terms: int = prod(sizes[dim] for dim in sumdim)
    return dots(out.numel(), terms) + terms * out.numel()


def _expanded(x: Tensor, new_dims: Sequence[int]) -> list[int]:
    shape = list(x.shape)
    for dim in sorted(new_dims):
        shape.insert(dim, 1)
    return shape


@register_flop_formula("aten::_compute_linear_combination")
def linear_combination(x: Tensor, coefficients: Tensor, *_: Any, out: Tensor, **__: Any) -> Cost:
    """Count one dot product over the tensors that are combined per output element."""
    return dots(out.numel(), coefficients.shape[1], parts=real_parts(x))


@register_flop_formula(["aten::affine_grid_generator", "aten::cudnn_affine_grid_generator"])
def affine_grid(theta: Tensor, *_: Any, out: Tensor, **__: Any) -> Cost:
    """Count a homogeneous coordinate times a row of θ per output element."""
    return dots(out.numel(), theta.shape[-1])


@register_flop_formula("aten::cudnn_affine_grid_generator_backward")
def affine_grid_backward(
    grad: Tensor, N: int, C: int, H: int, W: int, *_: Any, out: Tensor, **__: Any
) -> Cost:
    """Count a dot product over all positions per element of the gradient of θ."""
    return dots(out.numel(), H * W)
