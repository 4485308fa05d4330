"""Which module is which, where layers were put in, taken out or renamed."""

from __future__ import annotations

import random

import pytest

from pytest_flops.budgets.alignment import align, by_path
from pytest_flops.budgets.baseline import Module


def model(*children: str, inside: str = "seq"):
    """Return a model whose Sequential holds these layers: "Linear 5" costs 5 FLOPs."""
    layers = {f"{inside}.{i}": Module(*_layer(child)) for i, child in enumerate(children)}
    return {"": Module("Net", {}), inside: Module("Sequential", {})} | layers


def _layer(text: str) -> tuple[str, dict[str, int]]:
    kind, _, flops = text.partition(" ")
    return kind, {"flops": int(flops)} if flops else {}


def shifts(aligned):
    return {now: was for now, was in aligned.origin.items() if now != was}


def moved(first: int, last: int, by: int):
    return {f"seq.{i + by}": f"seq.{i}" for i in range(first, last + 1)}


EQUAL = ["Linear 5"] * 6


@pytest.mark.parametrize(
    ("was", "now", "new", "gone", "origin"),
    [
        (EQUAL, EQUAL, (), (), {}),
        (EQUAL, [*EQUAL[:2], "LayerNorm 3", *EQUAL[2:]], ("seq.2",), (), moved(2, 5, 1)),
        (EQUAL, ["LayerNorm 3", *EQUAL], ("seq.0",), (), moved(0, 5, 1)),
        (EQUAL, [*EQUAL, "LayerNorm 3"], ("seq.6",), (), {}),
        (EQUAL, EQUAL[:4], (), ("seq.4", "seq.5"), {}),
        (["A 1", "B 2", "C 3"], ["A 1", "C 3"], (), ("seq.1",), {"seq.1": "seq.2"}),
        (["A 1", "B 2", "C 3"], ["A 1", "X 9", "B 2", "X 9", "C 3"], ("seq.1", "seq.3"), (),
         {"seq.2": "seq.1", "seq.4": "seq.2"}),
        (["A 1", "B 2", "C 3"], ["A 1", "B 4", "C 3"], (), (), {}),  # widened in place
        (["A 1", "B 2", "C 3"], ["X 9", "A 1", "B 4", "C 3"], ("seq.0",), (),
         {"seq.1": "seq.0", "seq.2": "seq.1", "seq.3": "seq.2"}),  # widened, and one put in front
        (["A 1", "Identity", "C 3"], ["A 1", "C 3"], (), ("seq.1",), {"seq.1": "seq.2"}),
        (["N 3", *EQUAL[:3]], [*EQUAL[:3], "N 3"], ("seq.3",), ("seq.0",), moved(1, 3, -1)),  # to the end
        (["A 1", "B 2", "C 3"], ["B 2", "C 3", "D 4"], ("seq.2",), ("seq.0",), moved(1, 2, -1)),
        (["ReLU 3", "Linear 5"], ["GELU 9", "Linear 5"], (), (), {}),  # another in its place
        (["ReLU 3", "A 5"], ["X 1", "GELU 9", "A 5"], ("seq.0", "seq.1"), ("seq.0",), {"seq.2": "seq.1"}),
        (["A 1", "A 2", "A 4"], ["A 2", "A 4", "A 8"], (), (), {}),  # all twice as wide, none gone
        (["A 1", "B 2", "C 3", "D 4"], ["A 1", "X 9", "C 3"], (), ("seq.3",), {}),  # swapped, and one less
    ],
)  # fmt: skip
def test_a_sequence_is_aligned_as_a_diff_does(was, now, new, gone, origin):
    aligned = align(model(*now), model(*was))
    assert (aligned.new, aligned.gone, shifts(aligned)) == (new, gone, origin)


def test_sequences_inside_sequences_follow_their_parents():
    was = {"": Module("Net", {}), "0": Module("Block", {"flops": 7}), "0.0": Module("Linear", {"flops": 7})}
    now = {"": Module("Net", {}), "0": Module("Stem", {"flops": 1}), "1": Module("Block", {"flops": 8}),
           "1.0": Module("Norm", {"flops": 1}), "1.1": Module("Linear", {"flops": 7})}  # fmt: skip
    aligned = align(now, was)
    assert shifts(aligned) == {"1": "0", "1.1": "0.0"}
    assert aligned.new == ("0", "1.0")


def test_a_layer_in_one_of_several_lists_moves_its_neighbours_alone():
    def blocks(*sizes: int):
        found = {"": Module("Net", {}), "blocks": Module("ModuleList", {})}
        for i, size in enumerate(sizes):
            found[f"blocks.{i}"] = Module("Sequential", {"flops": 5 * size})
            found |= {f"blocks.{i}.{j}": Module("Linear", {"flops": 5}) for j in range(size)}
        return found

    aligned = align(blocks(2, 3, 2), blocks(2, 2, 2))
    assert (aligned.new, aligned.gone, shifts(aligned)) == (("blocks.1.2",), (), {})
    aligned = align(blocks(3, 2, 4), blocks(2, 4))
    assert (aligned.new, aligned.gone) == (("blocks.0",), ())
    assert shifts(aligned) == {"blocks.1": "blocks.0", "blocks.2": "blocks.1"} | {
        f"blocks.{i}.{j}": f"blocks.{i - 1}.{j}" for i, size in ((1, 2), (2, 4)) for j in range(size)
    }


def test_whatever_changed_every_module_is_told_once():
    draw = random.Random(12)
    kinds = ["Linear 5", "Linear 5", "Linear 7", "Norm 3", "Identity"]
    for _ in range(300):
        was, now = (model(*draw.choices(kinds, k=draw.randrange(9))) for _ in range(2))
        aligned = align(now, was)
        assert sorted([*aligned.origin, *aligned.new]) == sorted(now)
        assert sorted([*aligned.origin.values(), *aligned.gone]) == sorted(was)
        order = [aligned.origin[path] for path in now if path in aligned.origin]
        assert order == sorted(order), "layers keep their order"


def test_a_name_that_is_gone_is_the_new_one_that_costs_the_same():
    was = {"": Module("Net", {}), "fc": Module("Linear", {"flops": 5}), "act": Module("ReLU", {})}
    now = {"": Module("Net", {}), "head": Module("Linear", {"flops": 5}), "relu": Module("ReLU", {})}
    aligned = align(now, was)
    assert aligned.renamed == (("fc", "head"),)
    assert (aligned.new, aligned.gone) == (("relu",), ("act",)), "what costs nothing proves nothing"


def test_without_types_only_paths_tell():
    aligned = by_path(["", "a.1"], ["", "a.0"])
    assert shifts(aligned) == {}
    assert set(aligned.origin) == {"", "a.0", "a.1"}
