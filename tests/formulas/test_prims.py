"""The primitives that PyTorch's decompositions in Python are made of count as the ops that they stand for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._prims

from pytest_flops import trace
from pytest_flops.formulas import formula_for
from pytest_flops.formulas.prims import POINTWISE, REDUCTIONS, ZERO_BY_KIND
from pytest_flops.formulas.registry import no_flops

prims = torch.ops.prims
X, Y = torch.rand(2, 3) + 0.5, torch.rand(2, 3) + 0.5
C = X + 1j

# By primitive: its arguments, and what it costs for 6 elements
CASES: dict[str, tuple[tuple[Any, ...], int]] = {
    "add": ((X, Y), 6),
    "mul": ((X, Y), 6),
    "exp": ((X,), 6),
    "lt": ((X, Y), 6),
    "sum": ((X, [1]), 2 * 2),
    "amax": ((X, [0]), 3),
    "var": ((X, [1], 1.0), 4 * 6),
    "convert_element_type": ((X, torch.bfloat16), 0),
    "where": ((X > 0, X, Y), 0),
    "broadcast_in_dim": ((X, [2, 2, 3], [1, 2]), 0),
}
COMPLEX = {
    "add": ((C, C), 12),
    "mul": ((C, C), 36),
    "div": ((C, C), 66),
    "abs": ((C,), 24),
    "exp": ((C,), 12),
}


@pytest.mark.parametrize("execute", ["meta", "real"])
@pytest.mark.parametrize(
    ("name", "args", "flops"),
    [(name, *case) for cases in (CASES, COMPLEX) for name, case in cases.items()],
)
def test_a_primitive(name: str, args: tuple[Any, ...], flops: int, execute: Any) -> None:
    report = trace(getattr(prims, name).default, args, execute=execute)
    assert (report.flops, report.unsupported) == (flops, {})


def test_every_primitive_of_arithmetic_has_an_answer() -> None:
    named = {*POINTWISE.split(), *REDUCTIONS.split(), *ZERO_BY_KIND.split()}
    transforms = {"svd", "fft_r2c", "fft_c2c", "fft_c2r", "shift_right_logical", "_uniform_helper"}
    for name in {*torch._prims.__all__, *named} - transforms - {"RETURN_TYPE"}:
        packet = getattr(prims, name, None)
        if packet is not None:
            assert formula_for(packet.default) is not None, name
    assert formula_for(prims.transpose.default) is no_flops  # a view
