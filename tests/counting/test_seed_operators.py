"""Every operation that torch_flops lists as supported, with its number in our convention.

The names are the keys of the three dicts in its README. The numbers are written out from the sizes, all
different, by the convention in `pytest_flops.formulas`; a remark says where torch_flops has another one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pytest_flops import trace
from pytest_flops.results.report import Node, base_name


class Case(NamedTuple):
    """An operation on inputs of some shapes, its FLOPs and its multiply-accumulates."""

    run: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    flops: int
    macs: int = 0


# Linear(5, 7) on 2·3 rows: 5 multiplications and 4 additions per output, and the bias.
ROWS, MAPS = 2 * 3, 2 * 3 * 5 * 7
LINEAR = ROWS * 7 * (2 * 5 - 1) + ROWS * 7

MODULES: dict[str, Case] = {
    "Linear": Case(nn.Linear(5, 7), ((2, 3, 5),), LINEAR, MAPS),
    "Identity": Case(nn.Identity(), ((2, 3, 5),), 0),
    # (2·(Cin/groups)·ΠK − 1) + 1 for the bias per output: 2·2·3 for the first
    "Conv1d": Case(nn.Conv1d(4, 6, 3, groups=2), ((5, 4, 9),), 5 * 6 * 7 * 12, 5 * 6 * 7 * 6),
    "Conv2d": Case(
        nn.Conv2d(4, 6, (3, 5), stride=(2, 1), bias=False),
        ((7, 4, 9, 12),),
        7 * 6 * 4 * 8 * 119,
        7 * 6 * 32 * 60,
    ),
    "Conv3d": Case(
        nn.Conv3d(2, 5, (2, 3, 4), dilation=(1, 2, 1), padding=(1, 0, 0)),
        ((3, 2, 6, 9, 11),),
        3 * 5 * (7 * 5 * 8) * 96,
        3 * 5 * (7 * 5 * 8) * 48,
    ),
    "AvgPool1d": Case(nn.AvgPool1d(4), ((2, 3, 12),), 2 * 3 * 3 * 4),
    # torch_flops: a kernel given as one int counts once, 3 instead of 9 and 2 instead of 8
    "AvgPool2d": Case(nn.AvgPool2d(3), ((2, 5, 9, 12),), 2 * 5 * (3 * 4) * 9),
    "AvgPool3d": Case(nn.AvgPool3d((2, 3, 4)), ((2, 5, 6, 9, 16),), 2 * 5 * (3 * 3 * 4) * 24),
    # Windows of ⌊i·L/n⌋ to ⌈(i+1)·L/n⌉: 11 into 3 is 4 + 5 + 4. torch_flops: one size, remainder + 1
    "AdaptiveAvgPool1d": Case(nn.AdaptiveAvgPool1d(3), ((2, 5, 11),), 2 * 5 * (4 + 5 + 4)),
    "AdaptiveAvgPool2d": Case(nn.AdaptiveAvgPool2d((3, 2)), ((2, 5, 11, 8),), 2 * 5 * (4 + 5 + 4) * (4 + 4)),
    "AdaptiveAvgPool3d": Case(
        nn.AdaptiveAvgPool3d((3, 2, 5)), ((2, 4, 11, 8, 15),), 2 * 4 * (4 + 5 + 4) * (4 + 4) * 15
    ),
    "MaxPool1d": Case(nn.MaxPool1d(4), ((2, 3, 12),), 2 * 3 * 3 * 3),
    "MaxPool2d": Case(nn.MaxPool2d(3, stride=2, padding=1), ((2, 5, 9, 12),), 2 * 5 * (5 * 6) * 8),
    "MaxPool3d": Case(nn.MaxPool3d((2, 3, 4)), ((2, 5, 6, 9, 16),), 2 * 5 * (3 * 3 * 4) * 23),
    # One comparison less than the window holds, per output
    "AdaptiveMaxPool1d": Case(nn.AdaptiveMaxPool1d(3), ((2, 5, 11),), 2 * 5 * (3 + 4 + 3)),
    "AdaptiveMaxPool2d": Case(nn.AdaptiveMaxPool2d((3, 2)), ((2, 5, 11, 8),), 2 * 5 * (13 * 8 - 6)),
    "AdaptiveMaxPool3d": Case(
        nn.AdaptiveMaxPool3d((3, 2, 5)), ((2, 4, 11, 8, 15),), 2 * 4 * (13 * 8 * 15 - 30)
    ),
    # (x − mean)·rstd and, where affine, ·weight + bias. torch_flops: 4 for every LayerNorm
    "LayerNorm": Case(nn.LayerNorm(7), ((2, 3, 7),), 4 * 42),
    "BatchNorm1d": Case(nn.BatchNorm1d(3), ((2, 3, 7),), 4 * 42),
    "BatchNorm2d": Case(nn.BatchNorm2d(3, affine=False), ((2, 3, 7, 5),), 2 * 210),  # torch_flops: fails
    "BatchNorm3d": Case(nn.BatchNorm3d(3), ((2, 3, 7, 5, 4),), 4 * 840),
    "InstanceNorm1d": Case(nn.InstanceNorm1d(3), ((2, 3, 7),), 2 * 42),  # torch_flops: fails
    "InstanceNorm2d": Case(nn.InstanceNorm2d(3, affine=True), ((2, 3, 7, 5),), 4 * 210),
    "InstanceNorm3d": Case(nn.InstanceNorm3d(3), ((2, 3, 7, 5, 4),), 2 * 840),  # torch_flops: fails
    "GroupNorm": Case(nn.GroupNorm(2, 6), ((5, 6, 7),), 4 * 210),
    "Dropout": Case(nn.Dropout(), ((2, 3),), 0),
    "GELU": Case(nn.GELU(), ((2, 3, 5),), 30),
    "ReLU": Case(nn.ReLU(inplace=True), ((2, 3, 5),), 30),
    "Flatten": Case(nn.Flatten(), ((2, 3, 5),), 0),
}


def assert_then(x: Tensor) -> Tensor:
    torch._assert(x.shape[0] == 2, "two rows")  # torch_flops: the comparison counts 1
    return x.view(-1)


FUNCTIONS: dict[str, Case] = {
    "getattr": Case(lambda x: getattr(x, "T"), ((2, 3),), 0),  # noqa: B009  # that is what is tested
    "getitem": Case(lambda x: x[1:, None], ((2, 3),), 0),
    "mul": Case(lambda x, y: x * y, ((2, 3, 5), (3, 1)), 30),
    "truediv": Case(lambda x, y: x / y, ((2, 3, 5), (5,)), 30),
    "sub": Case(lambda x: 1 - x, ((2, 3, 5),), 30),
    # torch.add with alpha multiplies as well. torch_flops: 1 per element
    "add": Case(lambda x, y: torch.add(x, y, alpha=2), ((2, 3, 5), (3, 5)), 2 * 30),
    "matmul": Case(torch.matmul, ((2, 3, 5), (5, 7)), ROWS * 7 * (2 * 5 - 1), MAPS),
    "concat": Case(lambda x, y: torch.concat([x, y]), ((2, 3), (4, 3)), 0),
    "_assert": Case(assert_then, ((2, 3),), 0),
    "eq": Case(lambda x, y: x == y, ((2, 3, 5), (3, 5)), 30),
    "cat": Case(lambda x, y: torch.cat([x, y], 1), ((2, 3), (2, 4)), 0),
    "linear": Case(F.linear, ((2, 3, 5), (7, 5), (7,)), LINEAR, MAPS),
}

METHODS: dict[str, Case] = {
    "reshape": Case(lambda x: x.t().reshape(6), ((2, 3),), 0),  # a copy
    "permute": Case(lambda x: x.permute(2, 0, 1), ((2, 3, 5),), 0),
    "unbind": Case(lambda x: x.unbind(1), ((2, 3, 5),), 0),
    "transpose": Case(lambda x: x.transpose(0, 2), ((2, 3, 5),), 0),
    "repeat": Case(lambda x: x.repeat(4, 1, 2), ((2, 3, 5),), 0),
    "unsqueeze": Case(lambda x: x.unsqueeze(1), ((2, 3, 5),), 0),
    "exp": Case(lambda x: x.exp(), ((2, 3, 5),), 30),
    # n − 1 per result. torch_flops: results and terms change places, 3·(10 − 1)
    "sum": Case(lambda x: x.sum(1), ((2, 3, 5),), 2 * 5 * (3 - 1)),
    "div": Case(lambda x, y: x.div(y), ((2, 3, 5), (3, 5)), 30),
    # per row an exponential each, n − 1 additions, a division each
    "softmax": Case(lambda x: x.softmax(dim=1), ((2, 3, 5),), 2 * 5 * (3 * 3 - 1)),
    "expand": Case(lambda x: x.expand(4, 3, 5), ((1, 3, 5),), 0),
    "flatten": Case(lambda x: x.flatten(1), ((2, 3, 5),), 0),
}

# As in the README of torch_flops, to tell when one is missing here.
LISTED = (
    "Linear Identity Conv1d Conv2d Conv3d AvgPool1d AvgPool2d AvgPool3d AdaptiveAvgPool1d AdaptiveAvgPool2d "
    "AdaptiveAvgPool3d MaxPool1d MaxPool2d MaxPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d "
    "LayerNorm BatchNorm1d BatchNorm2d BatchNorm3d InstanceNorm1d InstanceNorm2d InstanceNorm3d GroupNorm "
    "Dropout GELU ReLU Flatten",
    "getattr getitem mul truediv sub matmul add concat _assert eq cat linear",
    "reshape permute unbind transpose repeat unsqueeze exp sum div softmax expand flatten",
)


def test_every_listed_operation_is_here():
    assert [set(cases) for cases in (MODULES, FUNCTIONS, METHODS)] == [set(names.split()) for names in LISTED]


def traced(case: Case, model: Callable[..., Any]) -> list[Node]:
    """Return the nodes between inputs and output, with their sums checked on shapes and on real tensors."""
    inputs = tuple(torch.randn(shape) for shape in case.shapes)
    reports = [trace(model, inputs, execute=execute) for execute in ("meta", "real")]
    assert [(report.flops, report.macs) for report in reports] == [(case.flops, case.macs)] * 2
    assert not reports[0].unsupported
    return [node for node in reports[0].nodes if node.op not in ("placeholder", "output")]


@pytest.mark.parametrize("name", MODULES)
def test_module(name):
    case = MODULES[name]
    assert type(case.run).__name__ == name
    (node,) = traced(case, nn.Sequential(case.run))
    assert (node.op, node.target, node.module_type) == ("call_module", "0", name)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function(name):
    case = FUNCTIONS[name]
    nodes = traced(case, case.run)
    if name in ("getattr", "_assert"):  # reading an attribute and asserting run no tensor operation
        assert name not in [node.name for node in nodes]
    else:
        assert [(node.name, node.op) for node in nodes] == [(name, "call_function")]


@pytest.mark.parametrize("name", METHODS)
def test_method(name):
    case = METHODS[name]
    nodes = traced(case, case.run)
    assert (base_name(nodes[-1].name), nodes[-1].op) == (name, "call_method")
    assert all(node.flops == 0 for node in nodes[:-1])
