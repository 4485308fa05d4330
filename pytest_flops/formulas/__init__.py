"""FLOP formulas."""

from __future__ import annotations

from pytest_flops.formulas import (  # noqa: F401  # imported to register
    attention,
    contraction,
    convolution,
    normalization,
    pointwise,
    pooling,
    reduction,
    softmax,
    zero,
)
from pytest_flops.formulas.registry import (
    Cost,
    Formula,
    formula_for,
    generation,
    register_flop_formula,
)

FORMULAS_VERSION: int = 1

__all__ = ["FORMULAS_VERSION", "Cost", "Formula", "formula_for", "generation", "register_flop_formula"]
