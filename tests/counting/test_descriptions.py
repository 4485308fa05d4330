"""How inputs are described: what a baseline compares, so that no smaller input passes for the same."""

from __future__ import annotations

import dataclasses
from collections import UserDict
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pytest_flops import trace
from pytest_flops.counting.inputs import Inputs

X, IDS = torch.zeros(2, 3), torch.zeros(4, dtype=torch.long)


def described(*args: Any) -> list[str]:
    """Return the lines of arguments, less the name that they are all under."""
    return [line.removeprefix("args") for line in Inputs.of(args, {}).described(None)]


@dataclasses.dataclass
class Sample:
    image: Any
    label: int = 3
    mask: Tensor | None = None


class Pair(NamedTuple):
    left: Any
    right: int


class Batch:
    """A batch class of one's own."""

    def __init__(self, **parts: Any) -> None:
        vars(self).update(parts)


class Slotted:
    __slots__ = ("ids", "unset")

    def __init__(self) -> None:
        self.ids = IDS


@pytest.mark.parametrize(
    ("value", "lines"),
    [
        (X, ["[0]: float32[2, 3]"]),
        ([X, {"a": IDS, "n": 3}], ["[0][0]: float32[2, 3]", "[0][1]['a']: int64[4]", "[0][1]['n']: 3"]),
        (Pair(X, 2), ["[0].left: float32[2, 3]", "[0].right: 2"]),
        ("text", ["[0]: 'text'"]),
        (torch.half, ["[0]: torch.float16"]),
        (None, []),
        (object(), ["[0]: object"]),
        (nn.Linear(2, 2), ["[0]: Linear"]),
        (len, ["[0]: builtin_function_or_method"]),
        (range(10**9), ["[0]: range"]),
    ],
)
def test_ordinary_inputs(value: Any, lines: list[str]) -> None:
    assert described(value) == lines


@pytest.mark.parametrize(
    ("value", "lines"),
    [
        (Sample(X), ["[0]: Sample", "[0].image: float32[2, 3]"]),
        (
            Sample([X, Sample(IDS)]),
            ["[0]: Sample", "[0].image[0]: float32[2, 3]", "[0].image[1].image: int64[4]"],
        ),
        (Batch(y=X, x={"a": IDS}), ["[0]: Batch", "[0].x['a']: int64[4]", "[0].y: float32[2, 3]"]),
        (SimpleNamespace(x=Pair(X, 1)), ["[0]: SimpleNamespace", "[0].x[0]: float32[2, 3]"]),
        (UserDict(ids=IDS, text=["a"]), ["[0]: UserDict", "[0]['ids']: int64[4]"]),
        (Slotted(), ["[0]: Slotted", "[0].ids: int64[4]"]),
        ([Sample(X)], ["[0][0]: Sample", "[0][0].image: float32[2, 3]"]),
        (Batch(model=nn.Linear(2, 2), f=lambda: X, kind=Tensor), ["[0]: Batch"]),  # weights are no inputs
        (np.zeros((2, 3)), ["[0]: ndarray float64[2, 3]"]),
    ],
)
def test_tensors_inside_objects(value: Any, lines: list[str]) -> None:
    assert described(value) == lines


def test_an_object_that_holds_itself() -> None:
    batch = Batch(x=X)
    batch.again, batch.parts = batch, [batch, IDS]
    assert described(batch) == ["[0]: Batch", "[0].parts[1]: int64[4]", "[0].x: float32[2, 3]"]


def test_very_many_tensors_are_summed_up() -> None:
    lines = described(Batch(parts=[X] * 250))
    assert lines[:2] == ["[0]: Batch", "[0].parts[0]: float32[2, 3]"]
    assert lines[-1] == "[0]: 150 more tensors, 900 elements"
    assert len(lines) == 1 + 100 + 1


def test_very_deep_and_long_objects_end() -> None:
    deep: Any = X
    for _ in range(1000):
        deep = Batch(inner=deep)
    assert described(deep) == ["[0]: Batch"]
    assert described(Batch(words=["a"] * 1_000_000, x=X)) == ["[0]: Batch", "[0].x: float32[2, 3]"]


def test_an_object_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    cache = transformers.DynamicCache()
    cache.update(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4), 0)
    assert described(transformers.BatchEncoding({"input_ids": IDS}), cache) == [
        "[0]: BatchEncoding",
        "[0]['input_ids']: int64[4]",
        "[1]: DynamicCache",
        "[1].layers[0].keys: float32[1, 2, 3, 4]",
        "[1].layers[0].values: float32[1, 2, 3, 4]",
    ]


class Layers(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(count))

    def forward(self, batch: Sample) -> Tensor:
        x = batch.image
        for layer in self.layers:
            x = layer(x)
        return x


def test_more_layers_on_a_smaller_batch_are_not_the_same() -> None:
    was, now = trace(Layers(1), Sample(torch.zeros(8, 3))), trace(Layers(4), Sample(torch.zeros(2, 3)))
    assert was.flops == now.flops
    assert was.inputs == ("batch: Sample", "batch.image: float32[8, 3]")
    assert now.inputs == ("batch: Sample", "batch.image: float32[2, 3]")
