"""A user's formula that was edited shows as such, and not as the model's fault."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pytest_flops import register_flop_formula, trace
from pytest_flops.formulas.registry import registrations_undone
from tests.runs import load_torch

load_torch()

LIBRARY = """
import pytest
import torch
from pytest_flops import register_flop_formula
from torch import nn

library = torch.library.Library("fingerprints", "DEF")
library.define("twice(Tensor x) -> Tensor")
library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")


@register_flop_formula("fingerprints::twice")
def formula(x, *, out):
    {body}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, {width})

    def forward(self, x):
        return torch.ops.fingerprints.twice(self.fc(x))


def test_net(flops):
    flops(Net(), torch.randn(2, 4))


def test_other(flops):
    flops(nn.Linear(4, 4), torch.randn(2, 4))
"""


def run(pytester, body="return out.numel()", width=3, *options):
    pytester.makepyfile(test_it=LIBRARY.format(body=body, width=width))
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", *options)


def test_an_edited_formula_is_named_and_a_comment_is_no_edit(pytester):
    run(pytester, "return out.numel()", 3, "--flops-update").assert_outcomes(passed=2)
    files = {path.stem: path.read_text() for path in pytester.path.rglob("*.json")}
    assert '"own_formulas": {\n        "fingerprints.twice.default": "' in files["test_net"]
    assert "own_formulas" not in files["test_other"], "no formula of the user's counted there"

    run(pytester, "# one for each number\n    return  out.numel()", 3, "--flops-strict").assert_outcomes(
        passed=2
    )

    edited = run(pytester, "return 2 * out.numel()")
    edited.assert_outcomes(passed=1, failed=1)
    edited.stdout.fnmatch_lines(
        [
            "Net: at most * FLOPs (baseline), now *, in (model): twice",
            "The counter changed since the baseline (the formula of fingerprints.twice.default * -> *): *",
        ]
    )
    wider = run(pytester, "return out.numel()", 5)
    wider.assert_outcomes(passed=1, failed=1)
    wider.stdout.no_fnmatch_line("*counter changed*")

    run(pytester, "return 2 * out.numel()", 3, "--flops-update").assert_outcomes(passed=2)
    run(pytester, "return 2 * out.numel()", 3, "--flops-strict").assert_outcomes(passed=2)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    ("op", "named", "function"),
    [
        ("aten::linear", "aten.linear.default", lambda x: F.linear(x[0], x[1])),
        ("aten::scaled_dot_product_attention", "aten.scaled_dot_product_attention.default",
         lambda x: F.scaled_dot_product_attention(x, x, x)),
        ("aten::mul", "aten.mul_.Tensor", lambda x: x.clone().mul_(x)),
        ("aten::mul.Tensor", "aten.mul.Tensor", lambda x: x * x),
    ],
)  # fmt: skip
def test_whatever_way_a_formula_is_asked_it_leaves_its_mark(op, named, function, backward):
    with registrations_undone():
        register_flop_formula(op, override=True)(lambda *_, out, **__: 7)
        x = torch.randn(2, 4, 4, requires_grad=True)
        marks = trace(function, x, train=backward, backward=backward).own_formulas
        assert named in marks
        assert all(len(mark) == 8 for mark in marks.values())
    assert trace(function, x, train=backward, backward=backward).own_formulas == {}
