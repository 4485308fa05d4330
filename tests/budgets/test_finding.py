"""One metric against its limits, counted or measured; and what follows from what was measured. Pure."""

from __future__ import annotations

import pytest

from pytest_flops.budgets.budget import budget_from
from pytest_flops.budgets.finding import Finding, judge
from pytest_flops.budgets.verdict import MeasuredVerdict, judge_measured
from pytest_flops.metrics import METRICS
from pytest_flops.results.measured import Latency, Measured


def latency(ratio=2.0, median_ms=40.0, reference=1) -> Measured:
    return {"latency": Latency(ratio, median_ms, 0.01, 100, reference)}


def memory(size: int) -> Measured:
    return {"cuda_memory": size}


def finding(now: Measured, was: Measured | None = None, **keywords) -> Finding:
    (found,) = judge_measured(now, was or {}, budget_from([((), keywords)]))
    return found


@pytest.mark.parametrize(
    ("now", "rtol", "comparison", "reason"),
    [
        (2.0, 0, "within", "the same"),
        (2.001, 0, "grew", "a thousandth more, and no tolerance"),
        (2.399, 0.2, "within", "one less than the limit"),
        (2.4, 0.2, "within", "the limit is inclusive"),
        (2.401, 0.2, "grew", "one beyond the limit"),
        (1.6, 0.2, "within", "the tolerance holds downward too"),
        (1.599, 0.2, "shrank", "one beyond it, downward"),
    ],
)
def test_latency_over_its_baseline(now, rtol, comparison, reason):
    assert finding(latency(now), latency(2.0), latency_rtol=rtol).comparison == comparison, reason


def test_tolerance_is_exact_in_decimal():
    assert 1.1 * (1 + 0.1) != 1.21  # in binary the limit is not where people see it
    assert finding(latency(1.21), latency(1.1), latency_rtol=0.1).comparison == "within"
    assert finding(latency(1.211), latency(1.1), latency_rtol=0.1).comparison == "grew"


@pytest.mark.parametrize(
    ("median_ms", "over", "reason"),
    [
        (29.999999, False, "one ns less"),
        (30.0, False, "the limit is inclusive"),
        (30.000001, True, "one ns more"),
    ],
)
def test_latency_over_its_ceiling(median_ms, over, reason):
    found = finding(latency(median_ms=median_ms), latency="30ms")
    assert (found.over_limit, found.comparison) == (over, "not asked"), reason


@pytest.mark.parametrize(
    ("now", "comparison", "reason"),
    [
        (1049, "within", "one less than the limit"),
        (1050, "within", "the limit is inclusive"),
        (1051, "grew", "one byte beyond"),
        (950, "within", "the tolerance holds downward too"),
        (949, "shrank", "one byte beyond it, downward"),
    ],
)
def test_cuda_memory_over_its_baseline(now, comparison, reason):
    assert finding(memory(now), memory(1000), cuda_memory_rtol=0.05).comparison == comparison, reason


@pytest.mark.parametrize(("now", "over"), [(1023, False), (1024, False), (1025, True)])
def test_cuda_memory_over_its_ceiling(now, over):
    found = finding(memory(now), cuda_memory="1KiB")
    assert (found.metric.name, found.over_limit, found.comparison) == ("cuda_memory", over, "not asked")


@pytest.mark.parametrize(("median_ms", "over"), [(31.0, True), (29.0, False)])
def test_ceiling_and_baseline_are_judged_apart(median_ms, over):
    found = finding(latency(2.5, median_ms), latency(2.0), latency="30ms", latency_rtol=0.2)
    assert (found.over_limit, found.comparison) == (over, "grew")


@pytest.mark.parametrize(
    ("was", "comparison"),
    [({}, "no baseline"), (memory(5), "no baseline"), (latency(2.0, reference=2), "other reference")],
)
def test_nothing_to_compare_with(was, comparison):
    found = finding(latency(9.0), was, latency_rtol=0.2)
    assert found.comparison == comparison
    assert found.uncompared


def test_without_a_tolerance_or_a_baseline_nothing_is_compared():
    assert finding(latency(9.0), latency(1.0), latency="1s").comparison == "not asked"
    lone = finding(memory(9), memory(1), cuda_memory=10, cuda_memory_rtol=0.1, baseline=False)
    assert (lone.over_limit, lone.comparison) == (False, "not asked")


def compared(name, comparison, now=None, limit=None) -> Finding:
    """Return a finding of which this is already known."""
    return Finding(METRICS[name], now or latency(3.0)["latency"], None, limit, None, comparison)


# What follows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("comparison", "new", "changed", "reason"),
    [
        ("not asked", False, False, "a ceiling alone has no baseline"),
        ("no baseline", True, False, "the first on this machine"),
        ("other reference", False, True, "there is one, which does not compare"),
        ("within", False, False, "noise is no reason to rewrite a file"),
        ("grew", False, True, "accepted"),
        ("shrank", False, True, "locked in"),
    ],
)
def test_what_an_update_takes(comparison, new, changed, reason):
    found = compared("latency", comparison)
    taken = {update: found.accepted(update) for update in (None, "new", "changed", "all")}
    assert taken == {None: False, "new": new, "changed": changed, "all": new or changed}, reason


def verdict(comparison, over=False):
    found = compared("latency", comparison, limit=0 if over else None)
    return MeasuredVerdict("M", (found,), latency(2.0))


@pytest.mark.parametrize(
    ("comparison", "plain", "strict", "reason"),
    [
        ("not asked", False, False, "nothing to compare"),
        ("no baseline", False, True, "visible, and a failure only of strict runs"),
        ("other reference", False, True, "the same"),
        ("within", False, False, "passes"),
        ("grew", True, True, "fails"),
        ("shrank", False, False, "less by chance, so not even strict runs fail"),
    ],
)
def test_what_fails(comparison, plain, strict, reason):
    found = verdict(comparison)
    assert bool(found.broken(None, strict=False)) is plain, reason
    assert bool(found.broken(None, strict=True)) is strict, reason
    assert found.broken("all", strict=True) == (), "an update accepts it"


@pytest.mark.parametrize("update", [None, "new", "changed", "all"])
def test_no_update_lifts_a_ceiling(update):
    assert verdict("within", over=True).broken(update, strict=False)


def test_an_update_writes_only_what_it_takes():
    was, now = {**latency(2.0), "cuda_memory": 100}, {**latency(3.0), "cuda_memory": 104}
    findings = compared("latency", "grew"), compared("cuda_memory", "within", now=104)
    found = MeasuredVerdict("M", findings, was)
    assert found.now == now
    assert found.accepted("all") == {**now, "cuda_memory": 100}
    assert found.accepted("new") == was
    assert found.accepted(None) == was


@pytest.mark.parametrize("name", ["flops", "peak_memory", "cuda_memory"])
@pytest.mark.parametrize(
    ("now", "comparison", "over", "reason"),
    [
        (109, "within", False, "one less than both limits"),
        (110, "within", False, "limits are inclusive"),
        (111, "grew", True, "one beyond"),
        (89, "shrank", False, "one beyond the tolerance, downward"),
    ],
)
def test_counted_and_measured_are_judged_alike(name, now, comparison, over, reason):
    found = judge(METRICS[name], now, 100, limit=110, rtol="0.1")
    assert (found.comparison, found.over_limit) == (comparison, over), reason
