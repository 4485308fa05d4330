"""Results told without a kernel are those that the CPU gives."""

from __future__ import annotations

import warnings
from collections import Counter
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_flops import trace
from pytest_flops.counting import shape_rules
from pytest_flops.counting.calls import Call
from pytest_flops.counting.op_results import New, Same
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


def is_right(told: New | Same, result: Any, tensors: list[Tensor]) -> bool:
    if isinstance(told, Same):
        return result is tensors[told.argument]
    if type(result) is not Tensor or any(result is tensor for tensor in tensors):
        return False
    found = New(result.size(), result.stride(), result.dtype, result.untyped_storage().nbytes())
    return told == found


def compare(dtype: torch.dtype, limit: int | None) -> Compare:
    with warnings.catch_warnings(), torch.inference_mode(), Compare() as found:
        warnings.simplefilter("ignore")
        for op in op_db:
            if dtype in op.supported_dtypes("cpu") and not op.full_name.startswith(tuple(UNAVAILABLE)):
                for sample in islice(samples(op, dtype, None), limit):
                    op(sample.input, *sample.args, **sample.kwargs)
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
    found = compare(dtype, limit)
    assert not found.wrong
    assert len(found.told) >= FEWEST[dtype]
    if dtype is torch.float32:
        assert {op._schema.name.rstrip("_") for op in shape_rules._RULES} <= found.told.keys()


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
