"""The verdict: a pure function of report, baseline and budget."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_flops.budgets.baseline import Function, snapshot
from pytest_flops.budgets.budget import budget_from
from pytest_flops.budgets.verdict import (
    Change,
    Excess,
    Finding,
    Mismatch,
    Unmatched,
    changes,
    compare,
    tolerated,
)
from tests.fakes import leaf_report, make_report, node, with_costs, with_peaks


def budget(**keywords):
    return budget_from([((), keywords)])


def verdict(report=None, was=None, **keywords):
    now = report or make_report()
    return compare(now, snapshot(now), snapshot(was or make_report()), budget(**keywords))


def names(found):
    """Return which metrics and modules are among findings and changes."""
    return [item.metric.name if isinstance(item, Finding) else item.what for item in found]


# Ceilings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["flops", "macs", "params", "peak_memory"])
@pytest.mark.parametrize(
    ("distance", "ok", "reason"),
    [(-1, False, "one over the limit"), (0, True, "limits are inclusive"), (1, True, "one to spare")],
)
def test_ceiling(metric, distance, ok, reason):
    now = {"flops": 106, "macs": 50, "params": 53, "peak_memory": 2048}[metric]
    found = verdict(make_report(params=53), make_report(params=53), **{metric: now + distance})
    assert found.ok is ok, reason
    over = [(finding.metric.name, finding.limit, finding.now) for finding in found.over_limit]
    assert over == ([] if ok else [(metric, now + distance, now)])


@pytest.mark.parametrize(
    ("globs", "excesses"),
    [
        ({"body.up": 40}, ()),
        ({"body.up": 39}, (Excess("body.up", 39, "body.up", 40),)),
        ({"body.*": 59}, (Excess("body.*", 59, "body.down", 60),)),
        ({"body*": 105}, (Excess("body*", 105, "body", 106),)),
        ({"*": 105}, (Excess("*", 105, "", 106), Excess("*", 105, "body", 106))),
        ({"": 105}, (Excess("", 105, "", 106),)),
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
    assert names(both.over_limit) == ["flops"]
    assert names(both.changes.grown) == ["flops", "", "body"]


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
    nodes = (node("fc", "call_module", "fc", "fc", "Linear", flops, 7),)
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
    assert (bool(found.changes.grown), bool(found.changes.shrunk)) == (grew, shrank), reason
    assert found.ok is not grew, reason


@pytest.mark.parametrize("metric", ["macs", "params"])
def test_other_totals_gate_too(metric):
    fewer = {"params": make_report(params=49), "macs": make_report(nodes=make_report().nodes[:2])}[metric]
    assert metric in names(verdict(make_report(), fewer).changes.grown)


@pytest.mark.parametrize(
    ("now", "rtol", "grew", "shrank", "reason"),
    [
        (2000, 0, False, False, "the same"),
        (2001, 0, True, False, "a prediction is exact"),
        (1999, 0, False, True, "one byte less"),
        (2200, 0.1, False, False, "the tolerance is inclusive"),
        (2201, 0.1, True, False, "one beyond the tolerance"),
        (1800, 0.1, False, False, "the tolerance holds downward too"),
        (1799, 0.1, False, True, "one beyond it, downward"),
    ],
)
def test_peak_memory_is_compared_like_a_count(now, rtol, grew, shrank, reason):
    peaks = {"body_up": 1, "add": 1}
    now, was = (with_peaks(make_report(), peaks | {"body_down": peak}) for peak in (now, 2000))
    found = verdict(now, was, rtol=rtol)
    assert names(found.changes.grown) == ["peak_memory"] * grew, reason
    assert names(found.changes.shrunk) == ["peak_memory"] * shrank, reason
    assert found.peak_bound == (2000 if grew else None)
    assert found.ok is not grew


def test_a_peak_over_its_ceiling_breaks_it_whatever_the_baseline():
    assert verdict(peak_memory=2047).peak_bound == 2047
    assert verdict(flops=105, peak_memory=2048).peak_bound is None


def test_missing_baseline_fails_unless_the_budget_wants_none():
    def without(**keywords):
        return compare(make_report(), snapshot(make_report()), None, budget(**keywords))

    assert without().missing
    assert not without().ok
    assert without(baseline=False, flops=106).ok
    assert not without(baseline=False, flops=105).ok


def test_change_is_traced_to_the_modules_whose_own_work_changed():
    now = with_costs(make_report(), {"add": 9, "body_up": 47})
    found = verdict(now)
    assert [(total.metric.name, total.was, total.now) for total in found.totals if total.changed] == [
        ("flops", 106, 116)
    ]
    assert found.changes.modules == (
        Change("", 106, 116, 0, grew=True),
        Change("body", 106, 116, 3, grew=True),
        Change("body.up", 40, 47, 7, grew=True),
    )
    assert found.changes.functions == (Change(Function("body", "add"), 6, 9, 3, grew=True),)
    assert [change.what for change in found.changes.places] == ["body.up", "body"]


def test_growth_of_one_module_fails_though_another_shrank():
    found = verdict(with_costs(make_report(), {"body_up": 47, "body_down": 53}))
    assert not any(total.changed for total in found.totals)
    assert names(found.changes.grown) == ["body.up"]
    assert not found.ok


def test_renamed_module_is_no_growth():
    nodes = tuple(
        step
        if step.name != "body_up"
        else node("body_rise", "call_module", "body.rise", "body.rise", "Linear", 40, 20)
        for step in make_report().nodes
    )
    types = {"": "Net", "body": "Body", "body.rise": "Linear", "body.down": "Linear"}
    found = verdict(make_report(nodes=nodes, module_types=types))
    assert found.ok
    assert [(change.what, change.was, change.now) for change in found.changes.modules] == [
        ("body.rise", 0, 40),
        ("body.up", 40, 0),
    ]


def test_new_module_fails_through_the_modules_around_it():
    extra = node("head", "call_module", "head", "head", "Linear", 5, 2)
    types = {**make_report().module_types, "head": "Linear"}
    found = verdict(make_report(nodes=(*make_report().nodes, extra), module_types=types))
    assert names(found.changes.grown) == ["flops", "macs", ""]
    assert [change.what for change in found.changes.places] == ["head"]


# Modules inside a leaf --------------------------------------------------------------------------------------


def closed(report):
    """Return a report as versions made it that saw nothing inside a leaf."""
    return replace(report, nodes=tuple(replace(step, parts=()) for step in report.nodes))


def test_ceilings_and_changes_reach_inside_a_leaf():
    assert verdict(leaf_report(up=20), leaf_report(up=20), modules={"encoder.*": 19}).excesses == (
        Excess("encoder.*", 19, "encoder.up", 20),
    )
    found = verdict(leaf_report(up=25, down=25), leaf_report(up=20, down=30))
    assert names(found.changes.grown) == ["encoder.up"]
    assert [change.what for change in found.changes.places] == ["encoder.down", "encoder.up"]
    assert not found.ok


def test_a_baseline_that_saw_nothing_inside_a_leaf_still_holds():
    found = verdict(leaf_report(up=20, down=30), closed(leaf_report(up=20, down=30)))
    assert found.ok
    assert not found.changes.any_cost


def test_a_baseline_that_saw_nothing_inside_a_leaf_still_gates():
    found = verdict(leaf_report(up=21, down=30), closed(leaf_report(up=20, down=30)))
    assert not found.ok
    assert found.changes.modules == (
        Change("", 67, 68, 0, grew=True),
        Change("encoder", 67, 68, 1, grew=True),
    )
    assert found.changes.functions == ()


def test_a_leaf_that_has_become_a_container_is_no_older_baseline():
    was = make_report(
        nodes=(node("encoder", "call_module", "encoder", "encoder", "Linear", 20),),
        module_types={"": "Net", "encoder": "Linear"},
    )
    now = make_report(
        nodes=(node("encoder_0", "call_module", "encoder.0", "encoder.0", "Linear", 21),),
        module_types={"": "Net", "encoder": "Sequential", "encoder.0": "Linear"},
    )
    assert [change.what for change in verdict(now, was).changes.places] == ["encoder.0", "encoder"]


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
    assert found.changes.mismatches == (mismatch,)
    assert not found.ok
    assert found.changes.grown == ()


def test_versions_are_named_and_decide_nothing():
    found = verdict(make_report(formulas=3, torch="2.16.0"))
    assert found.changes.versions == (Mismatch("formulas", "1", "3"), Mismatch("torch", "2.15.0", "2.16.0"))
    assert found.ok


def test_two_baselines_compare_without_a_report():
    was, now = snapshot(make_report()), snapshot(with_costs(make_report(), {"add": 9}))
    found = changes(now, was)
    assert names(found.grown) == ["flops", "", "body"]
    assert found.functions == (Change(Function("body", "add"), 6, 9, 3, grew=True),)
    assert changes(now, was, "0.03").grown == (), "3 of 106 are less than 3 %"
    assert names(changes(was, now).shrunk) == ["flops", "", "body"]
    assert not changes(was, was).any_cost
