"""Matrix products and everything that is one: linear, einsum, bilinear, grouped and quantised products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pytest_flops.formulas.registry import Cost, real_parts, register_flop_formula


def dots(n: int, k: int, *, parts: int = 1) -> Cost:
    """Return the cost of `n` dot products of length `k`: k multiplications and k−1 additions each.

    With `parts=2` the numbers are complex: the real and the imaginary part of the result are a real dot
    product of length 2k each, so that one complex multiply-accumulate is four real ones.
    """
    n, k = n * parts, k * parts
    return Cost(max(2 * k - 1, 0) * n, k * n)


def scaled(n: int, alpha: complex, beta: complex, parts: int = 1) -> int:
    """Return the FLOPs of `beta·bias + alpha·product` on `n` elements, the product itself apart.

    The addition counts unless beta is 0, a multiplication by alpha or beta unless that is 1 (beta: or 0).
    """
    multiply = 1 if parts == 1 else 6
    scale_bias = 0 if beta in (0, 1) else multiply
    scale_product = 0 if alpha == 1 else multiply
    return ((parts if beta != 0 else 0) + scale_bias + scale_product) * n


@register_flop_formula(
    ["aten::mm", "aten::_int_mm", "aten::_sparse_mm", "aten::_sparse_sparse_matmul", "aten::hspmm"]
)
def mm(a: Tensor, b: Tensor, *_: Any, **__: Any) -> Cost:
    """Count (2k−1)·m·n for (m,k)·(k,n). Sparse operands count as dense ones: the bound that shapes give."""
    m, k = a.shape
    _k, n = b.shape
    return dots(m * n, k, parts=real_parts(a))


@register_flop_formula(["aten::bmm"])
def bmm(a: Tensor, b: Tensor, *_: Any, **__: Any) -> Cost:
    """Count (2k−1)·m·n for each of B products (m,k)·(k,n)."""
    B, m, k = a.shape
    n = b.shape[2]
    return dots(B * m * n, k, parts=real_parts(a))


@register_flop_formula(
    ["aten::matmul", "aten::linalg_matmul", "aten::mv", "aten::dot", "aten::vdot", "aten::inner"]
)
def matmul(a: Tensor, b: Tensor, *_: Any, out: Tensor, **__: Any) -> Cost:
    """Count one dot product over the last dimension of `a` for each output element."""
    if not a.ndim or not b.ndim:
        return Cost(out.numel() * (6 if out.is_complex() else 1))  # `inner` of a scalar scales
    return dots(out.numel(), a.shape[-1], parts=real_parts(a))


@register_flop_formula("aten::linear")
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Any, out: Tensor, **__: Any) -> Cost:
    """Count (2·in−1) per output element, and its bias."""
    n = out.numel()
    return dots(n, weight.shape[-1], parts=real_parts(x)) + (n * real_parts(x) if bias is not None else 0)


@register_flop_formula(["aten::addmm", "aten::_sparse_addmm", "aten::sparse_sampled_addmm", "aten::sspaddmm"])
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
