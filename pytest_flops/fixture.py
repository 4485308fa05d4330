"""The `flops` fixture: count a model, judge it, and fail the test where the budget is broken."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

import pytest

from pytest_flops.baseline import METRICS, Baseline, snapshot
from pytest_flops.budget import Budget
from pytest_flops.errors import BaselineError, FlopsError
from pytest_flops.failure import failure_text
from pytest_flops.paths import baseline_path, shown_path
from pytest_flops.report import Report
from pytest_flops.session import Note, Options, Outcome
from pytest_flops.store import Place, load, save
from pytest_flops.table import node_digest, node_table
from pytest_flops.verdict import Verdict, compare
from pytest_flops.wording import UNITS, delta, plural

T = TypeVar("T")


@dataclass
class Attempt:
    """One run of one test: a test that is run again starts from a new one."""

    item: pytest.Item
    budget: Budget
    options: Options
    place: Place
    measured: dict[str, Baseline] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    accepted: dict[str, Baseline] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    sections: list[tuple[str, str]] = field(default_factory=list)
    failure: str = ""
    _stored: dict[str, Baseline] | None = None

    @property
    def stored(self) -> dict[str, Baseline]:
        """The baselines in the test's file, read once."""
        if self._stored is None:
            self._stored = load(self.place)
        return self._stored

    @property
    def verbose(self) -> bool:
        """Whether the run asks for everything (`-vv`)."""
        return self.item.config.get_verbosity() > 1

    def note(self, kind: str, text: str) -> None:
        """Keep a line for the summary of the run."""
        self.notes.append((kind, f"{self.item.nodeid} {text}"))

    def outcome(self) -> Outcome:
        """Return what the summary needs of this test, in builtin types that travel between processes."""
        return {
            "models": len(self.measured),
            "file": str(self.place.path),
            "test": self.place.test,
            "gated": sorted(self.gated),
            "notes": self.notes,
        }


def start_attempt(item: pytest.Item, budget: Budget, options: Options) -> Attempt:
    """Return a new attempt at a test, and drop the properties that an earlier one recorded."""
    item.user_properties[:] = [pair for pair in item.user_properties if not pair[0].startswith(_PROPERTY)]
    return Attempt(item, budget, options, place_of(item))


class Flops:
    """Count the FLOPs of models and hold them against the test's budget.

    Call it with a model and its inputs: it counts one forward pass on shapes alone, compares the count with
    the baseline and with the ceilings of the test's `flops_budget` markers, and returns the report. A
    broken budget fails the test.
    """

    def __init__(self, attempt: Attempt, name: str | None = None) -> None:
        self._attempt = attempt
        self._name = name

    def __call__(self, model: Any, /, *args: Any, **kwargs: Any) -> Report:
        """Count a model, called with these inputs, and fail the test where that breaks the budget."""
        __tracebackhide__ = True
        try:
            report = self.count(model, *args, **kwargs)
            plainly(gate, self._attempt, self._name or report.model, report)
        except pytest.fail.Exception as err:
            self._attempt.failure = str(err)
            raise
        return report

    def count(self, model: Any, /, *args: Any, **kwargs: Any) -> Report:
        """Count only: no baseline, no ceiling, no failure."""
        __tracebackhide__ = True
        from pytest_flops.tracer import trace

        budget = self._attempt.budget
        return plainly(trace, model, args, kwargs, train=budget.train, backward=budget.backward)

    def named(self, name: str) -> Flops:
        """Return the fixture for one of several models of a test; the default name is the model's class."""
        __tracebackhide__ = True
        if not isinstance(name, str) or not name:
            pytest.fail(f"flops.named() needs a name, not {name!r}.", pytrace=False)
        return Flops(self._attempt, name)


def plainly(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call a function and turn our own errors into a failure of the test that shows their text alone."""
    __tracebackhide__ = True
    try:
        return function(*args, **kwargs)
    except FlopsError as err:
        message = str(err)
    pytest.fail(message, pytrace=False)


def gate(attempt: Attempt, name: str, report: Report) -> None:
    """Judge a report, remember what it means for the baseline, and fail the test if the budget is broken."""
    __tracebackhide__ = True
    if name in attempt.measured:
        pytest.fail(
            f'flops: this test counts two models named "{name}". '
            'Tell them apart: flops.named("encoder")(model, ...).',
            pytrace=False,
        )
    attempt.measured[name] = now = snapshot(report)
    record_properties(attempt.item, name, report)
    was = attempt.stored.get(name) if attempt.budget.baseline else None
    verdict = compare(report, was, attempt.budget)
    if attempt.budget.baseline:
        attempt.gated.add(name)
    if verdict.within_limits and accepts(attempt, was, now):
        attempt.accepted[name] = now
    elif not verdict.ok or (attempt.options.strict and verdict.shrunk):
        fail(attempt, name, report, verdict)
    else:
        note_changes(attempt, name, verdict)
    note_caveats(attempt, name, report)


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
    peaks = verdict.breaks_peak_memory
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


_PROPERTY = "flops:"


def record_properties(item: pytest.Item, name: str, report: Report) -> None:
    """Hand the totals to reports such as JUnit XML, as `flops:<model>:<metric>`."""
    for metric in METRICS:
        item.user_properties.append((f"{_PROPERTY}{name}:{metric}", getattr(report, metric)))


# After the test body ----------------------------------------------------------------------------------------


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
    report.flops = attempt.outcome()  # type: ignore[attr-defined]


def write_accepted(attempt: Attempt) -> None:
    """Write the accepted baselines of a test, less those of models that it no longer counts."""
    if attempt.options.update is None or not attempt.gated:
        return
    stored = attempt.stored
    keep = stored.keys() if attempt.options.update == "new" else attempt.gated
    models = {name: stored[name] for name in stored if name in keep} | attempt.accepted
    if not attempt.accepted and len(models) == len(stored):
        return
    save(attempt.place, models)
    for name in sorted(attempt.accepted.keys() | (stored.keys() - models.keys())):
        attempt.note("updated", f"{name}: {updated(stored.get(name), models.get(name))}")


def fail_unmeasured(item: pytest.Item, report: pytest.TestReport) -> None:
    """Fail a test that has a budget, passed, and measured nothing."""
    fail_report(item, report, nothing_measured(item))


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
        return f"new, {now.totals['flops']:,} FLOPs"
    changes = [
        changed(metric, was.totals[metric], now.totals[metric])
        for metric in METRICS
        if was.totals[metric] != now.totals[metric]
    ]
    for what, old, new in (
        ("mode", was.mode, now.mode),
        ("inputs", ", ".join(was.inputs), ", ".join(now.inputs)),
        ("formulas", was.formulas, now.formulas),
    ):
        changes += [f"{what} {old} -> {new}"] if old != new else []
    return "; ".join(changes) or "the same FLOPs in other places"


def changed(metric: str, was: int, now: int) -> str:
    """Return the change of one total: "40 -> 44 FLOPs: +4 (+10.00%)"."""
    return f"{was:,} -> {now:,} {UNITS[metric]}: {delta(was, now)}"


def nothing_measured(item: pytest.Item) -> str:
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


# Places and commands ----------------------------------------------------------------------------------------


def place_of(item: pytest.Item) -> Place:
    """Return where a test's baseline lives.

    The id starts at the test file's own name and is made of the names inside it: the same from whatever
    folder pytest runs, with whatever root, and free of what xdist adds to node ids.
    """
    folders = (pytest.Session, pytest.Directory, pytest.File)
    names = [node.name for node in item.listchain() if not isinstance(node, folders)]
    test = "::".join([item.path.name, *names])
    path = baseline_path(item.path, test)
    return Place(path, shown_path(path, item.config.invocation_params.dir), test)


def accept_command(item: pytest.Item) -> str:
    """Return the command that accepts the present counts of one test, quoted for the user's shell."""
    inside = place_of(item).test.partition("::")[2]
    argument = f"{shown_path(item.path, item.config.invocation_params.dir)}::{inside}"
    command = ["pytest", argument, "--flops-update"]
    return subprocess.list2cmdline(command) if os.name == "nt" else shlex.join(command)
