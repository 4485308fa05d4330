"""The verdict on a report: what it costs against the ceilings and the baseline. Pure: no files, no text."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from pytest_flops.budgets.baseline import Baseline, Function, parts_of, snapshot
from pytest_flops.budgets.budget import Budget
from pytest_flops.results.report import Report

Key = TypeVar("Key", str, Function)


@dataclass(frozen=True, slots=True)
class Excess:
    """A ceiling that was exceeded: by the whole model, or by the `module` that a `glob` matched."""

    metric: str
    limit: int
    now: int
    glob: str | None = None
    module: str = ""


@dataclass(frozen=True, slots=True)
class Unmatched:
    """A module glob that matches no module, and the paths that come near."""

    glob: str
    near: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Something else than a cost that differs from the baseline: an input, the mode, a version."""

    what: str
    was: str
    now: str


@dataclass(frozen=True, slots=True)
class Change:
    """A cost that differs from the baseline.

    `what` is a metric, the path of a module or a `Function`. `own` is the part of the change that does not
    come from modules inside. `grew` and `shrank` say that the tolerance was left, upward or downward.
    """

    what: str | Function
    was: int
    now: int
    own: int
    grew: bool = False
    shrank: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """Everything that a report says about a budget; what decides is in `ok`.

    Where the inputs or the mode are not those of the baseline (`mismatches`), no cost is compared with it.
    `versions` lists differences of the counter: no failure, but a reason for one.
    """

    excesses: tuple[Excess, ...] = ()
    unmatched: tuple[Unmatched, ...] = ()
    unsupported: Mapping[str, int] | None = None
    missing: bool = False
    mismatches: tuple[Mismatch, ...] = ()
    versions: tuple[Mismatch, ...] = ()
    totals: tuple[Change, ...] = ()
    modules: tuple[Change, ...] = ()
    functions: tuple[Change, ...] = ()

    @property
    def within_limits(self) -> bool:
        """Whether all holds that no baseline can change: ceilings, globs, and an answer for every op."""
        return not (self.excesses or self.unmatched or self.unsupported)

    @property
    def grown(self) -> tuple[Change, ...]:
        """Totals, then modules, that grew beyond the tolerance."""
        return tuple(change for change in self.totals + self.modules if change.grew)

    @property
    def shrunk(self) -> tuple[Change, ...]:
        """Totals, then modules, that shrank beyond the tolerance."""
        return tuple(change for change in self.totals + self.modules if change.shrank)

    @property
    def within_baseline(self) -> bool:
        """Whether there is a baseline, for these inputs, and nothing grew over it."""
        return not (self.missing or self.mismatches or self.grown)

    @property
    def ok(self) -> bool:
        """Whether the test passes."""
        return self.within_limits and self.within_baseline

    @property
    def broken_peak_memory(self) -> int | None:
        """The ceiling or baseline, the lower of both, that the predicted peak memory broke; None: neither."""
        broken = [excess.limit for excess in self.excesses if excess.metric == "peak_memory"]
        broken += [change.was for change in self.totals if change.what == "peak_memory" and change.grew]
        return min(broken, default=None)

    @property
    def places(self) -> tuple[Change, ...]:
        """The modules whose own work changed, most first: modules around them only inherit the change."""
        own = [change for change in self.modules if change.own]
        return tuple(sorted(own, key=lambda change: (-abs(change.own), change.what)))


def compare(report: Report, baseline: Baseline | None, budget: Budget) -> Verdict:
    """Return the verdict on a report; ceilings and baseline are judged apart from each other."""
    against = _against_baseline(snapshot(report), baseline, budget) if budget.baseline else Verdict()
    return Verdict(
        excesses=tuple(_excesses(report, budget)),
        unmatched=tuple(_unmatched(report, budget)),
        unsupported=report.unsupported if budget.unsupported == "error" else None,
        missing=against.missing,
        mismatches=against.mismatches,
        versions=against.versions,
        totals=against.totals,
        modules=against.modules,
        functions=against.functions,
    )


def _excesses(report: Report, budget: Budget) -> Iterator[Excess]:
    for metric, limit in budget.limits.items():
        now: int = getattr(report, metric)
        if now > limit:
            yield Excess(metric, limit, now)
    for glob, limit in budget.modules.items():
        for path in fnmatch_paths(report.modules, glob):
            now = report.modules[path].flops
            if now > limit:
                yield Excess("flops", limit, now, glob, path)


def fnmatch_paths(paths: Iterable[str], glob: str) -> list[str]:
    """Return the module paths that a glob matches: `*` crosses dots, `?` and `[...]` are one character."""
    return [path for path in paths if fnmatch.fnmatchcase(path, glob)]


def _unmatched(report: Report, budget: Budget) -> Iterator[Unmatched]:
    for glob in budget.modules:
        if not fnmatch_paths(report.modules, glob):
            import difflib

            yield Unmatched(glob, tuple(difflib.get_close_matches(glob, report.modules, n=3, cutoff=0.5)))


def _against_baseline(now: Baseline, was: Baseline | None, budget: Budget) -> Verdict:
    if was is None:
        return Verdict(missing=True)
    mismatches = tuple(_mismatches(now, was))
    versions = tuple(_versions(now, was))
    if mismatches:
        return Verdict(mismatches=mismatches, versions=versions)
    return Verdict(
        versions=versions,
        totals=tuple(_changes(now.totals, was.totals, budget.rtol)),
        modules=tuple(_module_changes(now, was, budget.rtol)),
        functions=tuple(_changes(now.functions, was.functions, budget.rtol)),
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
    growth = tolerated(was, rtol) - was
    return Change(what, was, now, own, grew=now - was > growth, shrank=was - now > growth)


def tolerated(was: int, rtol: str) -> int:
    """Return the largest count that is still within the tolerance, in exact arithmetic."""
    from fractions import Fraction

    return was + int(Fraction(rtol) * was)


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
