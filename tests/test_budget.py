"""What a marker may say, and the verdict: a pure function of report, baseline and budget."""

from __future__ import annotations

import math

import pytest
from conftest import make_report, with_costs

from pytest_flops.baseline import Function, snapshot
from pytest_flops.budget import (
    Budget,
    Change,
    Excess,
    Mismatch,
    Unmatched,
    budget_from,
    compare,
    parse_count,
    parse_rtol,
    tolerated,
)
from pytest_flops.errors import BudgetError
from pytest_flops.report import Node

VALID = "Valid: flops, macs, params, modules, rtol, train, backward, unsupported, baseline."


def marker(**keywords):
    return ((), keywords)


def budget(**keywords) -> Budget:
    return budget_from([marker(**keywords)])


def verdict(report=None, was=None, **keywords):
    return compare(report or make_report(), snapshot(was or make_report()), budget(**keywords))


# Reading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (0, 0),
        (8_300_000_000, 8_300_000_000),
        (8.3e9, 8_300_000_000),
        ("8.3G", 8_300_000_000),
        ("1.5 k", 1500),
        (" 7M ", 7_000_000),
        ("2T", 2_000_000_000_000),
        ("8,228,544,512", 8_228_544_512),
        ("8_228_544_512", 8_228_544_512),
        ("0.29k", 290),
        ("12", 12),
    ],
)
def test_counts(value, count):
    assert parse_count(value, "flops") == count


@pytest.mark.parametrize(
    "value",
    [-1, True, 1.5, math.nan, math.inf, -math.inf, "", "G", "8.3g", "8.3K", "8GiB", "8 GFLOPs", "-1",
     "1e9", "8,3G",     "1.2345k", "0.5", "١", [], "1\n2"],
)  # fmt: skip
def test_no_counts(value):
    with pytest.raises(BudgetError) as caught:
        parse_count(value, "flops")
    assert str(caught.value) == (
        f"flops={value!r} is not a count. Give a whole number of at least 0, "
        f"or text with a decimal unit, such as "
        '"8.3G" (valid units: k, M, G, T).'
    )


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.01, "0.01"), ("0.05", "0.05"), (1e-6, "1e-06"), (1, "1")]
)
def test_tolerances(value, text):
    assert parse_rtol(value, "rtol") == text


@pytest.mark.parametrize("value", [-0.1, True, math.nan, math.inf, "1%", "", None, "1/3"])
def test_no_tolerances(value):
    with pytest.raises(BudgetError) as caught:
        parse_rtol(value, "rtol")
    assert str(caught.value) == (
        f"rtol={value!r} is not a tolerance. Give a fraction of the baseline of at least 0: "
        f"0.01 lets a count grow "
        "by 1 %."
    )


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"flop": 1}, f"flops_budget does not know 'flop'. {VALID}"),
        (
            {"latency": "30ms"},
            f"flops_budget(latency=...) is not available yet in this version of pytest-flops. {VALID}",
        ),
        (
            {"cuda_memory": "1GiB"},
            f"flops_budget(cuda_memory=...) is not available yet in this version of pytest-flops. {VALID}",
        ),
        ({"train": 1}, "train=1 is not True or False."),
        ({"baseline": None}, "baseline=None is not True or False."),
        ({"unsupported": "ignore"}, "unsupported='ignore' is not valid. Give \"error\" or \"warn\"."),
        (
            {"modules": ["layer4"]},
            "modules=['layer4'] is not a mapping. Give FLOPs ceilings by module path or glob: "
            'modules={"layer4": "2G", "layer*.0": "900M"}.',
        ),
        (
            {"modules": {"layer4": "2 GB"}},
            "modules['layer4']='2 GB' is not a count. Give a whole number of at least 0, "
            "or text with a decimal "
            'unit, such as "8.3G" (valid units: k, M, G, T).',
        ),
    ],
)  # fmt: skip
def test_wrong_markers_say_what_is_valid(keywords, message):
    with pytest.raises(BudgetError) as caught:
        budget(**keywords)
    assert str(caught.value) == message


def test_marker_takes_keywords_only():
    with pytest.raises(BudgetError) as caught:
        budget_from([(("8.3G",), {})])
    assert str(caught.value) == f"flops_budget takes keywords only, not '8.3G', as in flops=\"8.3G\". {VALID}"


def test_closest_marker_decides_for_each_keyword():
    merged = budget_from(
        [marker(flops=1, rtol=0.5), marker(flops=2, macs=3, modules={"a": 4}), marker(macs=5)]
    )
    assert merged == Budget(limits={"flops": 1, "macs": 3}, modules={"a": 4}, rtol="0.5")


def test_none_lifts_a_farther_limit():
    assert budget_from([marker(flops=None), marker(flops=2, params=3)]).limits == {"params": 3}


def test_an_overruled_marker_must_still_be_right():
    with pytest.raises(BudgetError, match="macs='x'"):
        budget_from([marker(macs=1), marker(macs="x")])


def test_tolerance_of_the_run_holds_where_no_marker_says_otherwise():
    assert budget_from([marker()], rtol="0.1").rtol == "0.1"
    assert budget_from([marker(rtol=0)], rtol="0.1").rtol == "0"


# Ceilings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["flops", "macs", "params"])
@pytest.mark.parametrize(
    ("distance", "ok", "reason"),
    [(-1, False, "one over the limit"), (0, True, "limits are inclusive"), (1, True, "one to spare")],
)
def test_ceiling(metric, distance, ok, reason):
    now = {"flops": 106, "macs": 50, "params": 53}[metric]
    found = verdict(make_report(params=53), make_report(params=53), **{metric: now + distance})
    assert found.ok is ok, reason
    assert found.excesses == (() if ok else (Excess(metric, now + distance, now),))


@pytest.mark.parametrize(
    ("globs", "excesses"),
    [
        ({"body.up": 40}, ()),
        ({"body.up": 39}, (Excess("flops", 39, 40, "body.up", "body.up"),)),
        ({"body.*": 59}, (Excess("flops", 59, 60, "body.*", "body.down"),)),
        ({"body*": 105}, (Excess("flops", 105, 106, "body*", "body"),)),
        ({"*": 105}, (Excess("flops", 105, 106, "*", ""), Excess("flops", 105, 106, "*", "body"))),
        ({"": 105}, (Excess("flops", 105, 106, "", ""),)),
        ({"body.drop": 0}, ()),
    ],
)
def test_module_ceilings(globs, excesses):
    assert verdict(modules=globs).excesses == excesses


@pytest.mark.parametrize(
    ("glob", "near"),
    [("body.upp", ("body.up", "body.drop", "body")), ("Body", ("body", "body.up")), ("zzz", ())],
)
def test_glob_that_matches_nothing(glob, near):
    found = verdict(modules={glob: 1000})
    assert found.unmatched == (Unmatched(glob, near),)
    assert not found.within_limits


def test_ceiling_and_baseline_are_judged_apart():
    both = verdict(make_report(), with_costs(make_report(), {"add": 5}), flops=100)
    assert both.excesses == (Excess("flops", 100, 106),)
    assert [change.what for change in both.grown] == ["flops", "", "body"]


def test_unsupported_operators_fail_unless_told_to_warn():
    report = make_report(unsupported={"aten::odd": 2})
    assert verdict(report).unsupported == {"aten::odd": 2}
    assert not verdict(report).ok
    assert verdict(report, unsupported="warn").ok


# Baseline ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("was", "rtol", "largest"),
    [(100, "0", 100), (100, "0.29", 129), (100, "0.07", 107), (99, "0.01", 99),
     (0, "0.5", 0), (10**20, "0.1", 11 * 10**19)],
)  # fmt: skip
def test_tolerance_is_exact(was, rtol, largest):
    assert tolerated(was, rtol) == largest


def one_module(flops: int):
    nodes = (Node("fc", "call_module", "fc", "fc", "Linear", flops, 7),)
    return make_report(nodes=nodes, module_types={"": "Net", "fc": "Linear"})


@pytest.mark.parametrize(
    ("now", "rtol", "grew", "shrank", "reason"),
    [
        (100, 0, False, False, "the same"),
        (101, 0, True, False, "FLOPs are exact"),
        (99, 0, False, True, "one less"),
        (110, 0.1, False, False, "the tolerance is inclusive"),
        (111, 0.1, True, False, "one beyond the tolerance"),
        (90, 0.1, False, False, "the tolerance holds downward too"),
        (89, 0.1, False, True, "one beyond it, downward"),
        (129, 0.29, False, False, "0.29 means 29/100, not its binary neighbour"),
    ],
)
def test_growth(now, rtol, grew, shrank, reason):
    found = verdict(one_module(now), one_module(100), rtol=rtol)
    assert (bool(found.grown), bool(found.shrunk)) == (grew, shrank), reason
    assert found.ok is not grew, reason


@pytest.mark.parametrize("metric", ["macs", "params"])
def test_other_totals_gate_too(metric):
    fewer = {"params": make_report(params=49), "macs": make_report(nodes=make_report().nodes[:2])}[metric]
    assert metric in [change.what for change in verdict(make_report(), fewer).grown]


def test_missing_baseline_fails_unless_the_budget_wants_none():
    assert compare(make_report(), None, budget()).missing
    assert not compare(make_report(), None, budget()).ok
    assert compare(make_report(), None, budget(baseline=False, flops=106)).ok
    assert not compare(make_report(), None, budget(baseline=False, flops=105)).ok


def test_change_is_traced_to_the_modules_whose_own_work_changed():
    now = with_costs(make_report(), {"add": 9, "body_up": 47})
    found = verdict(now)
    assert found.totals == (Change("flops", 106, 116, 10, grew=True),)
    assert found.modules == (
        Change("", 106, 116, 0, grew=True),
        Change("body", 106, 116, 3, grew=True),
        Change("body.up", 40, 47, 7, grew=True),
    )
    assert found.functions == (Change(Function("body", "add"), 6, 9, 3, grew=True),)
    assert [change.what for change in found.places] == ["body.up", "body"]


def test_growth_of_one_module_fails_though_another_shrank():
    found = verdict(with_costs(make_report(), {"body_up": 47, "body_down": 53}))
    assert found.totals == ()
    assert [change.what for change in found.grown] == ["body.up"]
    assert not found.ok


def test_renamed_module_is_no_growth():
    nodes = tuple(
        node
        if node.name != "body_up"
        else Node("body_rise", "call_module", "body.rise", "body.rise", "Linear", 40, 20)
        for node in make_report().nodes
    )
    types = {"": "Net", "body": "Body", "body.rise": "Linear", "body.down": "Linear"}
    found = verdict(make_report(nodes=nodes, module_types=types))
    assert found.ok
    assert [(change.what, change.was, change.now) for change in found.modules] == [
        ("body.rise", 0, 40),
        ("body.up", 40, 0),
    ]


def test_new_module_fails_through_the_modules_around_it():
    extra = Node("head", "call_module", "head", "head", "Linear", 5, 2)
    types = {**make_report().module_types, "head": "Linear"}
    found = verdict(make_report(nodes=(*make_report().nodes, extra), module_types=types))
    assert [change.what for change in found.grown] == ["flops", "macs", ""]
    assert [change.what for change in found.places] == ["head"]


@pytest.mark.parametrize(
    ("changes", "mismatch"),
    [
        ({"mode": "train"}, Mismatch("mode", "eval", "train")),
        ({"inputs": ("x: float32[9, 3]", "y: bool[1]")},
         Mismatch("inputs", "x: float32[2, 3]", "x: float32[9, 3], y: bool[1]")),
    ],
)  # fmt: skip
def test_other_inputs_or_mode_are_not_compared(changes, mismatch):
    found = verdict(with_costs(make_report(**changes), {"add": 99}))
    assert found.mismatches == (mismatch,)
    assert not found.ok
    assert found.grown == ()


def test_versions_are_named_and_decide_nothing():
    found = verdict(make_report(formulas=3, torch="2.16.0"))
    assert found.versions == (Mismatch("formulas", "1", "3"), Mismatch("torch", "2.15.0", "2.16.0"))
    assert found.ok
