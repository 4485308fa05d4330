"""The examples, run as the README says, and what the terminal says when somebody changes a real model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import load_torch

load_torch()
import timm  # noqa: E402, F401  # the inner runs find it imported

ROOT = Path(__file__).parent.parent


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*.json")}


def test_examples_pass_as_they_are():
    before = files(ROOT / "examples")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "examples", "-p", "no:cacheprovider", "--flops-strict"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    verdict = re.search(r"ends with `(.*?)`", (ROOT / "README.md").read_text())
    assert verdict is not None
    assert f"flops: {verdict[1]}" in done.stdout.splitlines()
    for trouble in ("without a formula", "obsolete", "updated"):
        assert trouble not in done.stdout
    assert files(ROOT / "examples") == before


VIT = """
import timm
import torch
from torch import nn


def build():
    model = timm.create_model("vit_base_patch16_224")
    {change}
    return model


def test_vit(flops):
    with torch.device("meta"):
        flops(build(), torch.empty(1, 3, 224, 224))
"""


@pytest.fixture
def after(pytester):
    """Return what pytest prints when a ViT with an accepted baseline is changed."""

    def run(change: str, *args: str) -> pytest.RunResult:
        pytester.makepyfile(test_vit=VIT.format(change="pass"))
        pytester.runpytest_inprocess("--flops-update").assert_outcomes(passed=1)
        pytester.makepyfile(test_vit=VIT.format(change=change))
        return pytester.runpytest_inprocess(*args)

    return run


def failure(result: pytest.RunResult) -> str:
    """Return the text of the failure: from under its title to the command that accepts it."""
    lines = [line.rstrip() for line in result.outlines]
    start = next(i for i, line in enumerate(lines) if line.strip("_") == " test_vit ")
    end = next(i for i, line in enumerate(lines) if i > start and line.startswith("Accept it: "))
    return "\n".join(lines[start + 1 : end + 1])


def test_a_wider_layer_in_one_block(after):
    result = after("model.blocks[3].mlp = timm.layers.Mlp(768, 3328)")
    assert (
        failure(result)
        == """\
VisionTransformer: at most 35,168,752,224 FLOPs (baseline), now 35,323,729,760: +154,977,536 (+0.44%), in \
blocks.3.mlp.fc1 and 2 more places
VisionTransformer: at most 17,563,828,224 MACs (baseline), now 17,641,291,776: +77,463,552 (+0.44%), in \
blocks.3.mlp.fc1 and 1 more place
VisionTransformer: at most 86,567,656 params (baseline), now 86,961,128: +393,472 (+0.45%), in \
blocks.3.mlp.fc1 and 1 more place
VisionTransformer: at most 346,270,624 bytes (330.23 MiB) of parameter memory (baseline), now 347,844,512 \
(331.73 MiB): +1,573,888 (+0.45%), in blocks.3.mlp.fc1 and 1 more place
VisionTransformer: at most 627,073,856 bytes (598.02 MiB) of memory traffic (baseline), now 629,454,656 \
(600.29 MiB): +2,380,800 (+0.38%), in blocks.3.mlp.fc1 and 2 more places
VisionTransformer: at most 7,262,208 bytes (6.93 MiB) of peak memory (baseline), now 7,665,664 (7.31 \
MiB): +403,456 (+5.56%), at blocks.3.mlp.act, for blocks.3.mlp.fc1: 0 -> 2,622,464 bytes alive then

module            type or function    node              FLOPs                                  memory traffic                     params
----------------  ------------------  ----------------  -------------------------------------  ---------------------------------  -------------------------------
blocks.3.mlp.fc1  Linear              blocks_3_mlp_fc1  929,562,624 -> 1,007,026,176 (+8.33%)  12,475,392 -> 13,464,576 (+7.93%)  2,362,368 -> 2,559,232 (+8.33%)
blocks.3.mlp.fc2  Linear              blocks_3_mlp_fc2  929,562,624 -> 1,007,026,176 (+8.33%)  12,466,176 -> 13,454,336 (+7.93%)  2,360,064 -> 2,556,672 (+8.33%)
blocks.3.mlp.act  GELU                blocks_3_mlp_act  605,184 -> 655,616 (+8.33%)            4,841,472 -> 5,244,928 (+8.33%)

made by           type    bytes alive at the peak
----------------  ------  -------------------------
blocks.3.mlp.fc1  Linear  0 -> 2,622,464 (new)
blocks.3.mlp.act  GELU    0 -> 2,622,464 (new)
blocks.1.mlp.fc1  Linear  2,420,736 -> 0 (gone)
blocks.1.mlp.act  GELU    2,420,736 -> 0 (gone)
blocks.[2-3] x2   Block   0 -> 605,184 (new)
... and 3 more modules; -vv shows all.

VisionTransformer (eval): 35,323,729,760 FLOPs, 17,641,291,776 MACs, 86,961,128 params, 331.73 MiB of parameter memory, 600.29 MiB of memory traffic, 125 ops, 7.31 MiB of peak memory

Accept it: pytest test_vit.py::test_vit --flops-update"""  # noqa: E501
    )


def test_an_addition_in_forward(after):
    result = after(
        """
    class VisionTransformer(type(model)):
        def forward(self, x):
            x = super().forward(x)
            x += 1.
            return x
    model.__class__ = VisionTransformer"""
    )
    assert (
        failure(result)
        == """\
VisionTransformer: at most 35,168,752,224 FLOPs (baseline), now 35,168,753,224: +1,000 (+<0.01%), in \
(model): add
VisionTransformer: at most 627,073,856 bytes (598.02 MiB) of memory traffic (baseline), now 627,081,856 \
(598.03 MiB): +8,000 (+<0.01%), in (model): add
VisionTransformer: at most 125 ops (baseline), now 126: +1 (+0.80%), in (model): add

module    type or function    node         FLOPs                        memory traffic                   ops
--------  ------------------  -----------  ---------------------------  -------------------------------  -----------------
(model)   add                 add, add_25  151,296 -> 152,296 (+0.66%)  1,815,552 -> 1,823,552 (+0.44%)  1 -> 2 (+100.00%)

VisionTransformer (eval): 35,168,753,224 FLOPs, 17,563,828,224 MACs, 86,567,656 params, 330.23 MiB of parameter memory, 598.03 MiB of memory traffic, 126 ops, 6.93 MiB of peak memory

Accept it: pytest test_vit.py::test_vit --flops-update"""  # noqa: E501
    )


def test_a_new_head(after):
    result = after("model.reset_classifier(21843)")
    assert (
        failure(result)
        == """\
VisionTransformer: at most 35,168,752,224 FLOPs (baseline), now 35,200,767,072: +32,014,848 (+0.09%), in \
head
VisionTransformer: at most 17,563,828,224 MACs (baseline), now 17,579,835,648: +16,007,424 (+0.09%), in head
VisionTransformer: at most 86,567,656 params (baseline), now 102,595,923: +16,028,267 (+18.52%), in head
VisionTransformer: at most 346,270,624 bytes (330.23 MiB) of parameter memory (baseline), now 410,383,692 \
(391.37 MiB): +64,113,068 (+18.52%), in head
VisionTransformer: at most 627,073,856 bytes (598.02 MiB) of memory traffic (baseline), now 691,270,296 \
(659.25 MiB): +64,196,440 (+10.24%), in head

module    type or function    node    FLOPs                                 memory traffic                        params
--------  ------------------  ------  ------------------------------------  ------------------------------------  ----------------------------------
head      Linear              head    1,536,000 -> 33,550,848 (+2,084.30%)  3,083,072 -> 67,279,512 (+2,082.22%)  769,000 -> 16,797,267 (+2,084.30%)

VisionTransformer (eval): 35,200,767,072 FLOPs, 17,579,835,648 MACs, 102,595,923 params, 391.37 MiB of parameter memory, 659.25 MiB of memory traffic, 125 ops, 6.93 MiB of peak memory

Accept it: pytest test_vit.py::test_vit --flops-update"""  # noqa: E501
    )


def test_a_change_of_every_block_is_a_row(after):
    change = "model = timm.create_model('vit_base_patch16_224', mlp_ratio=4.5)"
    text = failure(after(change))
    assert "+2,789,595,648 (+7.93%), in blocks.[0-11].mlp.fc1 x12 and 2 more places" in text
    assert text.count("929,562,624 -> 1,045,757,952 (+12.50%) each") == 2
    assert len(text.splitlines()) < 25


def test_a_removed_layer(after):
    passed = after("del model.blocks[7]")
    passed.assert_outcomes(passed=1)
    first = passed.outlines.index("flops: improved: lock it in with --flops-update")
    assert passed.outlines[first + 1].startswith(
        "  test_vit.py::test_vit VisionTransformer: 35,168,752,224 -> 32,257,481,496 FLOPs: -2,911,270,728 "
        "(-8.28%), 17,563,828,224 -> 16,109,873,664 MACs: -1,453,954,560 (-8.28%), 86,567,656 -> 79,479,784 "
        "params: -7,087,872 (-8.19%), "
    )
    assert passed.outlines[first + 1].endswith(", in blocks.11 (gone Block)"), "equal blocks: one is as good"
    strict = after("del model.blocks[7]", "--flops-strict")
    strict.assert_outcomes(failed=1)
    assert failure(strict).startswith(
        "VisionTransformer: at least 35,168,752,224 FLOPs (baseline, strict), now 32,257,481,496: "
        "-2,911,270,728 (-8.28%), in blocks.11 (gone Block)\n"
    )
