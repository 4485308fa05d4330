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
    """Return the text of the failure: from under its title to the section with the nodes."""
    lines = [line.rstrip() for line in result.outlines]
    start = next(i for i, line in enumerate(lines) if line.strip("_") == " test_vit ")
    end = next(i for i, line in enumerate(lines) if "flops: nodes of" in line)
    return "\n".join(lines[start + 1 : end])


def nodes(result: pytest.RunResult) -> list[str]:
    """Return the names in the node table of a failure."""
    lines = result.outlines
    rule = [i for i, line in enumerate(lines) if line.startswith("====") and "  ==" in line]
    return [line.split()[0] for line in lines[rule[1] + 1 : rule[2]]]


def test_a_wider_layer_in_one_block(after):
    result = after("model.blocks[3].mlp = timm.layers.Mlp(768, 3328)")
    assert (
        failure(result)
        == """\
VisionTransformer: at most 35,168,752,224 FLOPs (baseline), now 35,323,729,760: +154,977,536 (+0.44%), \
in blocks.3.mlp.fc1 and 2 more modules
VisionTransformer: at most 17,563,828,224 MACs (baseline), now 17,641,291,776: +77,463,552 (+0.44%)
VisionTransformer: at most 86,567,656 params (baseline), now 86,961,128: +393,472 (+0.45%)
VisionTransformer: at most 7,262,208 bytes (6.93 MiB) of peak memory (baseline), now 7,665,664 (7.31 MiB): \
+403,456 (+5.56%), at blocks.3.mlp.act

module            type       baseline            now  change
----------------  ------  -----------  -------------  --------------------
blocks.3.mlp.fc1  Linear  929,562,624  1,007,026,176  +77,463,552 (+8.33%)
blocks.3.mlp.fc2  Linear  929,562,624  1,007,026,176  +77,463,552 (+8.33%)
blocks.3.mlp.act  GELU        605,184        655,616  +50,432 (+8.33%)

module            type    peak at           bytes alive
----------------  ------  ----------------  --------------------
blocks.3.mlp.act  GELU    blocks_3_mlp_act  7,665,664 (7.31 MiB)

Accept it: pytest test_vit.py::test_vit --flops-update"""
    )
    assert {"blocks_3_mlp_fc1", "blocks_3_mlp_act", "blocks_3_mlp_fc2"} < set(nodes(result))


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
VisionTransformer: at most 35,168,752,224 FLOPs (baseline), now 35,168,753,224: +1,000 (+<0.01%), in (model)

module    type                     baseline             now  change
--------  -----------------  --------------  --------------  ----------------
(model)   VisionTransformer  35,168,752,224  35,168,753,224  +1,000 (+<0.01%)

function    in       nodes          baseline      now  change
----------  -------  -----------  ----------  -------  ---------------
add         (model)  add, add_25     151,296  152,296  +1,000 (+0.66%)

Accept it: pytest test_vit.py::test_vit --flops-update"""
    )
    assert nodes(result)[-1] == "add_25"


def test_a_new_head(after):
    result = after("model.reset_classifier(21843)")
    assert (
        failure(result)
        == """\
VisionTransformer: at most 35,168,752,224 FLOPs (baseline), now 35,200,767,072: +32,014,848 (+0.09%), in head
VisionTransformer: at most 17,563,828,224 MACs (baseline), now 17,579,835,648: +16,007,424 (+0.09%)
VisionTransformer: at most 86,567,656 params (baseline), now 102,595,923: +16,028,267 (+18.52%)

module    type      baseline         now  change
--------  ------  ----------  ----------  ------------------------
head      Linear   1,536,000  33,550,848  +32,014,848 (+2,084.30%)

Accept it: pytest test_vit.py::test_vit --flops-update"""
    )
    assert nodes(result)[-1] == "head"


def test_a_change_of_every_block_is_cut_to_the_largest(after):
    change = "model = timm.create_model('vit_base_patch16_224', mlp_ratio=4.5)"
    text = failure(after(change))
    assert "+2,789,595,648 (+7.93%), in blocks.0.mlp.fc1 and 35 more modules" in text
    assert "... and 26 more modules; -vv shows all." in text
    assert text.count("+116,195,328 (+12.50%)") == 10
    whole = failure(after(change, "-vv"))
    assert whole.count("+116,195,328 (+12.50%)") == 24
    assert "-vv" not in whole


def test_a_removed_layer(after):
    passed = after("del model.blocks[7]")
    passed.assert_outcomes(passed=1)
    first = passed.outlines.index("flops: improved: lock it in with --flops-update")
    assert passed.outlines[first + 1] == (
        "  test_vit.py::test_vit VisionTransformer: 35,168,752,224 -> 32,257,481,496 FLOPs: -2,911,270,728 "
        "(-8.28%), 17,563,828,224 -> 16,109,873,664 MACs: -1,453,954,560 (-8.28%), 86,567,656 -> 79,479,784 "
        "params: -7,087,872 (-8.19%)"
    )
    strict = after("del model.blocks[7]", "--flops-strict")
    strict.assert_outcomes(failed=1)
    assert failure(strict).startswith(
        "VisionTransformer: at least 35,168,752,224 FLOPs (baseline, strict), now 32,257,481,496: "
        "-2,911,270,728 (-8.28%), in blocks.11.mlp.fc1 and 8 more modules\n"
    )
