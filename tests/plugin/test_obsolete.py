"""Obsolete baselines: reported, and deleted on demand, only where everything ran."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs import QUICK, load_torch

load_torch()

TWO = """
def test_a(flops): flops(Block(2), x())
def test_b(flops): flops(Block(3), x())
"""
ONE = "def test_a(flops): flops(Block(2), x())\n"


@pytest.fixture
def stale(pytester, run_inside) -> Path:
    """Two tests with baselines, of which one is gone; return the baseline that nothing uses."""
    run_inside(TWO, "--flops-update").assert_outcomes(passed=2)
    pytester.makepyfile(test_it=f"from net import *\n\n{ONE}")
    return Path("flops_baselines", "test_it", "test_b.json")


def test_whole_passing_file_shows_what_nothing_uses(run_inside, stale):
    result = run_inside(None)
    assert "flops: obsolete baselines: delete them with --flops-prune" in result.outlines
    assert f"  {stale}" in result.outlines
    assert stale.exists()


@pytest.mark.parametrize("how", ["option", "ini"])
def test_prune_deletes_exactly_that(pytester, run_inside, stale, how):
    foreign = stale.with_name("notes.json")
    foreign.write_text('{"mine": true}')
    pytester.makeini(f"[pytest]\nflops_prune = {'true' if how == 'ini' else 'false'}")
    result = run_inside(None, *(["--flops-prune"] if how == "option" else []))
    assert "flops: obsolete baselines, deleted" in result.outlines
    assert sorted(path.name for path in stale.parent.iterdir()) == ["notes.json", "test_a.json"]


@pytest.mark.parametrize(
    ("extra", "args"),
    [
        ("def test_c(): assert 0", ()),
        ("def test_c(): pytest.skip('no')", ()),
        ("@pytest.mark.xfail\ndef test_c(): assert 0", ()),
        ("@pytest.fixture\ndef bad():\n    yield\n    assert 0\ndef test_c(bad): pass", ()),
        ("def test_c(): pass", ("-k", "test_a")),
        ("def test_c(): pass", ("--deselect", "test_it.py::test_c")),
        ("def test_c(): pass", ("test_it.py::test_a",)),
        ("def test_c(): pass", ("--collect-only",)),
        ("def test_c(): pass", ("--setup-plan",)),
        ("def test_0(): assert 0", ("-x",)),
        ("@pytest.mark.flops_budget(flops=-1)\ndef test_c(): pass", ("--continue-on-collection-errors",)),
    ],
)
def test_no_verdict_unless_everything_ran(run_inside, stale, extra, args):
    result = run_inside(f"{ONE}\n{extra}", "--flops-prune", *args)
    result.stdout.no_fnmatch_line("*obsolete*")
    assert stale.exists()


def test_no_verdict_on_a_run_of_the_last_failures(pytester, run_inside, stale):
    pytester.makepyfile(
        test_it=f"from net import *\n\n{ONE}\nimport os\ndef test_c(): assert 'GOOD' in os.environ"
    )
    cached = [arg for arg in QUICK if "cacheprovider" not in arg][1:]
    pytester.runpytest_inprocess(*cached)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOOD", "1")
        result = pytester.runpytest_inprocess(*cached, "--lf", "--flops-prune")
    result.assert_outcomes(passed=1)
    assert stale.exists()


def test_baseline_of_a_deleted_test_file(pytester, run_inside, stale):
    pytester.path.joinpath("test_it.py").rename("test_other.py")
    run_inside(None, "--flops-update", "test_other.py").assert_outcomes(passed=1)
    assert stale.exists()
    result = run_inside(None)
    assert f"  {stale}" in result.outlines
    assert f"  {stale.with_name('test_a.json')}" in result.outlines


def test_workers_together_see_what_is_unused(pytester, net, stale):
    result = pytester.runpytest_subprocess(*QUICK, "-n2", "--flops-prune")
    result.assert_outcomes(passed=1)
    assert f"  {stale}" in result.outlines
    assert not stale.exists()


def test_a_doctest_file_beside_a_test_module_proves_nothing_about_it(pytester, run_inside, stale):
    pytester.path.joinpath("test_it.txt").write_text(">>> 1 + 1\n2\n", encoding="utf-8")
    result = run_inside(None, "--flops-prune", "test_it.txt")
    result.assert_outcomes(passed=1)
    assert stale.exists()
    assert stale.with_name("test_a.json").exists()
