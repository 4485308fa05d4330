"""Equal layers on one line, and back."""

from __future__ import annotations

import random

import pytest

from pytest_flops.budgets.folding import fold, unfold


@pytest.mark.parametrize(
    ("values", "folded"),
    [
        ({"": 1, "a": 2}, {"": 1, "a": 2}),
        ({"a.0": 1, "a.1": 1, "a.2": 1}, {"a.[0-2]": 1}),
        ({"a.0": 1, "a.1": 1, "a.2": 2, "a.3": 1}, {"a.[0-1]": 1, "a.2": 2, "a.3": 1}),
        ({"0": 1, "0.x": 2, "1": 1, "1.x": 2}, {"[0-1]": 1, "[0-1].x": 2}),
        ({"0": 1, "0.x": 2, "1": 1, "1.x": 3}, {"0": 1, "0.x": 2, "1": 1, "1.x": 3}),
        ({"0": 1, "0.x": 2, "1": 1}, {"0": 1, "0.x": 2, "1": 1}),
        ({f"{i}.{j}": 5 for i in range(2) for j in range(3)}, {"[0-1].[0-2]": 5}),
        ({"1": 1, "0": 1}, {"1": 1, "0": 1}),  # not in order
        ({"0": 1, "2": 1}, {"0": 1, "2": 1}),  # not one after the other
        ({"00": 1, "01": 1}, {"00": 1, "01": 1}),  # no numbers as people write them
        ({"[0-1]": 1, "[x": 2}, {"[[0-1]": 1, "[[x": 2}),
        ({"a": {"add": {"ops": 1}}, "a.9": {}, "a.10": {}}, {"a": {"add": {"ops": 1}}, "a.[9-10]": {}}),
    ],
)
def test_folded_and_back(values, folded):
    assert fold(values) == folded
    assert list(fold(values)) == list(folded)
    assert unfold(folded) == values
    assert fold(unfold(folded)) == folded


@pytest.mark.parametrize(
    "folded",
    [
        {"[0-999999999]": 1},
        {"[0-9999].[0-9999]": 1},
        {"[3-1]": 1},
        {"[0-2]": 1, "1": 1},
        {"[0-2]": 1, "[2-4]": 1},
        {"a.[0-1].[0-1]": 1, "a.1.0": 2},
    ],
)
def test_what_no_run_writes_is_refused(folded):
    with pytest.raises(ValueError, match=r"\d"):
        unfold(folded)


def test_whatever_is_folded_comes_back():
    draw = random.Random(12)
    names = ["0", "1", "2", "3", "10", "01", "a", "[0-1]", "[", "[[2", "x y", "-1", "\u0661"]
    for _ in range(300):
        depths = [draw.randrange(4) for _ in range(draw.randrange(20))]
        paths = [".".join(draw.choices(names[: draw.choice([3, 13])], k=depth)) for depth in depths]
        values = {path: draw.choice([1, 1, 2, {"type": "Linear"}]) for path in paths}
        assert unfold(fold(values)) == values


@pytest.mark.parametrize("layers", [2, 10, 80, 1000])
def test_many_equal_layers_take_as_many_lines_as_one(layers):
    inside = ["", ".attn", ".attn.q_proj", ".mlp.experts.0", ".mlp.experts.1"]
    values = {f"layers.{i}{path}": len(path) for i in range(layers) for path in inside}
    last = layers - 1
    assert fold(values) == {
        f"layers.[0-{last}]": 0,
        f"layers.[0-{last}].attn": 5,
        f"layers.[0-{last}].attn.q_proj": 12,
        f"layers.[0-{last}].mlp.experts.[0-1]": 14,
    }
    assert unfold(fold(values)) == values
