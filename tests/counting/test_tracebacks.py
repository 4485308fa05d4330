"""A model's own error shows the model's lines: not ours, not what trying again made of it, no weights."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_flops import FormulaError, TraceError, register_flop_formula, trace
from pytest_flops.counting.shapes import ShapeMode

X = torch.randn(1, 4)


class Deep(nn.Module):
    """The second layer of its body does not fit."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.body = nn.Sequential(nn.Linear(4, 4), nn.Linear(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.head(x))


def lines(run: Callable[[], Any]) -> list[str]:
    """Return file and code of the frames of an exception, after those of `trace` itself."""
    with pytest.raises(Exception) as info:  # noqa: PT011  # whatever the model raises
        run()
    frames = traceback.extract_tb(info.value.__traceback__)
    inside = [frame for frame in frames if not frame.filename.endswith("counting/trace.py")]
    return [f"{frame.filename.rpartition('/')[2]}: {frame.line}" for frame in inside[2:]]


@pytest.mark.parametrize("options", [{}, {"backward": True}, {"execute": "real"}])
def test_only_the_model_s_lines_are_left(options: dict[str, Any]) -> None:
    assert lines(lambda: trace(Deep(), X, **options)) == [
        "test_tracebacks.py: return self.body(self.head(x))"
    ]
    assert lines(lambda: trace(nn.Linear(3, 3), X, **options)) == []


def test_what_needs_values_shows_where() -> None:
    def forward(x: Tensor) -> Tensor:
        return x * x.sum().item()

    assert lines(lambda: trace(forward, X, execute="meta")) == [
        "test_tracebacks.py: return x * x.sum().item()"
    ]


def test_an_op_refuses_in_the_words_of_its_real_kernel_and_shows_no_values() -> None:
    with pytest.raises(RuntimeError) as info:
        trace(Deep(), X)
    assert str(info.value) == "mat1 and mat2 shapes cannot be multiplied (1x4 and 3x3)"
    assert info.value.__notes__ == ["pytest-flops was running Deep on real tensors, in module 'body.1'."]
    last = [frame for frame, _ in traceback.walk_tb(info.value.__traceback__)][-1]
    assert last.f_code.co_name == "forward"
    assert last.f_locals["x"].is_meta


def test_the_first_error_of_the_model_s_code_is_told() -> None:
    calls: list[int] = []

    def forward(x: Tensor) -> Tensor:
        calls.append(1)
        raise ValueError(f"call {len(calls)}")

    with pytest.raises(ValueError, match=r"^call 1") as info:
        trace(forward, X)
    assert info.value.__notes__ == ["pytest-flops was running forward on shapes alone, in its own forward."]


def test_where_values_were_missing_the_real_error_is_told() -> None:
    def forward(x: Tensor) -> Tensor:
        if x.sum().item() < 100:
            raise ValueError("its own")
        return x

    with pytest.raises(ValueError, match=r"^its own") as info:
        trace(forward, X)
    assert info.value.__notes__ == ["pytest-flops was running forward on real tensors, in its own forward."]


def test_a_fault_of_ours_shows_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: ShapeMode, *_: Any) -> None:
        raise AssertionError("ours")

    monkeypatch.setattr(ShapeMode, "_give", fails)
    monkeypatch.setattr(
        fails,
        "__code__",
        fails.__code__.replace(co_filename=ShapeMode.__torch_dispatch__.__code__.co_filename),
    )
    monkeypatch.setattr(ShapeMode, "_answer_concrete", fails)
    found = lines(lambda: trace(nn.Linear(4, 4), X))
    assert any(line.startswith("recorder.py") for line in found)
    assert any(line.startswith("shapes.py") for line in found)


def test_a_formula_s_error_shows_the_formula() -> None:
    with torch.library._scoped_library("tracebacks_test", "FRAGMENT") as library:
        library.define("op(Tensor x) -> Tensor")
        library.impl("op", torch.empty_like, "Meta")
        library.impl("op", torch.empty_like, "CPU")

        @register_flop_formula(torch.ops.tracebacks_test.op)
        def formula(x: Tensor, *, out: Tensor) -> int:
            return x.shape[7]

        found = lines(lambda: trace(torch.ops.tracebacks_test.op, X))
        assert found[-1] == "test_tracebacks.py: return x.shape[7]"


def test_what_we_say_ourselves_has_no_frames_of_the_inside() -> None:
    def forward(x: Tensor) -> Any:
        return iter([x]), {"a": iter([x])}

    with pytest.raises(TraceError, match="returns an iterator inside its output"):
        trace(forward, X)
    assert lines(lambda: trace(forward, X)) == []
    assert issubclass(FormulaError, Exception)


BUG = """
import torch
from torch import nn
from pytest_flops import trace

class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.body = nn.Sequential(nn.Conv1d(4, 4, 1), nn.Linear(3, 3))

    def forward(self, x):
        return self.body(self.head(x))

def test_leaf(flops):
    flops(nn.Conv2d(3, 3, 3), torch.randn(1, 4, 8, 8))

def test_deep(flops):
    flops(Deep(), torch.randn(1, 4))

def test_trace():
    trace(Deep(), torch.randn(1, 4))
"""


def test_pytest_shows_the_user_s_line(run_inside: Any) -> None:
    result = run_inside(BUG, "--flops-update")
    result.assert_outcomes(failed=3)
    out = result.stdout.str()
    result.stdout.fnmatch_lines(
        [
            ">       flops(nn.Conv2d(3, 3, 3), torch.randn(1, 4, 8, 8))",
            "E       RuntimeError: Given groups=1, weight of size *, expected input* to have 3 channels*",
            "E       pytest-flops was running Conv2d on real tensors, in its own forward.",
            ">       flops(Deep(), torch.randn(1, 4))",
            ">       return self.body(self.head(x))",
            "E       pytest-flops was running Deep on real tensors, in module 'body.0'.",
            ">       trace(Deep(), torch.randn(1, 4))",
        ]
    )
    assert "pytest_flops/" not in out
    assert "Parameter containing" not in out
    assert "tensor([" not in out
    assert len(out.splitlines()) < 120
