"""What a test allows its models to cost, and the verdict on a report. Pure: no files, no text for people."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from pytest_flops.baseline import METRICS, Baseline, Function, parts_of, snapshot
from pytest_flops.errors import BudgetError
from pytest_flops.report import Report

Unsupported = Literal["error", "warn"]
Key = TypeVar("Key", str, Function)


@dataclass(frozen=True, slots=True)
class Budget:
    """What the `flops_budget` markers of a test and the options of the run say together.

    `limits` holds ceilings by metric and `modules` FLOPs ceilings by glob on module paths (`fnmatch`, case
    matters, `*` crosses dots); all limits are inclusive. `rtol` is the growth over the baseline that passes,
    as a fraction of the baseline. Without `baseline` only the ceilings decide.
    """

    limits: Mapping[str, int]
    modules: Mapping[str, int]
    rtol: str = "0"
    train: bool = False
    backward: bool = False
    unsupported: Unsupported = "error"
    baseline: bool = True


# Reading a marker -------------------------------------------------------------------------------------------

_SCALES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_COUNT = re.compile(r"(\d{1,3}(?:[,_]\d{3})+|\d+)(?:\.(\d+))? ?([kMGT]?)", re.ASCII)
_FRACTION = re.compile(r"\d+(?:\.\d+)?(?:e-?\d{1,3})?", re.ASCII)

_LATER = ("peak_memory", "latency", "latency_rtol", "cuda_memory", "cuda_memory_rtol")


def parse_count(value: object, keyword: str) -> int:
    """Return a count given as a whole number or as text with a decimal unit: `8300`, `8.3e9`, `"8.3G"`.

    Raises `BudgetError` for anything else, naming the keyword.
    """
    count = _count_from_text(value) if isinstance(value, str) else _count_from_number(value)
    if count is None or count < 0:
        raise BudgetError(
            f"{keyword}={value!r} is not a count. Give a whole number of at least 0, or text with a decimal "
            'unit, such as "8.3G" (valid units: k, M, G, T).'
        )
    return count


def _count_from_number(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value


def _count_from_text(text: str) -> int | None:
    match = _COUNT.fullmatch(text.strip())
    if match is None:
        return None
    whole, fraction, unit = match.groups(default="")
    digits = int(whole.replace(",", "").replace("_", "") + fraction)
    count, rest = divmod(digits * _SCALES[unit], 10 ** len(fraction))
    return None if rest else count


def parse_rtol(value: object, keyword: str) -> str:
    """Return a relative tolerance in decimal digits, so that 0.29 means 29/100; it may be given as text."""
    text = repr(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not _FRACTION.fullmatch(text.strip()):
        raise BudgetError(
            f"{keyword}={value!r} is not a tolerance. Give a fraction of the baseline of at least 0: "
            "0.01 lets a count grow by 1 %."
        )
    return text.strip()


def _parse_limit(value: object, keyword: str) -> int | None:
    return None if value is None else parse_count(value, keyword)


def _parse_modules(value: object, keyword: str) -> Mapping[str, int]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(glob, str) for glob in value):
        raise BudgetError(
            f"{keyword}={value!r} is not a mapping. Give FLOPs ceilings by module path or glob: "
            'modules={"layer4": "2G", "layer*.0": "900M"}.'
        )
    return {glob: parse_count(limit, f"{keyword}[{glob!r}]") for glob, limit in value.items()}


def _parse_flag(value: object, keyword: str) -> bool:
    if not isinstance(value, bool):
        raise BudgetError(f"{keyword}={value!r} is not True or False.")
    return value


def _parse_unsupported(value: object, keyword: str) -> str:
    if value not in ("error", "warn"):
        raise BudgetError(f'{keyword}={value!r} is not valid. Give "error" or "warn".')
    return str(value)


_KEYWORDS: Mapping[str, Callable[[object, str], object]] = {
    **dict.fromkeys(METRICS, _parse_limit),
    "modules": _parse_modules,
    "rtol": parse_rtol,
    "train": _parse_flag,
    "backward": _parse_flag,
    "unsupported": _parse_unsupported,
    "baseline": _parse_flag,
}


def budget_from(
    markers: Iterable[tuple[tuple[object, ...], Mapping[str, object]]], rtol: str = "0"
) -> Budget:
    """Return the budget that several markers make, given as (args, keywords) with the closest first.

    For each keyword the closest marker that has it decides; a limit of None lifts a farther one. Raises
    `BudgetError` for anything wrong in any of them.
    """
    closest: dict[str, Any] = {}
    for args, keywords in markers:
        for keyword, value in _parse(args, keywords):
            closest.setdefault(keyword, value)
    merged = {"rtol": rtol, "modules": {}, **closest}
    found = {metric: merged.pop(metric, None) for metric in METRICS}
    limits = {metric: limit for metric, limit in found.items() if limit is not None}
    if not (merged.get("baseline", True) or limits or merged["modules"]):
        raise BudgetError(
            "flops_budget(baseline=False) has no ceiling: nothing would be compared. Give it one, such as "
            'flops="8.3G"; flops.count(...) only counts.'
        )
    return Budget(limits=limits, **merged)


def _parse(args: tuple[object, ...], keywords: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    valid = ", ".join(_KEYWORDS)
    if args:
        raise BudgetError(
            f'flops_budget takes keywords only, not {args[0]!r}, as in flops="8.3G". Valid: {valid}.'
        )
    for keyword, value in keywords.items():
        if keyword in _LATER:
            raise BudgetError(
                f"flops_budget({keyword}=...) is not available yet in this version of pytest-flops. "
                f"Valid: {valid}."
            )
        if keyword not in _KEYWORDS:
            raise BudgetError(f"flops_budget does not know {keyword!r}. Valid: {valid}.")
        yield keyword, _KEYWORDS[keyword](value, keyword)


# The verdict ------------------------------------------------------------------------------------------------


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
