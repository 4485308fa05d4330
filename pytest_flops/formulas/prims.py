"""The primitives of `torch._prims`, which PyTorch's own decompositions in Python are made of.

They carry no tags of their ops' kinds. Forward-mode derivatives meet them outside of any compiler.
"""

from __future__ import annotations

from pytest_flops.formulas.pointwise import complex_arithmetic
from pytest_flops.formulas.reduction import var
from pytest_flops.formulas.registry import no_flops, one_per_element, reduction, register_flop_formula

ZERO_BY_KIND = """
    real imag conj conj_physical as_strided_scatter collapse cat reshape rev where clone convert_element_type
    device_put item maximum_value minimum_value copy_strided copy_to resize empty_strided empty_permuted
    scalar_tensor iota fill empty full full_like normal uniform as_strided _make_token
    _sink_tokens
"""
POINTWISE = """
    acos acosh asin asinh atan atanh cos cosh bessel_i0 bessel_i0e bessel_i1 bessel_i1e bessel_j0 bessel_j1
    bitwise_not cbrt ceil digamma erf erf_inv erfc erfcx exp expm1 exp2 floor isfinite lgamma log log1p log2
    log10 ndtri neg round rsqrt sign signbit sin sinh spherical_bessel_j0 sqrt tan tanh trunc add atan2
    bitwise_and bitwise_or bitwise_xor eq fmax fmin fmod frexp gcd ge gt hypot igamma igammac le lt maximum
    minimum ne nextafter pow remainder shift_left shift_right_arithmetic sub zeta
"""
REDUCTIONS = "amax amin prod sum xor_sum"


def prims(names: str) -> list[str]:
    """Return the qualified names of primitives."""
    return [f"prims::{name}" for name in names.split()]


register_flop_formula(prims(ZERO_BY_KIND))(no_flops)
register_flop_formula(prims(POINTWISE))(one_per_element)
register_flop_formula(prims(REDUCTIONS))(reduction)
register_flop_formula("prims::var")(var)
register_flop_formula("prims::mul")(complex_arithmetic(1, 6))
register_flop_formula(prims("div reciprocal"))(complex_arithmetic(1, 11))
register_flop_formula("prims::abs")(complex_arithmetic(1, 4))
