"""A user's formula that was edited shows as such, and not as the model's fault."""

from __future__ import annotations

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
