"""What a test allows its models to cost: what the `flops_budget` markers say, keyword by keyword."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pytest_flops.budgets.baseline import METRICS
from pytest_flops.errors import BudgetError
from pytest_flops.units import parse_bytes, parse_count, parse_rtol, parse_time

Unsupported = Literal["error", "warn"]
MeasuredMetric = Literal["latency", "cuda_memory"]

MEASURED: tuple[MeasuredMetric, ...] = ("latency", "cuda_memory")
"""What only running shows."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What the `flops_budget` markers of a test and the options of the run say together.

    `limits` holds ceilings by metric and `modules` FLOPs ceilings by glob on module paths (`fnmatch`, case
    matters, `*` crosses dots); all limits are inclusive. `rtol` is the growth over the baseline that passes,
    as a fraction of the baseline. Without `baseline` only the ceilings decide.

    The rest is measured by running the model, and only where asked for: `latency` (ns) and `cuda_memory`
    (bytes) are ceilings, `latency_rtol` and `cuda_memory_rtol` the growth over the baseline of the same
    machine that passes. The latency is that of a run on `latency_threads` threads.
    """

    limits: Mapping[str, int]
    modules: Mapping[str, int]
    rtol: str = "0"
    train: bool = False
    backward: bool = False
    unsupported: Unsupported = "error"
    baseline: bool = True
    latency: int | None = None
    latency_rtol: str | None = None
    latency_threads: int = 1
    cuda_memory: int | None = None
    cuda_memory_rtol: str | None = None

    @property
    def measured(self) -> tuple[MeasuredMetric, ...]:
        """What has to be measured: metrics with a ceiling, or with a tolerance over the baseline."""
        return tuple(metric for metric in MEASURED if self.ceiling(metric) is not None or self.gates(metric))

    def ceiling(self, metric: MeasuredMetric) -> int | None:
        """Return the ceiling on what is measured: nanoseconds or bytes."""
        return self.latency if metric == "latency" else self.cuda_memory

    def tolerance(self, metric: MeasuredMetric) -> str | None:
        """Return the growth of what is measured that passes; None where it is not compared."""
        return self.latency_rtol if metric == "latency" else self.cuda_memory_rtol

    def gates(self, metric: MeasuredMetric) -> bool:
        """Tell whether what is measured is compared with the baseline."""
        return self.baseline and self.tolerance(metric) is not None


# Reading a marker -------------------------------------------------------------------------------------------


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


_MOST_THREADS = 1024


def _parse_threads(value: object, keyword: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST_THREADS:
        raise BudgetError(
            f"{keyword}={value!r} is not valid. Give a whole number of threads from 1 to {_MOST_THREADS:,}."
        )
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
    "latency": _unless_none(parse_time),
    "latency_rtol": _unless_none(parse_rtol),
    "latency_threads": _parse_threads,
    "cuda_memory": _unless_none(parse_bytes),
    "cuda_memory_rtol": _unless_none(parse_rtol),
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
    return _sensible(Budget(limits=limits, **merged))


def _sensible(budget: Budget) -> Budget:
    if not (budget.baseline or budget.limits or budget.modules or budget.measured):
        raise BudgetError(
            "flops_budget(baseline=False) has no ceiling: nothing would be compared. Give it one, such as "
            'flops="8.3G"; flops.count(...) only counts.'
        )
    if budget.backward and budget.measured:
        raise BudgetError(
            f"flops_budget({budget.measured[0]}=..., backward=True): what is measured is the forward pass "
            "alone. Give it a test of its own, without backward."
        )
    return budget


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
