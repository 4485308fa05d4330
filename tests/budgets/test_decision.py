"""What follows from a count: a pure function of report, baseline, budget and the options of the run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_flops.budgets.baseline import Module, Peak, snapshot
from pytest_flops.budgets.budget import budget_from
from pytest_flops.budgets.decision import decide
from pytest_flops.results.measured import Latency
from tests.fakes import make_report, with_costs

SAME = make_report()
MORE = with_costs(SAME, {"add": 12})
LESS = with_costs(SAME, {"add": 5})
MIXED = with_costs(SAME, {"add": 5}, memory_traffic={"add": 97})
OTHER_INPUTS = make_report(inputs=("x: float32[9, 3]",))


def older(report):
    """Return a report's baseline as it was read of format 1: FLOPs by module, no types, three totals."""
    found = snapshot(report)
    return replace(
        found,
        totals={name: found.totals[name] for name in ("flops", "macs", "params")},
        metrics=frozenset({"flops"}),
        modules={path: Module("", _flops(module.costs)) for path, module in found.modules.items()},
        functions={function: _flops(costs) for function, costs in found.functions.items()},
        peak=Peak("", {}),
    )


def _flops(costs):
    return {name: amount for name, amount in costs.items() if name == "flops"}


def decided(report, was=SAME, update=None, strict=False, **keywords):
    was = snapshot(was) if was is SAME or was is MORE else was
    return decide(report, was, budget_from([((), keywords)]), update=update, strict=strict)


@pytest.mark.parametrize(
    ("report", "was", "update", "fails", "accepts", "reason"),
    [
        (SAME, SAME, None, False, False, "the same"),
        (SAME, SAME, "all", False, False, "the same: no reason to write"),
        (MORE, SAME, None, True, False, "it grew"),
        (MORE, SAME, "new", True, False, "it grew, and only what is new is written"),
        (MORE, SAME, "changed", False, True, "growth accepted"),
        (MORE, SAME, "all", False, True, "growth accepted"),
        (LESS, SAME, None, False, False, "less breaks nothing"),
        (LESS, SAME, "all", False, True, "less, locked in"),
        (SAME, None, None, True, False, "no baseline"),
        (SAME, None, "new", False, True, "the first"),
        (SAME, None, "changed", True, False, "only what has a baseline is written"),
        (SAME, None, "all", False, True, "the first"),
        (OTHER_INPUTS, SAME, None, True, False, "not comparable"),
        (OTHER_INPUTS, SAME, "all", False, True, "other inputs accepted"),
    ],
)
def test_what_fails_and_what_is_accepted(report, was, update, fails, accepts, reason):
    found = decided(report, was, update)
    assert (found.fails, found.accepted is not None) == (fails, accepts), reason
    assert found.accepted in (None, snapshot(report))


@pytest.mark.parametrize("update", [None, "new", "changed", "all"])
def test_no_update_lifts_a_ceiling(update):
    found = decided(MORE, None, update, flops=111)
    assert found.fails
    assert found.accepted is None


@pytest.mark.parametrize(
    ("report", "strict", "fails"), [(SAME, True, False), (LESS, True, True), (LESS, False, False)]
)
def test_a_strict_run_fails_for_less(report, strict, fails):
    assert decided(report, strict=strict).fails is fails


def test_without_a_baseline_only_ceilings_decide():
    found = decided(MORE, SAME, "all", baseline=False, flops=112)
    assert (found.fails, found.accepted, found.was, found.drift) == (False, None, None, None)
    assert decided(MORE, SAME, baseline=False, flops=111).fails


@pytest.mark.parametrize(
    ("report", "rtol", "drift"),
    [
        (SAME, 0, None),
        (LESS, 0, "improved"),
        (MORE, 0.1, "tolerated"),
        (MIXED, 0.5, "tolerated"),
        (with_costs(SAME, {"body_up": 41, "body_down": 59}), 0.1, "moved"),
    ],
)
def test_drift_that_breaks_nothing(report, rtol, drift):
    assert decided(report, rtol=rtol).drift == drift
    assert decided(report, rtol=rtol, update="all").drift is None, "it is accepted"


@pytest.mark.parametrize(
    ("flops", "traffic", "drift", "reason"),
    [
        (5, 96, "improved", "less of one"),
        (5, 88, "improved", "less of both"),
        (5, 97, "tolerated", "the FLOPs were bought with traffic"),
        (6, 97, "tolerated", "more of one"),
    ],
)
def test_it_improved_only_where_nothing_counted_grew(flops, traffic, drift, reason):
    now = with_costs(SAME, {"add": flops}, memory_traffic={"add": traffic})
    found = decided(now, rtol={"memory_traffic": 0.1})
    assert (found.fails, found.drift) == (False, drift), reason


def test_more_of_a_cost_that_has_no_tolerance_fails_whatever_it_saves():
    now = with_costs(SAME, {"add": 5}, memory_traffic={"add": 88}, ops={"add": 2})
    assert decided(now, rtol={"memory_traffic": 0.1}).fails


# A baseline that is older than a metric ---------------------------------------------------------------------


def test_a_total_that_the_baseline_lacks_is_not_accepted_yet():
    found = decided(SAME, older(SAME))
    assert [finding.metric.name for finding in found.verdict.changes.uncompared] == [
        "parameter_memory",
        "memory_traffic",
        "ops",
        "peak_memory",
    ]
    assert (found.fails, found.accepted, found.drift) == (False, None, None)
    assert decided(SAME, older(SAME), strict=True).fails


def test_the_totals_that_it_has_still_gate():
    assert decided(MORE, older(SAME)).fails
    assert decided(MORE, older(SAME), update="new").fails


@pytest.mark.parametrize("update", ["new", "changed", "all"])
def test_every_update_fills_it_in(update):
    found = decided(SAME, older(SAME), update, strict=True)
    assert not found.fails
    assert found.accepted == snapshot(SAME)


def test_an_update_of_what_is_new_writes_nothing_where_the_rest_changed():
    found = decided(LESS, older(SAME), "new")
    assert found.accepted is None, "105 FLOPs are not for this mode to accept"
    assert (found.fails, found.drift) == (False, "improved")
    assert decided(LESS, older(SAME), "new", strict=True).fails


# What was measured ------------------------------------------------------------------------------------------

EPYC = {"EPYC": {"latency": Latency(2.0, 20.0, 0.01, 9, 1)}}


@pytest.mark.parametrize(
    ("report", "update", "kept"),
    [(SAME, None, EPYC), (MORE, "all", EPYC), (OTHER_INPUTS, "all", {})],
)
def test_other_inputs_drop_what_was_measured(report, update, kept):
    was = replace(snapshot(SAME), measured=EPYC)
    assert decided(report, was, update).measured == kept


def test_what_is_written_has_the_new_measurements():
    was = replace(snapshot(SAME), measured=EPYC)
    found = decided(SAME, was, "all")
    assert found.accept(EPYC) is None
    more = {**EPYC, "H100": {"cuda_memory": 5}}
    assert found.accept(more) == replace(was, measured=more)
    assert decided(MORE, was, "all").accept(more) == replace(snapshot(MORE), measured=more)
