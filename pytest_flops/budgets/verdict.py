"""The verdict on what a model costs, against ceilings and the baseline. Pure: no files, no text."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Literal, TypeVar

from pytest_flops.budgets.baseline import Baseline, Function, in_terms_of, parts_of
from pytest_flops.budgets.budget import Budget
from pytest_flops.metrics import COUNTED, METRICS, Metric
from pytest_flops.results.measured import Latency, Measured, Quantity
from pytest_flops.results.report import Report

Key = TypeVar("Key", str, Function)

# One metric -------------------------------------------------------------------------------------------------

Comparison = Literal["not asked", "no baseline", "other reference", "within", "grew", "shrank"]
"""How a value compares with its baseline: by less than the tolerance, more, less, or not at all."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one metric says, counted or measured: its value, its baseline if it has one, and its limits."""

    metric: Metric
    """What was counted or measured."""
    now: Quantity
    """What it is."""
    was: Quantity | None
    """What it was when the baseline was accepted."""
    limit: int | None
    """The ceiling, inclusive."""
    rtol: str | None
    """The growth over the baseline that passes, as a fraction."""
    comparison: Comparison
    """What came of the comparison with the baseline."""

    @property
    def over_limit(self) -> bool:
        """Whether it is above its ceiling."""
        return self.limit is not None and _absolute(self.now) > self.limit

    @property
    def grew(self) -> bool:
        """Whether it is above the baseline by more than the tolerance."""
        return self.comparison == "grew"

    @property
    def shrank(self) -> bool:
        """Whether it is below the baseline by more than the tolerance."""
        return self.comparison == "shrank"

    @property
    def uncompared(self) -> bool:
        """Whether there is nothing that it could be compared with."""
        return self.comparison in ("no baseline", "other reference")

    @property
    def changed(self) -> bool:
        """Whether it differs from its baseline at all."""
        return self.comparison in ("within", "grew", "shrank") and self.now != self.was

    @property
    def is_less(self) -> bool:
        """Whether it is less than its baseline, by however little."""
        return self.changed and self.was is not None and _relative(self.now) < _relative(self.was)

    def accepted(self, update: str | None) -> bool:
        """Tell whether a run with this `--flops-update` mode takes a measurement for the new baseline.

        One that agrees with the baseline within the tolerance is never taken: noise is no reason to rewrite a
        file, and small steps do not add up unseen.
        """
        if self.comparison == "no baseline":
            return update in ("new", "all")
        return self.comparison in ("other reference", "grew", "shrank") and update in ("changed", "all")


def judge(
    metric: Metric, now: Quantity, was: Quantity | None, limit: int | None = None, rtol: str | None = None
) -> Finding:
    """Return what a value says about its ceiling and, unless `rtol` is None, its baseline.

    All limits are inclusive, and the arithmetic is exact: the numbers are those that people see.
    """
    return Finding(metric, now, was, limit, rtol, _comparison(now, was, rtol))


def _comparison(now: Quantity, was: Quantity | None, rtol: str | None) -> Comparison:
    if rtol is None:
        return "not asked"
    if was is None:
        return "no baseline"
    if isinstance(now, Latency) and isinstance(was, Latency) and now.reference != was.reference:
        return "other reference"
    change = _relative(now) - _relative(was)
    if abs(change) <= Fraction(rtol) * _relative(was):
        return "within"
    return "grew" if change > 0 else "shrank"


def _absolute(value: Quantity) -> int:
    """Return a value as ceilings are given: of a latency the nanoseconds."""
    return round(value.median_ms * 1e6) if isinstance(value, Latency) else value


def _relative(value: Quantity) -> Fraction:
    """Return a value as it compares with others: of a latency the ratio, in the digits that people see."""
    return Fraction(repr(value.ratio)) if isinstance(value, Latency) else Fraction(value)


def tolerated(was: int, rtol: str) -> int:
    """Return the largest count that is still within the tolerance, in exact arithmetic."""
    return was + int(Fraction(rtol) * was)


# Two baselines ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Something else than a cost that differs from the baseline: an input, the mode, a version."""

    what: str
    was: str
    now: str


@dataclass(frozen=True, slots=True)
class Change:
    """The FLOPs of one place that differ from the baseline."""

    what: str | Function
    """The path of a module, or a function and the module that calls it."""
    was: int
    """What it was."""
    now: int
    """What it is."""
    own: int
    """The part of the change that does not come from modules inside."""
    grew: bool = False
    """Whether it grew by more than the tolerance."""
    shrank: bool = False
    """Whether it shrank by more than the tolerance."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What differs between two baselines of a model.

    Where they are of other runs (`mismatches`), no cost is compared. `versions` lists differences of the
    counter: no failure, but a reason for one. `totals` has every metric, changed or not.
    """

    mismatches: tuple[Mismatch, ...] = ()
    versions: tuple[Mismatch, ...] = ()
    totals: tuple[Finding, ...] = ()
    modules: tuple[Change, ...] = ()
    functions: tuple[Change, ...] = ()

    @property
    def any_cost(self) -> bool:
        """Whether any total, module or function differs."""
        return bool(self.modules or self.functions or any(finding.changed for finding in self.totals))

    @property
    def uncompared(self) -> tuple[Finding, ...]:
        """Totals that the older baseline lacks: their metrics are younger than it."""
        return tuple(finding for finding in self.totals if finding.uncompared)

    @property
    def grown(self) -> tuple[Finding | Change, ...]:
        """Totals, then modules, that grew beyond the tolerance."""
        return *(t for t in self.totals if t.grew), *(m for m in self.modules if m.grew)

    @property
    def shrunk(self) -> tuple[Finding | Change, ...]:
        """Totals, then modules, that shrank beyond the tolerance."""
        return *(t for t in self.totals if t.shrank), *(m for m in self.modules if m.shrank)

    @property
    def places(self) -> tuple[Change, ...]:
        """The modules whose own work changed, most first: modules around them only inherit the change."""
        own = [change for change in self.modules if change.own]
        return tuple(sorted(own, key=lambda change: (-abs(change.own), change.what)))


def changes(now: Baseline, was: Baseline, rtol: str = "0") -> Changes:
    """Return what differs between two baselines of a model; growth by the fraction `rtol` is tolerated."""
    mismatches, versions = tuple(_mismatches(now, was)), tuple(_versions(now, was))
    if mismatches:
        return Changes(mismatches, versions)
    totals = [judge(METRICS[name], now.totals[name], was.totals.get(name), rtol=rtol) for name in now.totals]
    return Changes(
        versions=versions,
        totals=tuple(totals),
        modules=tuple(_module_changes(now, was, rtol)),
        functions=tuple(_changes(now.functions, was.functions, rtol)),
    )


def _mismatches(now: Baseline, was: Baseline) -> Iterator[Mismatch]:
    if now.mode != was.mode:
        yield Mismatch("mode", was.mode, now.mode)
    if now.inputs != was.inputs:
        yield Mismatch("inputs", ", ".join(was.inputs), ", ".join(now.inputs))


def _versions(now: Baseline, was: Baseline) -> Iterator[Mismatch]:
    if now.formulas != was.formulas:
        yield Mismatch("formulas", str(was.formulas), str(now.formulas))
    if now.torch != was.torch:
        yield Mismatch("torch", was.torch, now.torch)


def _changes(now: Mapping[Key, int], was: Mapping[Key, int], rtol: str) -> Iterator[Change]:
    for what in {**was, **now}:
        before, after = was.get(what, 0), now.get(what, 0)
        if before != after:
            yield _change(what, before, after, after - before, rtol)


def _change(what: str | Function, was: int, now: int, own: int, rtol: str) -> Change:
    comparison = _comparison(now, was, rtol)
    return Change(what, was, now, own, grew=comparison == "grew", shrank=comparison == "shrank")


def _module_changes(now: Baseline, was: Baseline, rtol: str) -> Iterator[Change]:
    """Yield the modules whose inclusive or own FLOPs changed.

    A new module has no baseline to outgrow: the modules around it, which have one, answer for its work.
    """
    own_now, own_was = own_flops(now), own_flops(was)
    for path in sorted(own_now.keys() | own_was.keys()):
        own = own_now.get(path, 0) - own_was.get(path, 0)
        before, after = was.modules.get(path, 0), now.modules.get(path, 0)
        if own or before != after:
            change = _change(path, before, after, own, rtol)
            yield change if before else replace(change, grew=False)


def own_flops(baseline: Baseline) -> dict[str, int]:
    """Return each module's FLOPs less those of the modules directly inside it."""
    inside = parts_of(baseline.modules, {})
    return {path: flops - inside.get(path, 0) for path, flops in baseline.modules.items()}


# A report and a budget --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Excess:
    """A ceiling on the FLOPs of modules, by glob, that a module exceeds."""

    glob: str
    limit: int
    module: str
    now: int


@dataclass(frozen=True, slots=True)
class Unmatched:
    """A module glob that matches no module, and the paths that come near."""

    glob: str
    near: tuple[str, ...]


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
    changes: Changes = Changes()
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
    for glob, limit in budget.modules.items():
        for path in fnmatch_paths(report.modules, glob):
            now = report.modules[path].flops
            if now > limit:
                yield Excess(glob, limit, path, now)


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
