"""The verdict: a pure function of report, baseline and budget."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_flops.budgets.baseline import Baseline, Module, snapshot
from pytest_flops.budgets.budget import budget_from
from pytest_flops.budgets.changes import Mismatch, ModuleChange, PlaceChange, changes
from pytest_flops.budgets.finding import Finding, tolerated
from pytest_flops.budgets.verdict import Excess, Unmatched, compare
from pytest_flops.metrics import COUNTED, METRICS, Held
from tests.fakes import leaf_report, make_report, node, with_costs, with_peaks


def budget(**keywords):
    return budget_from([((), keywords)])


def verdict(report=None, was=None, **keywords):
    now, was = report or make_report(), was or make_report()
    was = was if isinstance(was, Baseline) else snapshot(was)
    return compare(now, snapshot(now), was, budget(**keywords))


def names(found):
    """Return which metrics and modules are among findings and changes."""
    return [item.metric.name if isinstance(item, Finding) else item.path for item in found]


def places(found, metric="flops"):
    """Return where a metric changed, most first, and by how much."""
    metric = METRICS[metric]
    return [(place.module, place.function, place.delta(metric)) for place in found.changes.places_of(metric)]


def grew(path, was, now, metric="flops"):
    return ModuleChange(METRICS[metric], path, was, now, grew=True)


FLOPS = METRICS["flops"]

# Ceilings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [metric.name for metric in COUNTED])
@pytest.mark.parametrize(
    ("distance", "ok", "reason"),
    [(-1, False, "one over the limit"), (0, True, "limits are inclusive"), (1, True, "one to spare")],
)
def test_ceiling(metric, distance, ok, reason):
    now = make_report(params=53).totals[metric]
    found = verdict(make_report(params=53), make_report(params=53), **{metric: now + distance})
    assert found.ok is ok, reason
    over = [(finding.metric.name, finding.limit, finding.now) for finding in found.over_limit]
    assert over == ([] if ok else [(metric, now + distance, now)])


@pytest.mark.parametrize(
    ("globs", "excesses"),
    [
        ({"body.up": 40}, ()),
        ({"body.up": 39}, (Excess(FLOPS, "body.up", 39, "body.up", 40),)),
        ({"body.*": 59}, (Excess(FLOPS, "body.*", 59, "body.down", 60),)),
        ({"body*": 105}, (Excess(FLOPS, "body*", 105, "body", 106),)),
        ({"*": 105}, (Excess(FLOPS, "*", 105, "", 106), Excess(FLOPS, "*", 105, "body", 106))),
        ({"": 105}, (Excess(FLOPS, "", 105, "", 106),)),
        ({"body.drop": 0}, ()),
    ],
)
def test_module_ceilings(globs, excesses):
    assert verdict(modules=globs).excesses == excesses


def test_module_ceilings_by_metric():
    limits = {"flops": 60, "memory_traffic": "599B", "ops": 1, "params": 0, "peak_memory": "2KiB"}
    (excess,) = verdict(modules={"body.down": limits}).excesses
    assert excess == Excess(METRICS["memory_traffic"], "body.down", 599, "body.down", 600)
    assert verdict(modules={"": {"parameter_memory": "200B"}}).excesses == ()


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


@pytest.mark.parametrize("metric", [metric.name for metric in COUNTED])
def test_other_totals_gate_too(metric):
    fewer = make_report(params=49, parameter_memory=199, nodes=make_report().nodes[:2])
    assert metric in names(verdict(make_report(), fewer).changes.grown)


@pytest.mark.parametrize("metric", ["macs", "memory_traffic", "ops"])
def test_every_metric_gates_by_module(metric):
    now, was = make_report(), make_report()
    shifted = {"body_up": getattr(was.nodes[1], metric) + 1, "body_down": getattr(was.nodes[2], metric) - 1}
    found = verdict(with_costs(now, {}, **{metric: shifted}), was)
    assert [(each.metric.name, each.path) for each in found.changes.grown] == [(metric, "body.up")]


def test_what_a_module_holds_gates_by_module():
    held = {"body.up": Held(20, 80), "body.down": Held(30, 120)}
    found = verdict(replace(make_report(), held=held | {"body.up": Held(21, 80), "body.down": Held(29, 120)}),
                    replace(make_report(), held=held))  # fmt: skip
    assert [(each.metric.name, each.path) for each in found.changes.grown] == [("params", "body.up")]


def test_the_tolerance_may_be_one_for_each_metric():
    now = with_costs(make_report(), {"add": 7}, memory_traffic={"add": 97})
    assert names(verdict(now, rtol={"flops": 0.2}).changes.grown)[0] == "memory_traffic"
    assert names(verdict(now, rtol={"memory_traffic": 0.2}).changes.grown)[0] == "flops"
    assert verdict(now, rtol={"flops": 0.2, "memory_traffic": 0.2}).ok
    assert verdict(now, rtol=0.2).ok


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
    assert found.changes.modules == (grew("", 106, 116), grew("body", 106, 116), grew("body.up", 40, 47))
    assert places(found) == [("body.up", "", 7), ("body", "add", 3)]
    assert found.changes.places[1] == PlaceChange(
        "body",
        "add",
        "Body",
        {"flops": 6, "memory_traffic": 96, "ops": 1},
        {"flops": 9, "memory_traffic": 96, "ops": 1},
    )


def test_growth_of_one_module_fails_though_another_shrank():
    found = verdict(with_costs(make_report(), {"body_up": 47, "body_down": 53}))
    assert not any(total.changed for total in found.totals)
    assert names(found.changes.grown) == ["body.up"]
    assert not found.ok


def test_renamed_module_is_no_growth():
    nodes = tuple(
        step
        if step.name != "body_up"
        else replace(step, name="body_rise", target="body.rise", module="body.rise")
        for step in make_report().nodes
    )
    types = {"": "Net", "body": "Body", "body.rise": "Linear", "body.down": "Linear"}
    found = verdict(make_report(nodes=nodes, module_types=types))
    assert found.ok
    assert found.changes.renamed == (("body.up", "body.rise"),)
    assert found.changes.modules == found.changes.places == ()
    assert found.changes.any_cost, "worth a line"


def test_new_module_fails_through_the_modules_around_it():
    extra = node("head", "call_module", "head", "head", "Linear", 5, 2)
    types = {**make_report().module_types, "head": "Linear"}
    found = verdict(make_report(nodes=(*make_report().nodes, extra), module_types=types))
    assert names(found.changes.grown) == ["flops", "macs", "", ""]
    assert places(found) == [("head", "", 5)]
    assert found.changes.places[0].was is None


# Modules inside a leaf --------------------------------------------------------------------------------------


def closed(report):
    """Return what versions wrote that saw nothing inside a leaf, knew no types and FLOPs alone by module."""
    found = snapshot(replace(report, nodes=tuple(replace(step, parts=()) for step in report.nodes)))
    modules = {path: Module("", {"flops": m.costs["flops"]}) for path, m in found.modules.items() if m.costs}
    return replace(found, modules=modules, metrics=frozenset({"flops"}))


def test_ceilings_and_changes_reach_inside_a_leaf():
    assert verdict(leaf_report(up=20), leaf_report(up=20), modules={"encoder.*": 19}).excesses == (
        Excess(FLOPS, "encoder.*", 19, "encoder.up", 20),
    )
    found = verdict(leaf_report(up=25, down=25), leaf_report(up=20, down=30))
    assert names(found.changes.grown) == ["encoder.up"]
    assert places(found) == [("encoder.up", "", 5), ("encoder.down", "", -5)]
    assert not found.ok


def test_a_baseline_that_saw_nothing_inside_a_leaf_still_holds():
    found = verdict(leaf_report(up=20, down=30), closed(leaf_report(up=20, down=30)))
    assert found.ok
    assert not found.changes.any_cost


def test_a_baseline_that_saw_nothing_inside_a_leaf_still_gates():
    found = verdict(leaf_report(up=21, down=30), closed(leaf_report(up=20, down=30)))
    assert not found.ok
    assert found.changes.modules == (grew("", 67, 68), grew("encoder", 67, 68))
    assert places(found) == [("encoder", "", 1)]


def test_a_leaf_that_has_become_a_container_is_no_older_baseline():
    was = make_report(
        nodes=(node("encoder", "call_module", "encoder", "encoder", "Linear", 20),),
        module_types={"": "Net", "encoder": "Linear"},
    )
    now = make_report(
        nodes=(node("encoder_0", "call_module", "encoder.0", "encoder.0", "Linear", 21),),
        module_types={"": "Net", "encoder": "Sequential", "encoder.0": "Linear"},
    )
    assert places(verdict(now, was)) == [("encoder.0", "", 21), ("encoder", "", -20)]


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


@pytest.mark.parametrize(
    ("mode", "torch", "ok"),
    [
        ("train with backward", "2.16.0", True),
        ("train with backward", "2.15.0", False),
        ("train", "2.16.0", False),
    ],
)
def test_what_autograd_moves_is_compared_within_a_version_of_torch(mode, torch, ok):
    more = with_costs(make_report(mode=mode, torch=torch), {}, memory_traffic={"add": 97}, ops={"add": 2})
    found = verdict(more, make_report(mode=mode))
    assert found.ok is ok
    assert names(found.changes.grown)[:2] == ([] if ok else ["memory_traffic", "ops"])
    more = with_costs(more, {"add": 7})
    assert names(verdict(more, make_report(mode=mode)).changes.grown)[0] == "flops"


def test_two_baselines_compare_without_a_report():
    was, now = snapshot(make_report()), snapshot(with_costs(make_report(), {"add": 9}))
    found = changes(now, was)
    assert names(found.grown) == ["flops", "", "body"]
    assert [place.function for place in found.places] == ["add"]
    assert changes(now, was, {"flops": "0.03"}).grown == (), "3 of 106 are less than 3 %"
    assert names(changes(was, now).shrunk) == ["flops", "", "body"]
    assert not changes(was, was).any_cost


def test_a_peak_is_told_apart_from_that_of_a_layer_which_is_gone():
    def sequence(*kinds, owners):
        nodes = [node(f"seq_{i}", "call_module", f"seq.{i}", f"seq.{i}", k, 5) for i, k in enumerate(kinds)]
        types = {"": "Net", "seq": "Sequential"} | {f"seq.{i}": kind for i, kind in enumerate(kinds)}
        return snapshot(make_report(nodes=tuple(nodes), module_types=types, peak_owners=owners))

    was = sequence("A", "B", "C", owners={"seq.0": 100, "seq.1": 50, "seq.2": 30})
    now = sequence("B", "C", owners={"seq.0": 50, "seq.1": 30})
    before, after = changes(now, was).peaks
    assert before.owners == {"seq.0 (gone)": 100, "seq.0": 50, "seq.1": 30}
    assert after.owners == {"seq.0": 50, "seq.1": 30}


def test_a_layer_that_moved_in_its_sequence_is_no_growth():
    def sequence(*costs):
        kinds = {3: "Norm", 5: "Linear"}
        nodes = [
            node(f"seq_{i}", "call_module", f"seq.{i}", f"seq.{i}", kinds[cost], cost)
            for i, cost in enumerate(costs)
        ]
        types = {"": "Net", "seq": "Sequential"} | {f"seq.{i}": kinds[c] for i, c in enumerate(costs)}
        return make_report(nodes=tuple(nodes), module_types=types)

    found = verdict(sequence(5, 5, 5, 3), sequence(3, 5, 5, 5))
    assert found.ok
    assert [(place.module, place.was is None, place.now is None) for place in found.changes.places] == [
        ("seq.0", False, True),
        ("seq.3", True, False),
    ]
