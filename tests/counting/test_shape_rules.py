"""Results told without a kernel are those that the CPU gives."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import warnings
from collections import Counter
from contextlib import nullcontext, suppress
from functools import partial
from itertools import cycle, islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from pytest_flops import trace
from pytest_flops.counting import shape_rules
from pytest_flops.counting.calls import Call
from pytest_flops.counting.op_results import New, Same, Several
from pytest_flops.counting.shape_rules import result_by_rule
from tests.formulas.test_op_db import UNAVAILABLE, samples

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's test suite uses what torch deprecates
    from torch.testing._internal.common_methods_invocations import op_db


class Compare(TorchDispatchMode):
    """Hold what the rules say of each op against what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.told: Counter[str] = Counter()
        self.wrong: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        call = Call.of(func, args, kwargs or {})
        told, tensors = result_by_rule(call), call.tensors
        result = func(*args, **(kwargs or {}))
        if told is not None:
            self.told[func._schema.name] += 1
            if not is_right(told, result, tensors):
                self.wrong.append((func, told, *((t.shape, t.stride(), t.dtype) for t in [result, *tensors])))
        return result


def is_right(told: New | Same | Several, result: Any, tensors: list[Tensor]) -> bool:
    if isinstance(told, Several):
        return all(is_right(part, each, tensors) for part, each in zip(told.parts, result, strict=True))
    if isinstance(told, Same):
        return result is tensors[told.argument]
    if type(result) is not Tensor or any(result is tensor for tensor in tensors):
        return False
    found = New(result.size(), result.stride(), result.dtype, result.untyped_storage().nbytes())
    return told == found


LAYOUTS = {
    "as they come": lambda x: x,
    "reversed": lambda x: (
        x.permute(tuple(range(x.ndim))[::-1]).contiguous().permute(tuple(range(x.ndim))[::-1])
    ),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x,
    "apart": lambda x: torch.stack([x, x], dim=-1)[..., 0],
    "first two swapped": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1) if x.ndim > 1 else x,
    "expanded": lambda x: x[..., :1].expand(x.shape) if x.ndim else x,
}


def compare(dtype: torch.dtype, limit: int | None, *layouts: str) -> Compare:
    """Run the samples of op_db, their tensors laid out in turn in these ways."""
    with warnings.catch_warnings(), torch.inference_mode(), Compare() as found:
        warnings.simplefilter("ignore")
        for op in op_db:
            if dtype in op.supported_dtypes("cpu") and not op.full_name.startswith(tuple(UNAVAILABLE)):
                for sample in islice(samples(op, dtype, None), limit):
                    ways = cycle(LAYOUTS[layout] for layout in layouts)

                    def lay_out(value: Any, ways: Any = ways) -> Any:
                        is_plain = isinstance(value, Tensor) and value.layout is torch.strided
                        return next(ways)(value) if is_plain else value

                    arguments = tree_map(lay_out, (sample.input, sample.args, sample.kwargs))
                    with suppress(RuntimeError) if layouts != ("as they come",) else nullcontext():
                        op(arguments[0], *arguments[1], **arguments[2])
    return found


FEWEST = {torch.float32: 150, torch.int64: 60, torch.bool: 20, torch.complex64: 60}


@pytest.mark.parametrize(
    ("dtype", "limit"),
    [
        *((dtype, 4) for dtype in FEWEST),
        *(pytest.param(dtype, None, marks=pytest.mark.slow) for dtype in FEWEST),
    ],
    ids=str,
)
def test_what_a_rule_tells_is_what_the_cpu_returns(dtype, limit):
    found = compare(dtype, limit, "as they come")
    assert not found.wrong
    assert len(found.told) >= FEWEST[dtype]
    if dtype is torch.float32:
        ruled = {op._schema.name.rstrip("_") for op in shape_rules._RULES}
        assert ruled - RECURRENT - {"aten::_grouped_mm"} <= found.told.keys()  # these have tests of their own


RECURRENT = {"aten::lstm", "aten::gru", "aten::rnn_tanh", "aten::rnn_relu"}


@pytest.mark.parametrize(
    "layouts",
    [
        ("reversed",),
        ("channels last",),
        ("apart",),
        ("expanded",),
        ("as they come", "reversed"),
        ("first two swapped", "as they come"),
        ("channels last", "apart", "reversed"),
        ("expanded", "first two swapped"),
    ],
    ids=" and ".join,
)
def test_a_rule_knows_how_a_result_is_laid_out(layouts):
    found = compare(torch.float32, 2, *layouts)
    assert not found.wrong
    assert len(found.told) >= 100


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(
    "kind", [nn.LSTM, nn.GRU, nn.RNN, partial(nn.RNN, nonlinearity="relu"), partial(nn.LSTM, proj_size=5)]
)
def test_recurrent_layers(kind, bidirectional, batch_first):
    layer = kind(8, 16, 2, batch_first=batch_first, bidirectional=bidirectional).eval()
    warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
    with torch.inference_mode(), Compare() as found:
        layer(torch.randn(3, 7, 8))
    assert not found.wrong
    assert set(found.told) & RECURRENT


@pytest.mark.parametrize("other", [torch.int64, torch.bool, torch.float64, torch.bfloat16, torch.complex64])
def test_dtypes_are_promoted_as_by_pytorch(other):
    x, y = torch.ones(2, 3), torch.ones(3, dtype=other)
    with torch.inference_mode(), Compare() as found:
        for operand in (y, y[0], 2, 2.5, True):
            for function in (torch.add, torch.mul, torch.div, torch.eq):
                function(x, operand)
                function(y, operand)
        torch.where(y.bool(), x, y)
        x[0, 0] + y
    assert not found.wrong
    assert {"aten::add", "aten::mul", "aten::div", "aten::eq", "aten::where"} <= found.told.keys()


def modules_after(code: str) -> set[str]:
    """Return the modules of a fresh process that has run this, less those that torch imports by itself."""
    done = subprocess.run(
        [sys.executable, "-c", FRESH.format(code=textwrap.indent(textwrap.dedent(code), "    "))],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


FRESH = """
import sys, warnings
import torch
from torch import nn

before = set(sys.modules)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
{code}
print(*sorted(set(sys.modules) - before))
"""
COMPILER = ("torch._dynamo", "torch._inductor", "sympy", "torch.fx.experimental")


@pytest.mark.parametrize(
    ("model", "x", "options"),
    [
        ("nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))", "torch.randn(2, 8)", ""),
        (
            "nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), "
            "nn.Conv2d(8, 4, 3), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))",
            "torch.randn(1, 3, 32, 32)",
            "",
        ),
        ("nn.LSTM(8, 16, 2)", "torch.randn(5, 2, 8)", ""),
        ("nn.Sequential(nn.Embedding(9, 8), nn.GRU(8, 16))", "torch.zeros(5, 2, dtype=torch.long)", ""),
        (
            "nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2)",
            "torch.randn(2, 7, 16)",
            "",
        ),
        (
            "nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32), 2, enable_nested_tensor=False)",
            "torch.randn(7, 2, 16)",
            ", train=True",
        ),
        (
            "lambda x: torch.ones(1, 3000)[torch.zeros(1, 1).long(), torch.arange(3000)[None]] * "
            "torch.zeros(3000, 3000).masked_fill_(torch.arange(3000)[:, None] < torch.arange(3000), -9.0) + "
            "torch.full((3000, 3000), -9.0).triu(1) + torch.arange(3000).repeat(3000, 1)",
            "torch.randn(7)",
            "",
        ),
    ],
    ids=["MLP", "CNN", "LSTM", "GRU", "encoder, fast path", "encoder, plain path", "masks"],
)
def test_a_first_trace_imports_no_compiler(model, x, options):
    found = modules_after(f"from pytest_flops import trace\ntrace({model}, ({x},){options})")
    assert "pytest_flops.counting.trace" in found
    assert {name for name in found if name.startswith(COMPILER)} == set()


def test_the_check_above_can_fail():
    assert "sympy" in modules_after("import torch.fx.experimental.symbolic_shapes")


OFFSETS = torch.tensor([4, 8], dtype=torch.int32)
# What is in groups: sizes of a and b, whether b lies in columns, whether there are offsets
GROUPED: dict[str, tuple[tuple[int, ...], tuple[int, ...], bool, bool]] = {
    "rows": ((8, 16), (2, 16, 24), False, True),
    "rows-by-columns": ((8, 16), (2, 24, 16), True, True),
    "rows-uneven": ((8, 16), (2, 6, 16), True, True),
    "columns": ((2, 8, 16), (16, 8), False, True),
    "products": ((16, 8), (8, 24), False, True),
    "products-uneven": ((16, 8), (3, 8), True, True),
    "batch": ((2, 8, 16), (2, 16, 24), False, False),
    "batch-uneven": ((2, 8, 16), (2, 5, 16), True, False),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("a", "b", "by_columns", "offsets"), GROUPED.values(), ids=GROUPED)
def test_products_of_groups_are_what_the_cpu_returns(a, b, by_columns, offsets, dtype):
    a, b = torch.ones(a, dtype=dtype), torch.ones(b, dtype=dtype)
    b = b.mT if by_columns else b
    with torch.inference_mode(), Compare() as found:
        torch._grouped_mm(a, b, offs=OFFSETS if offsets else None)
    assert not found.wrong
    assert found.told["aten::_grouped_mm"] == 1


@pytest.mark.parametrize(
    ("a", "b", "offsets"),
    [
        ((8, 16), (2, 12, 24), OFFSETS),  # products of other lengths
        ((8, 16), (3, 16, 24), OFFSETS),  # other groups
        ((8, 16), (2, 16, 24), None),
        ((2, 8, 16), (2, 16, 24), OFFSETS),
        ((2, 8, 16), (3, 16, 24), None),
        ((8, 16), (2, 16, 6), OFFSETS),  # rows that do not begin at multiples of 16 bytes
        ((8, 6), (2, 6, 24), OFFSETS),
    ],
)
def test_products_of_groups_that_do_not_fit_raise_as_ever(a, b, offsets):
    args = (torch.ones(a), torch.ones(b), offsets)
    with pytest.raises(RuntimeError) as expected:
        torch._grouped_mm(*args)
    with pytest.raises(RuntimeError) as found:
        trace(torch._grouped_mm, args)
    assert str(found.value) == str(expected.value)


A = torch.empty(2, 3, 5)


@pytest.mark.parametrize(
    "forward",
    [
        lambda x: torch.nn.functional.linear(x, torch.empty(4, 6)),
        lambda x: torch.nn.functional.linear(x, torch.empty(4, 5), torch.empty(5)),
        lambda x: torch.nn.functional.layer_norm(x, (4,)),
        lambda x: torch.nn.functional.layer_norm(x, (5,), torch.empty(4)),
        lambda x: torch.nn.functional.batch_norm(x, torch.empty(4), torch.empty(4)),
        lambda x: torch.nn.functional.group_norm(x, 2),
        lambda x: x + torch.empty(2, 4, 5),
        lambda x: x.sum(2).add_(x),
        lambda x: x.mean(3),
        lambda x: x.roll(1, 3),
    ],
)
def test_what_does_not_fit_raises_as_ever(forward):
    with pytest.raises((RuntimeError, IndexError)):
        forward(A)
    with pytest.raises((RuntimeError, IndexError)):
        trace(forward, A)
