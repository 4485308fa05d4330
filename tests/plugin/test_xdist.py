"""Several processes at once, and one that dies."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

from tests.runs import QUICK, load_torch

pytest.importorskip("xdist")
load_torch()

MANY = """
from net import *

@pytest.mark.parametrize("w", range(1, 201))
def test_net(flops, w):
    flops(Block(w), x())
"""


def test_200_tests_updated_by_four_workers(pytester, net):
    pytester.makepyfile(test_it=MANY)
    created = pytester.runpytest_subprocess(*QUICK, "-n4", "--flops-update")
    created.assert_outcomes(passed=200)
    assert "flops: 200 models in 200 tests within budget" in created.outlines
    assert "  ... and 180 more; -v shows all." in created.outlines
    folder = pytester.path / "flops_baselines" / "test_it"
    assert len(list(folder.iterdir())) == 200
    for width in range(1, 201):
        data = json.loads((folder / f"test_net[{width}].json").read_text())
        assert data["test"] == f"test_it.py::test_net[{width}]"
        assert data["models"]["Block"]["modules"][""]["flops"] == 24 * width
    passing = pytester.runpytest_inprocess(*QUICK)
    assert [line for line in passing.outlines if line.startswith("flops:")] == [
        "flops: 200 models in 200 tests within budget"
    ]


def test_workers_report_failures_wrong_markers_and_groups(pytester, net):
    pytester.makepyfile(
        test_it="import pytest\n"
        "@pytest.mark.xdist_group('g')\ndef test_never_run(flops): pass\n"
        "@pytest.mark.flops_budget(flop=1)\ndef test_wrong(flops): pass"
    )
    result = pytester.runpytest_subprocess(*QUICK, "-n1", "--dist=loadgroup")
    assert result.ret != 0
    assert sum("flops_budget does not know 'flop'" in line for line in result.outlines) == 1
    result.stdout.no_fnmatch_line("*INTERNALERROR*")
    pytester.makepyfile(
        test_it="from net import *\n@pytest.mark.xdist_group('g')\n"
        "def test_net(flops): flops(Block(2), x())\n"
    )
    failed = pytester.runpytest_subprocess(*QUICK, "-n1", "--dist=loadgroup")
    assert "Accept it: pytest test_it.py::test_net --flops-update" in failed.outlines
    assert any("flops: nodes of Block" in line for line in failed.outlines)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_killed_update_leaves_only_whole_files(pytester, net):
    endless = "    if w == 100:\n        import time\n        time.sleep(600)\n"
    pytester.makepyfile(test_it=MANY.replace("    flops(", f"{endless}    flops("))
    folder = pytester.path / "flops_baselines" / "test_it"
    run = subprocess.Popen(
        [sys.executable, "-m", "pytest", *QUICK, "-q", "--flops-update"], stdout=subprocess.DEVNULL
    )
    try:
        while len(list(folder.glob("*.json"))) < 20:
            assert run.poll() is None, "the run ended and wrote next to nothing"
            time.sleep(0.005)
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    written = list(folder.glob("*.json"))
    assert 20 <= len(written) < 100
    for path in written:
        assert json.loads(path.read_text())["test"] == f"test_it.py::{path.stem}"
