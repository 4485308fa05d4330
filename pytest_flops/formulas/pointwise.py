"""Pointwise ops that do other than one operation per output element.

Everything that torch tags pointwise and that is not here counts 1, be it an addition or a Bessel function. A
named smooth activation (GELU, SiLU, ELU, mish, softplus…) is one elementary function; piecewise linear and
polynomial ones count what they do. A function of a complex number counts 2 (two real numbers come out), where
its arithmetic is not given here. Selection by a mask that is already there (`where`, `masked_fill`) is no
arithmetic and stands with the zeros.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pytest_flops.formulas.registry import (
    Formula,
    one_per_element,
    real_parts,
    register_flop_formula,
)


def per_element(flops: int) -> Formula:
    """Return the formula of an op that does `flops` operations on each output element."""

    def formula(*args: Any, out: Any, **__: Any) -> int:
        return flops * one_per_element(*args, out=out)

    return formula


FLOPS_PER_ELEMENT = {
    # dropout's gradient: the mask was scaled before
    1: """
        log_sigmoid log_sigmoid_forward threshold_backward floor_divide glu_jvp polar native_dropout_backward
        _masked_scale _standard_gamma_grad _dirichlet_grad
    """,
    # compare with both borders; a named clamp; value and condition of the gradient
    2: """
        hardtanh relu6 hardshrink xlogy special_xlog1py _add_relu hardtanh_backward hardshrink_backward
        softshrink_backward glu leaky_relu_backward rrelu_with_noise_backward _prelu_kernel_backward
        gelu_backward silu_backward elu_backward softplus_backward log_sigmoid_backward mish_backward
        hardsigmoid_backward infinitely_differentiable_gelu_backward
    """,
    # lerp: a + w·(b − a); softshrink: two comparisons, a shift; sinc: sin(πx)/πx; logit: log(x/(1−x));
    # entr: −x·log x; sigmoid' and tanh': g·y·(1−y), g·(1−y²); nan_to_num: three comparisons
    3: """lerp softshrink sinc logit logit_backward special_entr sigmoid_backward tanh_backward nan_to_num""",
    # max(0, x) + slope·min(0, x), the seed's rule; relu6(x + 3)/6; log(e^a + e^b); √(a² + b²)
    4: """
        leaky_relu prelu _prelu_kernel rrelu_with_noise rrelu_with_noise_functional hardsigmoid logaddexp
        logaddexp2 hypot
    """,
    # x·relu6(x + 3)/6, and its derivative g·((x + 3)/6 + x/6), chosen by two comparisons
    5: "hardswish hardswish_backward glu_backward",
}

for _flops, _names in FLOPS_PER_ELEMENT.items():
    register_flop_formula([f"aten::{name}" for name in _names.split()])(per_element(_flops))


@register_flop_formula(["aten::add", "aten::sub", "aten::rsub.Tensor", "aten::rsub.Scalar"])
def add(x: Any, y: Any, scale: complex = 1, *_: Any, out: Tensor, alpha: complex = 1, **__: Any) -> int:
    """Count 1, and another where the second term is scaled; nothing where a counter moves on."""
    return 0 if _is_counter(out) else (1 + (alpha != 1 or scale != 1)) * one_per_element(out=out)


def _is_counter(x: Tensor) -> bool:
    """Tell a whole number that stands alone: what a norm does to its `num_batches_tracked` is bookkeeping."""
    return not x.ndim and not x.is_floating_point() and not x.is_complex()


def complex_arithmetic(real: int, imaginary: int) -> Formula:
    """Return the formula of an op that takes `real` operations per element, `imaginary` if complex."""

    def formula(x: Any, *others: Any, out: Tensor, **__: Any) -> int:
        tensors = [arg for arg in (x, *others) if isinstance(arg, Tensor)]
        is_complex = out.is_complex() or any(tensor.is_complex() for tensor in tensors)
        return (imaginary if is_complex else real) * out.numel()

    return formula


# (a+bi)(c+di): 4 products, 2 sums. Divided: times the conjugate, by |c+di|². |a+bi|: √(a²+b²)
register_flop_formula("aten::mul")(complex_arithmetic(1, 6))
register_flop_formula(["aten::div", "aten::reciprocal"])(complex_arithmetic(1, 11))
register_flop_formula("aten::abs")(complex_arithmetic(1, 4))
register_flop_formula("aten::sgn")(complex_arithmetic(1, 6))


@register_flop_formula(["aten::addcmul", "aten::addcdiv"])
def addcmul(x: Tensor, a: Tensor, b: Tensor, *_: Any, out: Tensor, value: complex = 1, **__: Any) -> int:
    """Count x + a·b: 2 per element, 3 where the product is scaled."""
    return (2 + (value != 1)) * one_per_element(out=out)


@register_flop_formula(["aten::clamp", "aten::clip"])
def clamp(x: Tensor, low: Any = None, high: Any = None, *_: Any, out: Tensor, **__: Any) -> int:
    """Count one comparison per border."""
    return ((low is not None) + (high is not None)) * out.numel()


@register_flop_formula(["aten::dropout", "aten::native_dropout", "aten::_fused_dropout"])
def dropout(x: Tensor, p: float, train: bool | None = True, *_: Any, **__: Any) -> int:
    """Count nothing in eval; in training the scale of the mask and its product with x, 2 per element.

    Drawing the mask is not counted, and its gradient is another product with the scaled mask, 1 per element.
    With p = 1 there is no scale: x is multiplied by zeros.
    """
    if train is False or p == 0:
        return 0
    multiply = 6 if x.is_complex() else 1
    return ((p != 1) + multiply) * x.numel()


@register_flop_formula("aten::equal")
def equal(x: Tensor, y: Tensor, **__: Any) -> int:
    """Count a comparison per element."""
    return x.numel()


@register_flop_formula("aten::allclose")
def allclose(x: Tensor, y: Tensor, *_: Any, **__: Any) -> int:
    """Count |x − y| ≤ atol + rtol·|y|, 6 per element, and n−1 to combine the answers."""
    return max(7 * x.numel() - 1, 0)


def foreach(flops: int) -> Formula:
    """Return the formula of a `_foreach_` op: `flops` per element of each tensor of its (first) list."""

    def formula(tensors: Any, *others: Any, out: Any = None, **__: Any) -> int:
        first = tensors if isinstance(tensors, (list, tuple)) else others[0]  # `pow` of a scalar base
        count: int = sum(tensor.numel() * real_parts(tensor) for tensor in first)
        return flops * count

    return formula


FOREACH = {
    1: """
        abs acos add asin atan ceil clamp_max clamp_min cos cosh div erf erfc exp expm1 floor frac lgamma
        log log10 log1p log2 maximum minimum mul neg pow reciprocal round rsqrt sigmoid sign sin sinh sqrt
        sub tan tanh trunc max
    """,
    2: "addcdiv addcmul norm powsum",
    3: "lerp",
}

for _flops, _names in FOREACH.items():
    register_flop_formula([f"aten::_foreach_{name}" for name in _names.split()])(foreach(_flops))
