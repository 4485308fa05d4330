"""Act on what was decided about a model: fail the test, measure, keep what is to be written and said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn

import pytest

from pytest_flops.budgets.decision import Decision, decide
from pytest_flops.budgets.finding import Finding
from pytest_flops.budgets.verdict import MeasuredVerdict
from pytest_flops.plugin.attempt import PROPERTY, Attempt, accept_command
from pytest_flops.plugin.measure import measure
from pytest_flops.plugin.progress import shown
from pytest_flops.reporting.failure import failure_text, not_accepted_yet
from pytest_flops.reporting.measurements import measured_change, measured_failure_text, uncompared
from pytest_flops.reporting.places import culprit, moves, where
from pytest_flops.reporting.tables import node_digest
from pytest_flops.results.measured import Latency, Measured
from pytest_flops.results.report import Report
from pytest_flops.units import percent, plural

if TYPE_CHECKING:
    from pytest_flops.counting.trace import Traced


def gate(attempt: Attempt, name: str, found: Traced, report: Report) -> None:
    """Hold a count against the budget: fail the test, or keep what this run accepts and has to say.

    Where the budget asks for measurements, they are made once the counts pass: they take seconds.
    """
    __tracebackhide__ = True
    if name in attempt.counted:
        pytest.fail(
            f'flops: this test counts two models named "{name}". '
            'Tell them apart: flops.named("encoder")(model, ...).',
            pytrace=False,
        )
    options, budget = attempt.options, attempt.budget
    was = attempt.stored.get(name) if budget.baseline else None
    decision = decide(report, was, budget, update=options.update, strict=options.strict)
    attempt.counted[name] = decision.now
    attempt.gated |= {name} if budget.baseline else set()
    record(attempt.item, name, report.totals)
    if decision.fails:
        fail(attempt, name, report, decision)
    measured = (
        gate_measured(attempt, name, found, decision.measured) if budget.measured else decision.measured
    )
    accepted = decision.accept(measured)
    if accepted is not None:
        attempt.accepted[name] = accepted
    note_counted(attempt, name, report, decision)
    note_changes(attempt, name, decision)
    note_caveats(attempt, name, report)


def gate_measured(
    attempt: Attempt, name: str, found: Traced, baselines: Mapping[str, Measured]
) -> Mapping[str, Measured]:
    """Measure a model, fail the test if that breaks the budget, and return the new baselines by machine."""
    __tracebackhide__ = True
    options = attempt.options
    with shown(attempt.item, name) as announce:
        verdict = measure(
            found,
            attempt.budget,
            baselines,
            update=options.update,
            time_limit=options.time_limit,
            announce=announce,
        )
    record_measured(attempt.item, name, verdict.now)
    if verdict.broken(options.update, options.strict):
        accept = accept_command(attempt.item)
        text = measured_failure_text(
            name, verdict, accept=accept, strict=options.strict, update=options.update
        )
        pytest.fail(text, pytrace=False)
    note_measured(attempt, name, verdict)
    entry = verdict.accepted(options.update)
    return {**baselines, verdict.machine: entry} if entry != verdict.was else baselines


def fail(attempt: Attempt, name: str, report: Report, decision: Decision) -> NoReturn:
    """Fail the test with the reason; the node table is a section of its own where no change says enough."""
    __tracebackhide__ = True
    if attempt.verbose or not decision.verdict.changes.places:
        table = node_digest(report, decision.verdict, full=attempt.verbose)
        attempt.sections.append((f"flops: nodes of {name}", table))
    attempt.culprit = culprit(decision.verdict)
    attempt.is_acceptable = decision.verdict.within_limits
    text = failure_text(
        name,
        report,
        decision.verdict,
        attempt.budget,
        accept=accept_command(attempt.item),
        file=attempt.place.shown,
        strict=attempt.options.strict,
        updating=attempt.options.update is not None,
        full=attempt.verbose,
        unreached=sorted(attempt.stored.keys() - attempt.counted.keys()) if attempt.budget.baseline else (),
    )
    pytest.fail(text, pytrace=False)


def note_counted(attempt: Attempt, name: str, report: Report, decision: Decision) -> None:
    """Keep for the summary of a verbose run what the model costs, and how that differs from its baseline."""
    if attempt.verbosity < 1:
        return
    attempt.note("counted", f"{name}: {', '.join(_total_and_change(f) for f in decision.verdict.totals)}")
    if attempt.verbose:
        attempt.note("nodes", f"{name}\n{report.table()}")


def _total_and_change(finding: Finding) -> str:
    assert isinstance(finding.now, int)
    text = finding.metric.brief(finding.now)
    return (
        f"{text} ({percent(finding.was, finding.now)})"
        if isinstance(finding.was, int) and finding.changed
        else text
    )


def note_changes(attempt: Attempt, name: str, decision: Decision) -> None:
    """Keep for the summary what differs from the baseline without breaking the budget."""
    if decision.drift is not None:
        totals = [
            finding.metric.change(finding.was, finding.now)
            for finding in decision.verdict.totals
            if finding.changed and isinstance(finding.was, int) and isinstance(finding.now, int)
        ]
        changes = decision.verdict.changes
        what = ", ".join(totals) or f"the same cost in other places: {moves(changes)}"
        if decision.drift == "improved":
            what += where(changes, next(f.metric for f in changes.totals if f.changed), rising=False)
        attempt.note(decision.drift, f"{name}: {what}")
    if decision.accepted is None:
        for finding in decision.verdict.changes.uncompared:
            attempt.note("uncompared", f"{name}: {not_accepted_yet(finding)}")


def note_caveats(attempt: Attempt, name: str, report: Report) -> None:
    """Keep for the summary why a count may be too low, or was slow to make."""
    for op, calls in report.unsupported.items():
        attempt.note("unsupported", f"{name}: {op} ({plural(calls, 'call')}) counted as 0")
    if report.executed == "real":
        attempt.note("real", f"{name}: {report.reason}")


def note_measured(attempt: Attempt, name: str, verdict: MeasuredVerdict) -> None:
    """Keep for the summary what was measured and not compared, or is less than the baseline."""
    for finding in verdict.findings:
        if finding.accepted(attempt.options.update):
            continue
        if finding.uncompared:
            attempt.note("uncompared", f"{name}: {uncompared(finding, verdict.machine)}")
        if finding.shrank:
            change = measured_change(finding.metric, finding.was, finding.now)
            attempt.note("improved", f"{name}: {change} on {verdict.machine}")


def record_measured(item: pytest.Item, name: str, measured: Measured) -> None:
    """Hand what was measured to reports such as JUnit XML."""
    for metric, value in measured.items():
        if isinstance(value, Latency):
            record(item, name, {f"{metric}_ms": value.median_ms, f"{metric}_ratio": value.ratio})
        else:
            record(item, name, {metric: value})


def record(item: pytest.Item, name: str, values: Mapping[str, float]) -> None:
    """Hand numbers to reports such as JUnit XML, as `flops:<model>:<metric>`."""
    item.user_properties.extend((f"{PROPERTY}{name}:{metric}", value) for metric, value in values.items())
