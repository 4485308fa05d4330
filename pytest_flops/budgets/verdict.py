"""The verdict on what a model costs, against ceilings and the baseline. Pure: no files, no text."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from pytest_flops.budgets.baseline import Baseline, in_terms_of
from pytest_flops.budgets.budget import Budget
from pytest_flops.budgets.changes import Changes, changes
from pytest_flops.budgets.finding import Finding, judge
from pytest_flops.metrics import COUNTED, METRICS, Metric
from pytest_flops.results.measured import Measured
from pytest_flops.results.report import Report


@dataclass(frozen=True, slots=True)
class Excess:
    """A ceiling on one cost of modules, by glob, that a module exceeds."""

    metric: Metric
    glob: str
    limit: int
    module: str
    now: int


@dataclass(frozen=True, slots=True)
class Unmatched:
    """A module glob that matches no module, and the paths that come near."""

    glob: str
    near: tuple[str, ...]


_NO_CHANGES = Changes()


@dataclass(frozen=True, slots=True)
class Verdict:
    """Everything that a report says about a budget; what decides is in `ok`."""

    totals: tuple[Finding, ...] = ()
    """Every metric that was counted, against its ceiling and its baseline."""
    excesses: tuple[Excess, ...] = ()
    """Modules above the ceilings of their globs."""
    unmatched: tuple[Unmatched, ...] = ()
    """Globs that match no module."""
    unsupported: Mapping[str, int] = field(default_factory=dict)
    """Operators without an answer, where the budget does not take them for 0."""
    missing: bool = False
    """Whether there should be a baseline and is none."""
    changes: Changes = _NO_CHANGES
    """What differs from the baseline; nothing where there is none."""

    @property
    def over_limit(self) -> tuple[Finding, ...]:
        """Totals above their ceilings."""
        return tuple(finding for finding in self.totals if finding.over_limit)

    @property
    def within_limits(self) -> bool:
        """Whether all holds that no baseline can change: ceilings, globs, and an answer for every op."""
        return not (self.over_limit or self.excesses or self.unmatched or self.unsupported)

    @property
    def within_baseline(self) -> bool:
        """Whether there is a baseline, for these inputs, and nothing grew over it."""
        return not (self.missing or self.changes.mismatches or self.changes.grown)

    @property
    def ok(self) -> bool:
        """Whether the test passes."""
        return self.within_limits and self.within_baseline

    @property
    def peak_bound(self) -> int | None:
        """The ceiling or baseline, the lower of both, that a highest moment broke; None: neither."""
        found = [finding for finding in self.totals if finding.metric.place == "node"]
        broken = [finding.limit for finding in found if finding.over_limit and finding.limit is not None]
        broken += [finding.was for finding in found if finding.grew and isinstance(finding.was, int)]
        return min(broken, default=None)


def compare(report: Report, now: Baseline, was: Baseline | None, budget: Budget) -> Verdict:
    """Return the verdict on a report, which is `now` in the terms of a baseline."""
    found = Changes()
    if budget.baseline and was is not None:
        leaves = [node.module for node in report.nodes if node.op == "call_module" and node.parts]
        found = changes(in_terms_of(now, was, leaves), was, budget.rtol)
    if found.totals:
        totals = [replace(finding, limit=budget.limits.get(finding.metric.name)) for finding in found.totals]
    else:
        totals = [judge(m, now.totals[m.name], None, budget.limits.get(m.name)) for m in COUNTED]
    return Verdict(
        totals=tuple(totals),
        excesses=tuple(_excesses(report, budget)),
        unmatched=tuple(_unmatched(report, budget)),
        unsupported=report.unsupported if budget.unsupported == "error" else {},
        missing=budget.baseline and was is None,
        changes=found,
    )


def _excesses(report: Report, budget: Budget) -> Iterator[Excess]:
    for glob, limits in budget.modules.items():
        for path in fnmatch_paths(report.modules, glob):
            for name, limit in limits.items():
                now = report.modules[path].total(METRICS[name])
                if now > limit:
                    yield Excess(METRICS[name], glob, limit, path, now)


def fnmatch_paths(paths: Iterable[str], glob: str) -> list[str]:
    """Return the module paths that a glob matches: `*` crosses dots, `?` and `[...]` are one character."""
    return [path for path in paths if fnmatch.fnmatchcase(path, glob)]


def _unmatched(report: Report, budget: Budget) -> Iterator[Unmatched]:
    for glob in budget.modules:
        if not fnmatch_paths(report.modules, glob):
            import difflib

            yield Unmatched(glob, tuple(difflib.get_close_matches(glob, report.modules, n=3, cutoff=0.5)))


# What was measured ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MeasuredVerdict:
    """What was measured on a machine, and what follows for the budget."""

    machine: str
    """The fingerprint of the machine."""
    findings: tuple[Finding, ...]
    """What each metric says that was measured."""
    was: Measured
    """The baseline of this machine; empty where it has none."""
    tries: int = 1
    """How often a latency was measured; the finding has the middle one."""

    @property
    def now(self) -> Measured:
        """What was measured, by metric."""
        return {finding.metric.name: finding.now for finding in self.findings}

    @property
    def within_limits(self) -> bool:
        """Whether every ceiling holds."""
        return not any(finding.over_limit for finding in self.findings)

    def accepted(self, update: str | None) -> Measured:
        """Return the baseline of this machine after a run with this `--flops-update` mode."""
        taken = [finding for finding in self.findings if finding.accepted(update)]
        return {**self.was, **{finding.metric.name: finding.now for finding in taken}}

    def broken(self, update: str | None, strict: bool) -> tuple[Finding, ...]:
        """Return the findings that fail the test.

        A strict run also fails where nothing was compared. It does not fail for less than the baseline, as it
        does for counts: what is measured is less by chance.
        """
        return tuple(
            finding
            for finding in self.findings
            if finding.over_limit
            or (not finding.accepted(update) and (finding.grew or (strict and finding.uncompared)))
        )


def judge_measured(now: Measured, was: Measured, budget: Budget) -> tuple[Finding, ...]:
    """Return what each metric that was measured says about the budget."""
    return tuple(
        judge(METRICS[name], value, was.get(name), budget.limits.get(name), budget.tolerance(METRICS[name]))
        for name, value in now.items()
    )
