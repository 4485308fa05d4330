"""What happens after the test body: write what was accepted, and see that something was measured."""

from __future__ import annotations

import pytest

from pytest_flops.budgets.baseline import Baseline
from pytest_flops.errors import BaselineError
from pytest_flops.metrics import METRICS
from pytest_flops.plugin.attempt import Attempt
from pytest_flops.reporting.measurements import measured_changes


def conclude(attempt: Attempt, report: pytest.TestReport) -> None:
    """Write what the run accepted if the test passed, and let the report carry what the summary needs."""
    if report.passed and not hasattr(report, "wasxfail"):
        problem = attempt.failure and f"The test went on after this failure of its budget:\n{attempt.failure}"
        try:
            if not problem:
                write_accepted(attempt)
        except BaselineError as err:
            problem = str(err)
        if problem:
            fail_report(attempt.item, report, problem)
    if report.failed:
        report.sections.extend(attempt.sections)
    report.flops = attempt.entry()  # type: ignore[attr-defined]


def write_accepted(attempt: Attempt) -> None:
    """Write the accepted baselines of a test, less those of models that it no longer counts."""
    if attempt.options.update is None or not attempt.gated:
        return
    stored = attempt.stored
    keep = stored.keys() if attempt.options.update == "new" else attempt.gated
    models = {name: stored[name] for name in stored if name in keep} | attempt.accepted
    if not attempt.accepted and len(models) == len(stored):
        return
    attempt.store(models)
    for name in sorted(attempt.accepted.keys() | (stored.keys() - models.keys())):
        attempt.note("updated", f"{name}: {updated(stored.get(name), models.get(name))}")


def fail_uncounted(item: pytest.Item, report: pytest.TestReport) -> None:
    """Fail a test that has a budget, passed, and measured nothing."""
    fail_report(item, report, nothing_counted(item))


def fail_report(item: pytest.Item, report: pytest.TestReport, text: str) -> None:
    """Turn the report of a passed test body into a failure with this text alone."""
    try:
        pytest.fail(text, pytrace=False)
    except pytest.fail.Exception as err:
        report.longrepr = item.repr_failure(pytest.ExceptionInfo.from_exception(err))
    report.outcome = "failed"


def updated(was: Baseline | None, now: Baseline | None) -> str:
    """Return how a baseline changed: old -> new."""
    if now is None:
        return "removed, the test no longer counts it"
    if was is None:
        return "; ".join(
            [f"new, {METRICS['flops'].amount(now.totals['flops'])}", *measured_changes({}, now.measured)]
        )
    return "; ".join([*_count_changes(was, now), *measured_changes(was.measured, now.measured)])


def _count_changes(was: Baseline, now: Baseline) -> list[str]:
    if now.same_cost(was):
        return []
    changes = [
        METRICS[name].change(was.totals[name], total)
        for name, total in now.totals.items()
        if was.totals.get(name, total) != total
    ]
    changes += [
        f"{METRICS[name].amount(now.totals[name])} new" for name in now.totals if name not in was.totals
    ]
    for what, old, new in (
        ("mode", was.mode, now.mode),
        ("inputs", ", ".join(was.inputs), ", ".join(now.inputs)),
        ("formulas", was.formulas, now.formulas),
    ):
        changes += [f"{what} {old} -> {new}"] if old != new else []
    if not changes and was.has_types:
        return ["the same cost in other places"]
    return changes if was.has_types else [*changes, "written in the present format"]


def nothing_counted(item: pytest.Item) -> str:
    """Return why a test with a budget fails that never called the fixture, and the way out for its kind."""
    import unittest

    text = "This test has a flops_budget but measured nothing: it never called flops(model, ...).\n"
    if not isinstance(item, pytest.Function):
        return text + (
            "Only test functions can. Where a conftest gives the marker to every item, let it leave out the "
            'ones without "flops" among their `fixturenames`.'
        )
    if item.cls is not None and issubclass(item.cls, unittest.TestCase):
        return text + (
            "Methods of a unittest.TestCase take no fixtures as arguments. Give the class\n\n"
            "    @pytest.fixture(autouse=True)\n"
            "    def _give_flops(self, flops):\n"
            "        self.flops = flops\n\n"
            "and call self.flops(model, ...) in the test."
        )
    if "flops" not in item.fixturenames:
        return text + "Take the fixture `flops` as an argument and call it, or remove the marker."
    return text + "flops.count(...) only counts; call flops(model, ...), or remove the marker."
