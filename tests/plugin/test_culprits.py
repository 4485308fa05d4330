"""Each kind of change in a repository of four models leads to its culprit in the first lines of a failure."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs import QUICK, load_torch

load_torch()

REPOSITORY = Path(__file__).parent / "repository"


@pytest.fixture
def changed(pytester, monkeypatch):
    """Accept what the models of the repository cost, and run its tests again after a change."""
    for name, source in (("nets.py", "nets.py"), ("test_models.py", "suite.py")):
        (pytester.path / name).write_text((REPOSITORY / source).read_text())

    def run(edit: str, *options: str):
        monkeypatch.setenv("EDIT", edit)
        return pytester.runpytest_inprocess(*QUICK, *options)

    run("", "--flops-update").assert_outcomes(passed=4)
    return run


EDITS = {
    "wider block": [
        "Lm: at most 2,387,712 FLOPs (baseline), now 2,916,096: +528,384 (+22.13%), in layers.[0-3].up "
        "x4 and 2 more places",
        "Lm: at most 1,179,648 MACs (baseline), now 1,441,792: +262,144 (+22.22%), in layers.[0-3].up x4 "
        "and 1 more place",
        "Lm: at most 36,928 params (baseline), now 45,248: +8,320 (+22.53%), in layers.[0-3].up x4 and 1 "
        "more place",
        "Lm: at most 147,712 bytes (144.25 KiB) of parameter memory (baseline), now 180,992 (176.75 "
        "KiB): +33,280 (+22.53%), in layers.[0-3].up x4 and 1 more place",
        "Lm: at most 577,536 bytes (564.00 KiB) of memory traffic (baseline), now 676,352 (660.50 KiB): "
        "+98,816 (+17.11%), in layers.[0-3].up x4 and 2 more places",
    ],
    "extra layer": [
        "Conv: at most 5,807,858 FLOPs (baseline), now 7,592,042: +1,784,184 (+30.72%), in blocks.3 (new "
        "Conv2d) and 2 more places, from (model): relu on",
        "Conv: at most 2,875,872 MACs (baseline), now 3,760,608: +884,736 (+30.76%), in blocks.3 (new "
        "Conv2d)",
        "Conv: at most 2,066 params (baseline), now 2,650: +584 (+28.27%), in blocks.3 (new Conv2d)",
        "Conv: at most 8,264 bytes (8.07 KiB) of parameter memory (baseline), now 10,600 (10.35 KiB): "
        "+2,336 (+28.27%), in blocks.3 (new Conv2d)",
        "Conv: at most 926,384 bytes (904.67 KiB) of memory traffic (baseline), now 1,195,504 (1.14 "
        "MiB): +269,120 (+29.05%), in blocks.3 (new Conv2d) and 2 more places, from (model): relu on",
    ],
    "stride": [
        "Conv: at most 5,807,858 FLOPs (baseline), now 23,241,458: +17,433,600 (+300.17%), in "
        "blocks.[0-2] x3 and 4 more places, from stem on",
        "Conv: at most 2,875,872 MACs (baseline), now 11,502,048: +8,626,176 (+299.95%), in blocks.[0-2] "
        "x3 and 1 more place, from stem on",
        "Conv: at most 926,384 bytes (904.67 KiB) of memory traffic (baseline), now 3,482,288 (3.32 "
        "MiB): +2,555,904 (+275.90%), in blocks.[0-2] x3 and 4 more places, from stem on",
        "Conv: at most 133,928 bytes (130.79 KiB) of peak memory (baseline), now 527,144 (514.79 KiB): "
        "+393,216 (+293.60%), at blocks.2, for (model): 98,384 -> 393,296 bytes alive then",
    ],
    "head dimension": [
        "Lm: at most 2,387,712 FLOPs (baseline), now 3,041,024: +653,312 (+27.36%), in "
        "layers.[0-3].attn.qkv x4 and 2 more places",
        "Lm: at most 1,179,648 MACs (baseline), now 1,507,328: +327,680 (+27.78%), in "
        "layers.[0-3].attn.qkv x4 and 2 more places",
        "Lm: at most 36,928 params (baseline), now 45,312: +8,384 (+22.70%), in layers.[0-3].attn.qkv x4 "
        "and 1 more place",
        "Lm: at most 147,712 bytes (144.25 KiB) of parameter memory (baseline), now 181,248 (177.00 "
        "KiB): +33,536 (+22.70%), in layers.[0-3].attn.qkv x4 and 1 more place",
        "Lm: at most 577,536 bytes (564.00 KiB) of memory traffic (baseline), now 676,608 (660.75 KiB): "
        "+99,072 (+17.15%), in layers.[0-3].attn.qkv x4 and 2 more places",
    ],
    "dropout added": [
        "Mlp: at most 201,728 FLOPs (baseline), now 202,240: +512 (+0.25%), in refine.12 (new Dropout)",
        "Mlp: at most 77,928 bytes (76.10 KiB) of memory traffic (baseline), now 79,976 (78.10 KiB): "
        "+2,048 (+2.63%), in refine.12 (new Dropout)",
        "Mlp: at most 13 ops (baseline), now 14: +1 (+7.69%), in refine.12 (new Dropout)",
        "module     type or function    node       FLOPs           memory traffic    ops",
    ],
    "model cast": [
        "Mlp: at most 52,008 bytes (50.79 KiB) of parameter memory (baseline), now 104,016 (101.58 KiB): "
        "+52,008 (+100.00%), in refine.[0-11] x12 and 1 more place",
        "Mlp: at most 77,928 bytes (76.10 KiB) of memory traffic (baseline), now 158,928 (155.20 KiB): "
        "+81,000 (+103.94%), in refine.[0-11] x12 and 2 more places, from (model): to on",
        "Mlp: at most 13 ops (baseline), now 14: +1 (+7.69%), in (model): to",
        "Mlp: at most 2,048 bytes (2.00 KiB) of peak memory (baseline), now 6,144 (6.00 KiB): +4,096 "
        "(+200.00%), at refine.1, for (model): 0 -> 2,048 bytes alive then",
    ],
    "cast and back": [
        "Mlp: at most 77,928 bytes (76.10 KiB) of memory traffic (baseline), now 84,072 (82.10 KiB): "
        "+6,144 (+7.88%), in (model): double and 1 more place",
        "Mlp: at most 13 ops (baseline), now 15: +2 (+15.38%), in (model): double and 1 more place",
        "Mlp: at most 2,048 bytes (2.00 KiB) of peak memory (baseline), now 4,096 (4.00 KiB): +2,048 "
        "(+100.00%), at float_1 in (model), for (model): 0 -> 3,072 bytes alive then",
        "module    type or function    node     memory traffic    ops",
    ],
    "input size": [
        "Conv: not comparable with its baseline, which has other inputs",
        "  baseline: x: float32[2, 3, 32, 32]",
        "  now:      x: float32[2, 3, 48, 48]",
        "Accept it: pytest test_models.py::test_conv --flops-update",
    ],
    "loop twice": [
        "Mixer: at most 34,816 FLOPs (baseline), now 68,608: +33,792 (+97.06%), in cell and 1 more place",
        "Mixer: at most 16,384 MACs (baseline), now 32,768: +16,384 (+100.00%), in cell",
        "Mixer: at most 25,728 bytes (25.12 KiB) of memory traffic (baseline), now 43,200 (42.19 KiB): "
        "+17,472 (+67.91%), in cell and 1 more place",
        "Mixer: at most 3 ops (baseline), now 5: +2 (+66.67%), in cell and 1 more place",
    ],
    "contiguous": [
        "Lm: at most 577,536 bytes (564.00 KiB) of memory traffic (baseline), now 708,608 (692.00 KiB): "
        "+131,072 (+22.70%), in layers.[0-3].attn x4: contiguous and 1 more place",
        "Lm: at most 34 ops (baseline), now 50: +16 (+47.06%), in layers.[0-3].attn x4: contiguous and 1 "
        "more place",
        "Lm: at most 24,576 bytes (24.00 KiB) of peak memory (baseline), now 28,672 (28.00 KiB): +4,096 "
        "(+16.67%), at contiguous_2 in layers.0.attn, for layers.0.attn: 4,096 -> 12,288 bytes alive then",
        "module                type or function    node                                    memory "
        "traffic          ops",
    ],
    "clone": [
        "Conv: at most 926,384 bytes (904.67 KiB) of memory traffic (baseline), now 959,152 (936.67 "
        "KiB): +32,768 (+3.54%), in (model): clone",
        "Conv: at most 26 ops (baseline), now 27: +1 (+3.85%), in (model): clone",
        "module    type or function    node    memory traffic     ops",
        "--------  ------------------  ------  -----------------  ------------",
    ],
    "repeat": [
        "Mixer: at most 25,728 bytes (25.12 KiB) of memory traffic (baseline), now 33,920 (33.12 KiB): "
        "+8,192 (+31.84%), in (model): repeat and 1 more place",
        "Mixer: at most 3 ops (baseline), now 4: +1 (+33.33%), in (model): repeat",
        "Mixer: at most 12,288 bytes (12.00 KiB) of peak memory (baseline), now 16,384 (16.00 KiB): "
        "+4,096 (+33.33%), at tanh in (model), for (model): 8,192 -> 12,288 bytes alive then",
        "module    type or function    node    memory traffic             ops",
    ],
    "naive attention": [
        "Lm: at most 577,536 bytes (564.00 KiB) of memory traffic (baseline), now 708,608 (692.00 KiB): "
        "+131,072 (+22.70%), in layers.[0-3].attn x4: matmul and 3 more places, from layers.[0-3].attn "
        "x4: mul on",
        "Lm: at most 34 ops (baseline), now 50: +16 (+47.06%), in layers.[0-3].attn x4: matmul and 3 "
        "more places, from layers.[0-3].attn x4: mul on",
        "Lm: at most 24,576 bytes (24.00 KiB) of peak memory (baseline), now 32,768 (32.00 KiB): +8,192 "
        "(+33.33%), at matmul in layers.0.attn, for layers.0.attn: 4,096 -> 16,384 bytes alive then",
        "module                type or function              node              memory traffic           ops",
    ],
    "vocabulary": [
        "Lm: at most 36,928 params (baseline), now 193,728: +156,800 (+424.61%), in embed",
        "Lm: at most 147,712 bytes (144.25 KiB) of parameter memory (baseline), now 774,912 (756.75 "
        "KiB): +627,200 (+424.61%), in embed",
        "module    type or function    node    params                         parameter memory",
        "--------  ------------------  ------  -----------------------------  ------------------------------",
    ],
    "layer norm inserted": [
        "Mlp: at most 201,728 FLOPs (baseline), now 202,752: +1,024 (+0.51%), in refine.2 (new LayerNorm)",
        "Mlp: at most 13,002 params (baseline), now 13,066: +64 (+0.49%), in refine.2 (new LayerNorm)",
        "Mlp: at most 52,008 bytes (50.79 KiB) of parameter memory (baseline), now 52,264 (51.04 KiB): "
        "+256 (+0.49%), in refine.2 (new LayerNorm)",
        "Mlp: at most 77,928 bytes (76.10 KiB) of memory traffic (baseline), now 80,232 (78.35 KiB): "
        "+2,304 (+2.96%), in refine.2 (new LayerNorm)",
        "Mlp: at most 13 ops (baseline), now 14: +1 (+7.69%), in refine.2 (new LayerNorm)",
    ],
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_failure_begins_with_its_culprit(changed, edit):
    result = changed(edit)
    result.assert_outcomes(passed=3, failed=1)
    first = next(i for i, line in enumerate(result.outlines) if line.startswith("____"))
    text = result.outlines[first + 1 :]
    assert [line for line in text[:5] if line] == EDITS[edit]
    assert "".join(text).count("Accept it: ") == 1
    failure = text[: next(i for i, line in enumerate(text) if line.startswith(("====", "----")))]
    assert len(failure) <= 40


def test_a_removed_block_is_an_improvement_that_names_it(changed):
    result = changed("block removed")
    result.assert_outcomes(passed=4)
    (line,) = [line for line in result.outlines if "Conv:" in line]
    assert line.startswith(
        "  test_models.py::test_conv Conv: 5,807,858 -> 4,023,674 FLOPs: -1,784,184 (-30.72%)"
    )
    assert line.endswith(", in blocks.2 (gone Conv2d) and 2 more places")
    assert "flops: improved: lock it in with --flops-update" in result.outlines


def test_a_module_with_another_name_passes_and_is_listed(changed):
    result = changed("renamed")
    result.assert_outcomes(passed=4)
    assert "flops: moved without growth: accept it with --flops-update" in result.outlines
    line = "  test_models.py::test_mlp Mlp: the same cost in other places: fc is now classifier"
    assert line in result.outlines


def test_tests_that_fail_alike_are_one_line_and_one_command_accepts_them(changed, pytester):
    path = pytester.path / "test_models.py"
    path.write_text(
        path.read_text() + "\n\ndef test_eval(flops):\n    flops(Lm(), torch.zeros(1, 8).long())\n"
    )
    changed("", "--flops-update").assert_outcomes(passed=5)
    result = changed("vocabulary")
    result.assert_outcomes(passed=3, failed=2)
    at = result.outlines.index("flops: what grew")
    assert result.outlines[at + 1 : at + 3] == [
        "  embed +4,900.00% params: 2 tests",
        "  Accept it all: pytest test_models.py::test_eval test_models.py::test_lm --flops-update",
    ]
    changed("vocabulary", "test_models.py::test_eval", "test_models.py::test_lm", "--flops-update")
    changed("vocabulary").assert_outcomes(passed=5)
