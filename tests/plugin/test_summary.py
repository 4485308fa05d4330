"""The lines that end a run: what grew, in how many tests, and what every model costs where one asks."""

from __future__ import annotations

import pytest

from tests.runs import load_torch

load_torch()

TWO = "def test_a(flops): flops(Net({}), x())\n\ndef test_b(flops): flops(Net({}), x())\n"
WIDER = "(4, 6)"


def block(result: pytest.RunResult, first: str) -> list[str]:
    """Return the lines of a section of the summary, less its title."""
    at = result.outlines.index(first) + 1
    last = next(i for i, line in enumerate(result.outlines[at:], at) if not line.startswith("  "))
    return [line.rstrip() for line in result.outlines[at:last]]


# What grew --------------------------------------------------------------------------------------------------


def test_what_grew_is_said_by_culprit_those_of_most_tests_first(run_inside):
    three = TWO + "\ndef test_c(flops): flops(Net({}), x())\n"
    run_inside(three.format("", "", ""), "--flops-update").assert_outcomes(passed=3)
    result = run_inside(three.format("shift=True", WIDER, WIDER))
    result.assert_outcomes(failed=3)
    assert block(result, "flops: what grew") == [
        "  blocks.1.up +50.00% FLOPs: 2 tests",
        "  (model): add (new): 1 test",
        "  Accept it all: pytest test_it.py::test_b test_it.py::test_c test_it.py::test_a --flops-update",
    ]
    accepted = run_inside(
        None, "test_it.py::test_b", "test_it.py::test_c", "test_it.py::test_a", "--flops-update"
    )
    accepted.assert_outcomes(passed=3)
    run_inside(None).assert_outcomes(passed=3)


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ("Net(head=True)", "  head (new Linear): 2 tests"),
        ("Net(shift=True)", "  (model): add (new): 2 tests"),
        ("Net((4, 6))", "  blocks.1.up +50.00% FLOPs: 2 tests"),
        ("Net((6, 6))", "  blocks.[0-1].up x2 +50.00% FLOPs: 2 tests"),
    ],
)
def test_what_grew_in_words(run_inside, model, line):
    run_inside(TWO.format("", ""), "--flops-update")
    result = run_inside(TWO.replace("Net({})", model))
    assert block(result, "flops: what grew")[0] == line


@pytest.mark.parametrize(("second", "options"), [("", []), (WIDER, ["-q"]), (WIDER, ["-k", "test_a"])])
def test_one_failure_says_it_itself_and_a_quiet_run_says_less(run_inside, second, options):
    run_inside(TWO.format("", ""), "--flops-update")
    result = run_inside(TWO.format(WIDER, second), *options)
    assert "flops: what grew" not in result.outlines
    assert "Accept it: pytest test_it.py::test_a --flops-update" in result.outlines


def test_a_failure_that_no_update_accepts_is_not_in_the_command(run_inside):
    ceiling = "@pytest.mark.flops_budget(flops=200)\n"
    run_inside(ceiling + TWO.format("", ""), "--flops-update").assert_outcomes(passed=2)
    result = run_inside(ceiling + TWO.format(WIDER, WIDER))
    result.assert_outcomes(failed=2)
    assert block(result, "flops: what grew") == [
        "  blocks.1.up +50.00% FLOPs: 2 tests",
        "  Accept it all: pytest test_it.py::test_b --flops-update",
    ]
    result = run_inside((ceiling + TWO.replace("\n\n", f"\n\n{ceiling}")).format(WIDER, WIDER))
    assert block(result, "flops: what grew") == ["  blocks.1.up +50.00% FLOPs: 2 tests"]


@pytest.mark.parametrize(("tests", "by_name"), [(20, True), (21, False)])
def test_many_tests_are_accepted_as_those_that_failed(run_inside, tests, by_name):
    body = f"@pytest.mark.parametrize('i', range({tests}))\ndef test_net(flops, i): flops(Net({{}}), x())"
    run_inside(body.format(""), "--flops-update").assert_outcomes(passed=tests)
    result = run_inside(body.format(WIDER), "--tb=no")
    names = " ".join(sorted(f"'test_it.py::test_net[{i}]'" for i in range(tests)))
    assert block(result, "flops: what grew") == [
        f"  blocks.1.up +50.00% FLOPs: {tests} tests",
        f"  Accept it all: pytest {names if by_name else '--last-failed'} --flops-update",
    ]


def test_what_grew_travels_from_workers(run_inside, pytester):
    pytest.importorskip("xdist")
    run_inside(TWO.format("", ""), "--flops-update").assert_outcomes(passed=2)
    result = run_inside(TWO.format(WIDER, WIDER), "-n1")
    assert block(result, "flops: what grew") == [
        "  blocks.1.up +50.00% FLOPs: 2 tests",
        "  Accept it all: pytest test_it.py::test_a test_it.py::test_b --flops-update",
    ]


# What it costs ----------------------------------------------------------------------------------------------

NET = (
    "192 FLOPs, 96 MACs, 62 params, 248 bytes of parameter memory, 472 bytes of memory traffic, 4 ops, "
    "80 bytes of peak memory"
)


@pytest.mark.parametrize(
    ("verbosity", "listed", "nodes"), [("-q", 0, 0), ("", 0, 0), ("-v", 1, 0), ("-vv", 1, 1)]
)
def test_a_green_run_lists_what_its_models_cost_where_one_asks(run_inside, verbosity, listed, nodes):
    run_inside("def test_net(flops): flops(Net(), x())", "--flops-update")
    result = run_inside(None, *verbosity.split())
    result.assert_outcomes(passed=1)
    assert ("flops: counted" in result.outlines) is bool(listed)
    if listed:
        assert block(result, "flops: counted") == [f"  test_it.py::test_net Net: {NET}"]
    assert sum(line.startswith("blocks_") for line in result.outlines) == 4 * nodes


def test_the_list_says_what_changed_against_the_baseline(run_inside):
    body = "@pytest.mark.flops_budget(rtol=0.5)\ndef test_net(flops): flops(Net({}), x())"
    run_inside(body.format(""), "--flops-update")
    result = run_inside(body.format("shift=True"), "-v")
    result.assert_outcomes(passed=1)
    assert block(result, "flops: counted") == [
        "  test_it.py::test_net Net: 198 FLOPs (+3.12%), 96 MACs, 62 params, 248 bytes of parameter memory, "
        "520 bytes of memory traffic (+10.17%), 5 ops (+25.00%), 80 bytes of peak memory"
    ]


# What else an acceptance would take -------------------------------------------------------------------------


def test_an_acceptance_names_the_models_that_the_run_did_not_reach(run_inside):
    body = """
def test_net(flops):
    flops.named("encode")(Net({}), x())
    flops.named("decode")(Net({}), x())
    flops.named("again")(Net(), x())
"""
    run_inside(body.format("", ""), "--flops-update").assert_outcomes(passed=1)
    first = run_inside(body.format(WIDER, ""))
    command = "Accept it: pytest test_it.py::test_net --flops-update"
    assert f"{command} (and what this run did not reach: again, decode)" in first.outlines
    second = run_inside(body.format("", WIDER))
    assert f"{command} (and what this run did not reach: again)" in second.outlines
