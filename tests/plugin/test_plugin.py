"""The plugin in real runs of pytest: what passes, what fails, what it says, and what it writes."""

from __future__ import annotations

import json
import os
import re

import pytest

from tests.runs import QUICK, load_torch

load_torch()

COUNT = """
def test_net(flops):
    flops(Net(), x())
"""


def shown(result: pytest.RunResult, start: str, end: str) -> str:
    """Return the lines of a run from one that starts so to the last before one that starts so."""
    lines = [line.rstrip() for line in result.outlines]
    first = next(index for index, line in enumerate(lines) if line.startswith(start))
    last = next(index for index, line in enumerate(lines[first:], first) if line.startswith(end))
    return "\n".join(lines[first:last]).rstrip()


def files(pytester: pytest.Pytester) -> dict[str, bytes]:
    return {
        path.relative_to(pytester.path).as_posix(): path.read_bytes()
        for path in sorted(pytester.path.rglob("flops_baselines/**/*.*"))
    }


def baseline(pytester: pytest.Pytester, name: str = "test_net") -> dict:
    path = pytester.path / "flops_baselines" / "test_it" / f"{name}.json"
    return json.loads(path.read_text())


# The workflow -----------------------------------------------------------------------------------------------


def test_workflow_create_pass_grow_fail_accept_pass(pytester, run_inside):
    missing = run_inside(COUNT)
    missing.assert_outcomes(failed=1)
    assert shown(missing, "Net: no baseline", "----") == (
        "Net: no baseline in flops_baselines/test_it/test_net.json; now 192 FLOPs, 96 MACs, 62 params, "
        "248 bytes of parameter memory, 472 bytes of memory traffic, 4 ops, 80 bytes of peak memory\n\n"
        "Accept it: pytest test_it.py::test_net --flops-update"
    ).replace("/", os.sep)
    assert (
        "Net (eval): 192 FLOPs, 96 MACs, 62 params, 248 bytes of parameter memory, "
        "472 bytes of memory traffic, 4 ops, 80 bytes of peak memory"
    ) in missing.outlines
    assert files(pytester) == {}

    created = run_inside(None, "--flops-update", "test_it.py")
    created.assert_outcomes(passed=1)
    assert shown(created, "flops: 1 model", "====") == (
        "flops: 1 model in 1 test within budget\n"
        "flops: updated baselines\n"
        "  test_it.py::test_net Net: new, 192 FLOPs"
    )
    before = files(pytester)

    passing = run_inside(None)
    passing.assert_outcomes(passed=1)
    assert shown(passing, "flops:", "====") == "flops: 1 model in 1 test within budget"

    grown = run_inside(COUNT.replace("Net()", "Net(widths=(4, 6), shift=True)"))
    grown.assert_outcomes(failed=1)
    assert (
        shown(grown, "Net: at most", "flops:")
        == """\
Net: at most 192 FLOPs (baseline), now 246: +54 (+28.12%), in blocks.1.up and 2 more places
Net: at most 96 MACs (baseline), now 120: +24 (+25.00%), in blocks.1.up and 1 more place
Net: at most 62 params (baseline), now 76: +14 (+22.58%), in blocks.1.up and 1 more place
Net: at most 248 bytes of parameter memory (baseline), now 304: +56 (+22.58%), in blocks.1.up and 1 more \
place
Net: at most 472 bytes of memory traffic (baseline), now 608: +136 (+28.81%), in blocks.1.up and 2 more \
places
Net: at most 4 ops (baseline), now 5: +1 (+25.00%), in (model): add
Net: at most 80 bytes of peak memory (baseline), now 96: +16 (+20.00%), at blocks.1.down, for \
blocks.1.up: 32 -> 48 bytes alive then

module         type or function    node           FLOPs               memory traffic        params
-------------  ------------------  -------------  ------------------  --------------------  ------------------
blocks.1.up    Linear              blocks_1_up    48 -> 72 (+50.00%)  120 -> 168 (+40.00%)  16 -> 24 (+50.00%)
blocks.1.down  Linear              blocks_1_down  48 -> 72 (+50.00%)  116 -> 156 (+34.48%)  15 -> 21 (+40.00%)
(model)        add                 add            0 -> 6 (new)        0 -> 48 (new)

made by      type    bytes alive at the peak
-----------  ------  -------------------------
blocks.1.up  Linear  32 -> 48 (+50.00%)

Net (eval): 246 FLOPs, 120 MACs, 76 params, 304 bytes of parameter memory, 608 bytes of memory traffic, 5 \
ops, 96 bytes of peak memory

Accept it: pytest test_it.py::test_net --flops-update"""
    )
    assert files(pytester) == before

    accepted = run_inside(None, "--flops-update")
    accepted.assert_outcomes(passed=1)
    assert (
        "  test_it.py::test_net Net: 192 -> 246 FLOPs: +54 (+28.12%); 96 -> 120 MACs: +24 (+25.00%); "
        "62 -> 76 params: +14 (+22.58%); 248 -> 304 bytes of parameter memory: +56 (+22.58%); "
        "472 -> 608 bytes of memory traffic: +136 (+28.81%); 4 -> 5 ops: +1 (+25.00%); "
        "80 -> 96 bytes of peak memory: +16 (+20.00%)" in accepted.outlines
    )

    run_inside(None).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("model", "first", "rows"),
    [
        (
            "Net(shift=True)",
            "Net: at most 192 FLOPs (baseline), now 198: +6 (+3.12%), in (model): add",
            ["(model)   add                 add     0 -> 6 (new)  0 -> 48 (new)     0 -> 1 (new)"],
        ),
        (
            "Net(head=True)",
            "Net: at most 192 FLOPs (baseline), now 276: +84 (+43.75%), in head (new Linear)",
            ["head      Linear              head    0 -> 84 (new)  0 -> 192 (new)    0 -> 28 (new)"],
        ),
    ],
)
def test_growth_names_its_place(run_inside, model, first, rows):
    run_inside(COUNT, "--flops-update")
    result = run_inside(COUNT.replace("Net()", model))
    assert first in result.outlines
    for row in rows:
        assert row in result.outlines


def test_removed_layer_is_an_improvement_to_lock_in(pytester, run_inside):
    run_inside(COUNT, "--flops-update")
    smaller = COUNT.replace("Net()", "Net(widths=(4,))")
    result = run_inside(smaller)
    result.assert_outcomes(passed=1)
    assert shown(result, "flops:", "====") == (
        "flops: 1 model in 1 test within budget\n"
        "flops: improved: lock it in with --flops-update\n"
        "  test_it.py::test_net Net: 192 -> 96 FLOPs: -96 (-50.00%), 96 -> 48 MACs: -48 (-50.00%), "
        "62 -> 31 params: -31 (-50.00%), 248 -> 124 bytes of parameter memory: -124 (-50.00%), "
        "472 -> 236 bytes of memory traffic: -236 (-50.00%), 4 -> 2 ops: -2 (-50.00%), "
        "80 -> 56 bytes of peak memory: -24 (-30.00%), in blocks.1 (gone Block)"
    )
    strict = run_inside(None, "--flops-strict")
    strict.assert_outcomes(failed=1)
    assert "Net: at least 192 FLOPs (baseline, strict), now 96: -96 (-50.00%), in blocks.1 (gone Block)" in (
        strict.outlines
    )


# Updating ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "new", "changed"),
    [("", True, True), ("=all", True, True), ("=new", True, False), ("=changed", False, True)],
)
def test_update_modes(pytester, run_inside, mode, new, changed):
    run_inside("def test_old(flops): flops(Net((3,)), x())", "--flops-update")
    body = "def test_old(flops): flops(Net((5,)), x())\ndef test_new(flops): flops(Net(), x())"
    result = run_inside(body, f"--flops-update{mode}", "test_it.py")
    result.assert_outcomes(passed=new + changed, failed=2 - new - changed)
    assert ("flops_baselines/test_it/test_new.json" in files(pytester)) is new
    assert baseline(pytester, "test_old")["models"]["Net"]["modules"][""]["flops"] == (120 if changed else 72)


@pytest.mark.parametrize("order", [["--flops-update", "test_it.py"], ["test_it.py", "--flops-update"]])
def test_update_takes_no_path_for_its_mode(run_inside, order):
    run_inside(COUNT, *order).assert_outcomes(passed=1)


def test_unknown_update_mode_lists_the_valid_ones(run_inside):
    result = run_inside(COUNT, "--flops-update=old")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["*argument --flops-update/--flops-update=new/--flops-update=changed/--flops-update=all: *'old'"]
    )


def test_update_rewrites_nothing_that_is_right(pytester, run_inside):
    run_inside(COUNT, "--flops-update")
    path = pytester.path / "flops_baselines" / "test_it" / "test_net.json"
    older = re.sub(r'"torch": "[^"]+"', '"torch": "1.0.0"', path.read_text())
    path.write_text(older)
    os.utime(path, (1, 1))
    result = run_inside(None, "--flops-update")
    result.assert_outcomes(passed=1)
    assert "flops: updated baselines" not in result.outlines
    assert (path.read_text(), path.stat().st_mtime) == (older, 1)


def test_update_keeps_what_a_partial_run_did_not_visit(pytester, run_inside):
    body = "@pytest.mark.parametrize('w', [2, 3])\ndef test_net(flops, w): flops(Net((w,)), x())"
    run_inside(body, "--flops-update")
    before = files(pytester)
    run_inside(body.replace("(w,)", "(w + 1,)"), "--flops-update", "-k", "2").assert_outcomes(
        passed=1, deselected=1
    )
    after = files(pytester)
    assert [name for name in after if after[name] != before[name]] == [
        "flops_baselines/test_it/test_net[2].json"
    ]


def test_update_drops_models_that_the_test_no_longer_counts(pytester, run_inside):
    two = "def test_net(flops):\n    flops(Net(), x())\n    flops.named('b')(Block(2), x())"
    run_inside(two, "--flops-update")
    assert list(baseline(pytester)["models"]) == ["Net", "b"]
    stale = run_inside(COUNT)
    path = os.path.join("flops_baselines", "test_it", "test_net.json")
    assert f"  {path} (b)" in stale.outlines
    run_inside(None, "--flops-update=new")
    assert list(baseline(pytester)["models"]) == ["Net", "b"]
    result = run_inside(None, "--flops-update")
    assert "  test_it.py::test_net b: removed, the test no longer counts it" in result.outlines
    assert list(baseline(pytester)["models"]) == ["Net"]


def test_failing_test_writes_nothing(pytester, run_inside):
    run_inside(COUNT + "    assert False", "--flops-update").assert_outcomes(failed=1)
    assert files(pytester) == {}


def test_update_still_enforces_ceilings(pytester, run_inside):
    result = run_inside("@pytest.mark.flops_budget(flops=191)" + COUNT, "--flops-update")
    result.assert_outcomes(failed=1)
    assert "Net: at most 191 FLOPs (flops_budget flops), now 192: +1 (+0.52%)" in result.outlines
    assert "The baseline was not written." in result.outlines
    assert files(pytester) == {}


def test_update_refuses_a_baseline_that_it_cannot_read(pytester, run_inside):
    run_inside(COUNT, "--flops-update")
    path = pytester.path / "flops_baselines" / "test_it" / "test_net.json"
    path.write_text("{")
    for args in ((), ("--flops-update",)):
        result = run_inside(None, *args)
        result.assert_outcomes(failed=1)
        assert (
            f"{path.relative_to(pytester.path)} ends too early, in line 1. "
            f"Restore it from version control, or "
            "delete it and run the test with --flops-update."
        ) in result.outlines
        assert path.read_text() == "{"
        result.stdout.no_fnmatch_line("*Traceback*")


def test_unwritable_baseline_fails_the_test(pytester, run_inside):
    (pytester.path / "flops_baselines").write_text("in the way")
    result = run_inside(COUNT, "--flops-update")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["flops_baselines*test_net.json cannot be *: *"])
    result.stdout.no_fnmatch_line("*Error*")


# The marker -------------------------------------------------------------------------------------------------


def test_wrong_marker_is_a_collection_error(run_inside):
    result = run_inside("@pytest.mark.flops_budget(flop='1G')" + COUNT + "\ndef test_other(): pass")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.assert_outcomes(errors=1)
    assert (
        "test_it.py::test_net: flops_budget does not know 'flop'. "
        "Valid: flops, macs, params, parameter_memory, memory_traffic, ops, peak_memory, modules, rtol, "
        "train, backward, unsupported, baseline, latency, latency_rtol, latency_threads, cuda_memory, "
        "cuda_memory_rtol."
    ) in result.outlines
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*INTERNALERROR*")


def test_sound_tests_run_on_past_collection_errors(run_inside):
    body = "@pytest.mark.flops_budget(flops=-1)" + COUNT + "\ndef test_other(): pass"
    run_inside(body, "--continue-on-collection-errors").assert_outcomes(errors=1, passed=1)


def test_closest_marker_decides_for_each_keyword(pytester, run_inside):
    pytester.makeconftest(
        "import pytest\ndef pytest_collection_modifyitems(items):\n"
        "    for item in items: "
        "item.add_marker(pytest.mark.flops_budget(flops=1, macs=1, params=1, baseline=False))"
    )
    body = """
pytestmark = pytest.mark.flops_budget(params=1000)

@pytest.mark.flops_budget(macs=95)
class TestNet:
    @pytest.mark.flops_budget(flops=191)
    @pytest.mark.parametrize("w", [4, pytest.param(5, marks=pytest.mark.flops_budget(flops="1k"))])
    def test_net(self, flops, w):
        flops(Net((4, 4)), x())
"""
    lines = run_inside(body.replace("flops=191", "flops=191, params=None")).outlines
    over = [line for line in lines if line.startswith("Net: at most")]
    assert over == [
        "Net: at most 191 FLOPs (flops_budget flops), now 192: +1 (+0.52%)",
        "Net: at most 1 MACs (flops_budget macs), now 96: +95 (+9,500.00%)",
        "Net: at most 1 MACs (flops_budget macs), now 96: +95 (+9,500.00%)",
    ]


@pytest.mark.parametrize(
    ("test", "hint"),
    [
        (
            "def test_net(): pass",
            "Take the fixture `flops` as an argument and call it, or remove the marker.",
        ),
        (
            "def test_net(flops): flops.count(Net(), x())",
            "flops.count(...) only counts; call flops(model, ...), or remove the marker.",
        ),
        (
            "import unittest\nclass TestNet(unittest.TestCase):\n"
            "    @pytest.mark.flops_budget(flops=1)\n    def test_net(self): pass",
            "and call self.flops(model, ...) in the test.",
        ),
    ],
)
def test_nothing_measured_is_a_failure(run_inside, test, hint):
    marker = "" if "unittest" in test else "@pytest.mark.flops_budget(flops=1)\n"
    result = run_inside(marker + test)
    result.assert_outcomes(failed=1)
    first = "This test has a flops_budget but measured nothing: it never called flops(model, ...)."
    assert first in result.outlines
    assert hint in result.outlines


@pytest.mark.parametrize(
    ("test", "outcome"),
    [
        ("def test_net(): assert 0, 'mine'", {"failed": 1}),
        ("def test_net(): pytest.skip('mine')", {"skipped": 1}),
        ("@pytest.mark.xfail\ndef test_net(): assert 0", {"xfailed": 1}),
        ("@pytest.mark.xfail(strict=False)\ndef test_net(): pass", {"xpassed": 1}),
    ],
)
def test_a_test_keeps_its_own_outcome(run_inside, test, outcome):
    result = run_inside("@pytest.mark.flops_budget(flops=1)\n" + test)
    result.assert_outcomes(**outcome)
    result.stdout.no_fnmatch_line("*measured nothing*")


def test_unittest_methods_can_be_given_the_fixture(pytester, run_inside):
    body = """
import unittest

class TestNet(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def _give_flops(self, flops):
        self.flops = flops

    @pytest.mark.flops_budget(flops=192)
    def test_good(self):
        self.flops(Net(), x())

    def test_bad(self):
        self.flops(Net(), x())
        self.fail("mine")
"""
    run_inside(body, "--flops-update").assert_outcomes(passed=1, failed=1)
    assert len(files(pytester)) == 1
    assert next(iter(files(pytester))).startswith("flops_baselines/test_it/TestNet.test_good-")


def test_marked_doctest_says_that_it_cannot_measure(pytester):
    pytester.makeconftest(
        "import pytest\ndef pytest_collection_modifyitems(items):\n"
        "    for item in items: item.add_marker(pytest.mark.flops_budget(flops=1))"
    )
    pytester.maketxtfile(test_doc=">>> 1 + 1\n2")
    result = pytester.runpytest_inprocess(*QUICK)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["Only test functions can. Where a conftest gives the marker to every item, *"]
    )


# The fixture ------------------------------------------------------------------------------------------------


def test_two_models_with_one_name(run_inside):
    body = "def test_net(flops):\n    flops(Net(), x())\n    flops(Net(), x())"
    result = run_inside(body, "--flops-update")
    result.assert_outcomes(failed=1)
    assert (
        'flops: this test counts two models named "Net". Tell them apart: flops.named("encoder")(model, ...).'
    ) in result.outlines


@pytest.mark.parametrize("name", ["''", "3"])
def test_named_needs_a_name(run_inside, name):
    result = run_inside(f"def test_net(flops): flops.named({name})(Net(), x())")
    assert f"flops.named() needs a name, not {name}." in result.outlines


def test_ceilings_alone_need_no_baseline(pytester, run_inside):
    body = "@pytest.mark.flops_budget(flops=192, baseline=False)" + COUNT
    run_inside(body, "--flops-update").assert_outcomes(passed=1)
    run_inside(body).assert_outcomes(passed=1)
    assert files(pytester) == {}
    run_inside(body.replace("192", "191")).assert_outcomes(failed=1)


def test_other_inputs_are_an_error_that_names_them(run_inside):
    run_inside(COUNT, "--flops-update")
    result = run_inside(COUNT.replace("x()", "x(3)"))
    result.assert_outcomes(failed=1)
    assert (
        shown(result, "Net: not comparable", "----")
        == """\
Net: not comparable with its baseline, which has other inputs
  baseline: x: float32[2, 3]
  now:      x: float32[3, 3]

Accept it: pytest test_it.py::test_net --flops-update"""
    )


def test_exception_of_the_model_comes_through_with_its_own_traceback(run_inside):
    body = """
class Broken(nn.Module):
    def forward(self, x):
        raise RuntimeError("mine")

def test_net(flops):
    flops(Broken(), x())
"""
    result = run_inside(body)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*RuntimeError: mine", "test_it.py:*: RuntimeError"])


def test_what_is_no_module_is_one_clear_line(run_inside):
    result = run_inside("def test_net(flops): flops('net', 1)")
    result.assert_outcomes(failed=1)
    result.stdout.no_fnmatch_line("*fixture.py*")


def test_id_is_quoted_for_the_shell_and_independent_of_the_folder(pytester, net):
    folder = pytester.mkdir("deep")
    net.rename(folder / "net.py")
    (folder / "test_it.py").write_text(
        "from net import *\n@pytest.mark.parametrize('w', ['a b/c'])\n"
        "def test_net(flops, w): flops(Net(), x())"
    )
    missing = pytester.runpytest_inprocess(*QUICK)
    assert "Accept it: pytest 'deep/test_it.py::test_net[a b/c]' --flops-update" in missing.outlines
    pytester.runpytest_inprocess(*QUICK, "--flops-update").assert_outcomes(passed=1)
    (saved,) = folder.rglob("*.json")
    assert json.loads(saved.read_text())["test"] == "test_it.py::test_net[a b/c]"
    os.chdir(folder)
    pytester.runpytest_inprocess(*QUICK, "--rootdir=.").assert_outcomes(passed=1)


@pytest.mark.parametrize("verbosity", ["-q", "", "-v", "-vv"])
def test_verbosity(run_inside, verbosity):
    result = run_inside("def test_net(flops): flops(Net(widths=(4,) * 13), x())", *verbosity.split())
    whole = sum(line.startswith("blocks_") for line in result.outlines) == 26
    assert whole is (verbosity == "-vv")
    run_inside(None, "--flops-update")
    passing = run_inside(None, *verbosity.split())
    assert ("flops: 1 model in 1 test within budget" in passing.outlines) is (verbosity != "-q")


def test_runs_without_the_fixture_say_nothing(run_inside):
    result = run_inside("def test_other(): pass")
    result.stdout.no_fnmatch_line("flops:*")


SWALLOWS = """def test_net(flops):
    try:
        flops(Net((4, 8)), x())
    except BaseException:
        pass
"""
THREADS = """from concurrent.futures import ThreadPoolExecutor
def test_net(flops):
    with ThreadPoolExecutor(1) as pool:
        pool.submit(flops, Net((4, 8)), x())
"""


@pytest.mark.parametrize("body", [SWALLOWS, THREADS])
def test_a_failed_budget_that_the_test_does_not_see_fails_it_all_the_same(run_inside, body):
    run_inside("def test_net(flops): flops(Net(), x())", "--flops-update").assert_outcomes(passed=1)
    result = run_inside(body)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["The test went on after this failure of its budget:", "Net: at most 192 FLOPs (baseline), now *"]
    )


def test_a_budget_without_baseline_and_ceiling_compares_nothing(run_inside):
    result = run_inside("@pytest.mark.flops_budget(baseline=False)\ndef test_net(flops): flops(Net(), x())")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        [
            "*flops_budget(baseline=False) has no ceiling: nothing would be compared. Give it one, such as "
            'flops="8.3G"; flops.count(...) only counts.'
        ]
    )
