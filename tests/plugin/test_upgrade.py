"""Baselines that an older release wrote: they gate what they hold, and an update fills in the rest."""

from __future__ import annotations

import json

import pytest

from tests.runs import load_torch

load_torch()

BODY = """
def test_net(flops):
    flops(Net({widths}), x())
"""
LAYERS = {f"blocks.{i}.{name}": 48 for i in range(2) for name in ("up", "down")}
SAME, WIDER = BODY.format(widths="(4, 4)"), BODY.format(widths="(4, 5)")
PENDING = "not accepted yet: the baseline is older than this metric"


@pytest.fixture
def baseline(pytester, run_inside):
    """A file as format 1 had it."""
    run_inside(SAME, "--flops-update").assert_outcomes(passed=1)
    path = pytester.path / "flops_baselines" / "test_it" / "test_net.json"
    now = model(path)
    old = {key: now[key] for key in ("formulas", "torch", "mode", "inputs")} | {
        "totals": {"flops": 192, "macs": 96, "params": 62},
        "modules": {"": 192, "blocks": 192} | {f"blocks.{i}": 96 for i in range(2)} | LAYERS,
        "functions": {},
    }
    path.write_text(json.dumps({"format": 1, "test": "test_it.py::test_net", "models": {"Net": old}}))
    return path


def model(path):
    return json.loads(path.read_text())["models"]["Net"]


def test_it_passes_and_the_summary_lists_what_is_not_accepted_yet(run_inside, baseline):
    before = baseline.read_text()
    result = run_inside(SAME)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "flops: not compared: write a baseline with --flops-update",
            f"  test_it.py::test_net Net: * bytes of peak memory {PENDING}",
        ]
    )
    assert baseline.read_text() == before


def test_it_still_gates_what_it_holds(run_inside, baseline):
    result = run_inside(WIDER)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["Net: at most * FLOPs (baseline), now *, in blocks.1.*"])


def test_a_strict_run_fails_and_says_how_to_accept_it(run_inside, baseline):
    result = run_inside(SAME, "--flops-strict")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            f"Net: * bytes of peak memory {PENDING} (strict)",
            "Accept it: pytest test_it.py::test_net --flops-update",
        ]
    )


@pytest.mark.parametrize("mode", ["", "=new", "=changed", "=all"])
def test_every_update_fills_it_in_and_keeps_what_other_machines_measured(run_inside, baseline, mode):
    data = json.loads(baseline.read_text())
    data["models"]["Net"]["measured"] = kept = {"H100": {"cuda_memory": 4096}}
    baseline.write_text(json.dumps(data))
    result = run_inside(SAME, f"--flops-update{mode}")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["  test_it.py::test_net Net: * bytes of peak memory new; written in the present format"]
    )
    assert json.loads(baseline.read_text())["format"] == 3
    assert model(baseline)["peak_memory"]["bytes"] > 0
    assert model(baseline)["measured"] == kept
    run_inside(SAME, "--flops-strict").assert_outcomes(passed=1)


def test_a_total_of_a_newer_release_is_an_error_that_says_so(run_inside, baseline):
    data = json.loads(baseline.read_text())
    data["models"]["Net"]["totals"]["watts"] = 3
    baseline.write_text(json.dumps(data))
    for options in ([], ["--flops-update"]):
        result = run_inside(SAME, *options)
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(["*test_net.json has the unknown total*written by a newer pytest-flops*"])
