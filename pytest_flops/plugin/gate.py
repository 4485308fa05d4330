"""From a report to a verdict, and what follows: a failure, a baseline to write, lines for the summary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NoReturn

import pytest

from pytest_flops.budgets.baseline import METRICS, Baseline, snapshot
from pytest_flops.budgets.measured_verdict import MeasuredVerdict
from pytest_flops.budgets.verdict import Verdict, compare
from pytest_flops.plugin.attempt import PROPERTY, Attempt, accept_command
from pytest_flops.plugin.measure import Call, Run, measure
from pytest_flops.plugin.progress import shown
from pytest_flops.reporting.failure import failure_text, measured_failure_text, uncompared
from pytest_flops.reporting.tables import node_digest, node_table
from pytest_flops.reporting.wording import changed, measured_change, plural
from pytest_flops.results.measured import Measured
from pytest_flops.results.report import Report


def gate(attempt: Attempt, name: str, call: Call, report: Report) -> None:
    """Judge a report, remember what it means for the baseline, and fail the test if the budget is broken.

    What has to be measured is, once the counts are within the budget or accepted: measuring takes seconds.
    """
    __tracebackhide__ = True
    if name in attempt.counted:
        pytest.fail(
            f'flops: this test counts two models named "{name}". '
            'Tell them apart: flops.named("encoder")(model, ...).',
            pytrace=False,
        )
    attempt.counted[name] = now = snapshot(report)
    record(attempt.item, name, {metric: getattr(report, metric) for metric in METRICS})
    was = attempt.stored.get(name) if attempt.budget.baseline else None
    verdict = compare(report, was, attempt.budget)
    if attempt.budget.baseline:
        attempt.gated.add(name)
    accepting = verdict.within_limits and accepts(attempt, was, now)
    if not accepting and (not verdict.ok or (attempt.options.strict and verdict.shrunk)):
        fail(attempt, name, report, verdict)
    # A count that changed says nothing of how the baselines of other machines were measured; other inputs do.
    kept = was.measured if was is not None and was.same_inputs(now) else {}
    measured = gate_measured(attempt, name, call, kept) if attempt.budget.measured else kept
    if accepting:
        attempt.accepted[name] = replace(now, measured=measured)
    elif was is not None and measured != was.measured:
        attempt.accepted[name] = replace(was, measured=measured)
    if not accepting:
        note_changes(attempt, name, verdict)
    note_caveats(attempt, name, report)


def gate_measured(
    attempt: Attempt, name: str, call: Call, baselines: Mapping[str, Measured]
) -> Mapping[str, Measured]:
    """Measure a model, fail the test if that breaks the budget, and return the new baselines by machine."""
    __tracebackhide__ = True
    options = attempt.options
    with shown(attempt.item, name) as step:
        run = Run(options.update, options.time_limit, step)
        verdict = measure(call, attempt.budget, baselines, run)
    record_measured(attempt.item, name, verdict.now)
    if verdict.broken(options.update, options.strict):
        text = measured_failure_text(
            name,
            verdict,
            attempt.budget,
            accept=accept_command(attempt.item),
            strict=options.strict,
            update=options.update,
        )
        pytest.fail(text, pytrace=False)
    note_measured(attempt, name, verdict)
    entry = verdict.accepted(options.update)
    return {**baselines, verdict.machine: entry} if entry != verdict.was else baselines


def accepts(attempt: Attempt, was: Baseline | None, now: Baseline) -> bool:
    """Tell whether this run takes the count for the new baseline."""
    update = attempt.options.update
    if not attempt.budget.baseline or update is None:
        return False
    if was is None:
        return update in ("new", "all")
    return update in ("changed", "all") and not now.same_cost(was)


def fail(attempt: Attempt, name: str, report: Report, verdict: Verdict) -> NoReturn:
    """Fail the test with the reason, and the node table as a section of its own."""
    __tracebackhide__ = True
    peaks = verdict.broken_peak_memory is not None
    table = node_table(report, peaks=peaks) if attempt.verbose else node_digest(report, verdict)
    attempt.sections.append((f"flops: nodes of {name}", table))
    text = failure_text(
        name,
        report,
        verdict,
        attempt.budget,
        accept=accept_command(attempt.item),
        file=attempt.place.shown,
        strict=attempt.options.strict,
        updating=attempt.options.update is not None,
        full=attempt.verbose,
    )
    pytest.fail(text, pytrace=False)


def note_changes(attempt: Attempt, name: str, verdict: Verdict) -> None:
    """Keep for the summary what differs from the baseline without breaking the budget."""
    if not (verdict.totals or verdict.modules or verdict.functions):
        return
    totals = ", ".join(changed(str(change.what), change.was, change.now) for change in verdict.totals)
    if any(change.now < change.was for change in verdict.totals):
        kind = "improved"
    else:
        kind = "tolerated" if totals else "moved"
    attempt.note(kind, f"{name}: {totals or 'the same FLOPs in other places'}")


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
            attempt.note("uncompared", f"{name}: {uncompared(finding, verdict)}")
        if finding.comparison == "shrank":
            change = measured_change(finding.metric, verdict.was, verdict.now)
            attempt.note("improved", f"{name}: {change} on {verdict.machine}")


def record_measured(item: pytest.Item, name: str, measured: Measured) -> None:
    """Hand what was measured to reports such as JUnit XML."""
    if measured.latency is not None:
        latency = measured.latency
        record(item, name, {"latency_ms": latency.median_ms, "latency_ratio": latency.ratio})
    if measured.cuda_memory is not None:
        record(item, name, {"cuda_memory": measured.cuda_memory})


def record(item: pytest.Item, name: str, values: Mapping[str, float]) -> None:
    """Hand numbers to reports such as JUnit XML, as `flops:<model>:<metric>`."""
    item.user_properties.extend((f"{PROPERTY}{name}:{metric}", value) for metric, value in values.items())
