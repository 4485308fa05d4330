"""What a test allows its models to cost: what the `flops_budget` markers say, keyword by keyword."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pytest_flops.baseline import METRICS
from pytest_flops.errors import BudgetError
from pytest_flops.units import parse_bytes, parse_count, parse_rtol

Unsupported = Literal["error", "warn"]


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


def _unless_none(parse: Callable[[object, str], object]) -> Callable[[object, str], object]:
    """Return a parser that also takes None, which lifts a farther marker's limit."""
    return lambda value, keyword: None if value is None else parse(value, keyword)


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
    **dict.fromkeys(("flops", "macs", "params"), _unless_none(parse_count)),
    "peak_memory": _unless_none(parse_bytes),
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
        if keyword not in _KEYWORDS:
            raise BudgetError(f"flops_budget does not know {keyword!r}. Valid: {valid}.")
        yield keyword, _KEYWORDS[keyword](value, keyword)
