"""What a test allows its models to cost: what the `flops_budget` markers say, keyword by keyword."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from pytest_flops.errors import BudgetError
from pytest_flops.metrics import COUNTED, MEASURED, METRICS, Metric
from pytest_flops.units import parse_count, parse_rtol

Unsupported = Literal["error", "warn"]


@dataclass(frozen=True, slots=True)
class Budget:
    """What the `flops_budget` markers of a test and the options of the run say together."""

    limits: Mapping[str, int] = field(default_factory=dict)
    """Inclusive ceilings by metric, in units, bytes or nanoseconds."""
    modules: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Inclusive ceilings by metric, by glob on module paths (`fnmatch`, case matters, `*` crosses dots)."""
    rtol: Mapping[str, str] = field(default_factory=dict)
    """The growth of counts over the baseline that passes by metric, as a fraction of it; of others none."""
    measured_rtol: Mapping[str, str] = field(default_factory=dict)
    """The growth over the baseline of the same machine that passes, by metric that is measured."""
    train: bool = False
    """Whether to run in training mode."""
    backward: bool = False
    """Whether to count the backward pass as well."""
    unsupported: Unsupported = "error"
    """What an operator without an answer does."""
    baseline: bool = True
    """Whether there is a baseline at all; without one only the ceilings decide."""
    latency_threads: int = 1
    """The number of intra-op threads to measure on."""

    @property
    def measured(self) -> tuple[Metric, ...]:
        """What has to be measured: metrics with a ceiling, or with a tolerance over the baseline."""
        return tuple(m for m in MEASURED if m.name in self.limits or self.tolerance(m) is not None)

    def tolerance(self, metric: Metric) -> str | None:
        """Return the growth over the baseline that passes; None where there is nothing to compare."""
        if not self.baseline:
            return None
        return self.measured_rtol.get(metric.name) if metric.is_measured else self.rtol.get(metric.name, "0")


# Reading a marker -------------------------------------------------------------------------------------------


def _unless_none(parse: Callable[[object, str], object]) -> Callable[[object, str], object]:
    """Return a parser that also takes None, which lifts a farther marker's limit."""
    return lambda value, keyword: None if value is None else parse(value, keyword)


_BY_METRIC = '{"flops": "900M", "memory_traffic": "20MB"}'
_EXAMPLE = f'modules={{"layer4": "2G", "layer*.0": {_BY_METRIC}}}'


def _parse_modules(value: object, keyword: str) -> Mapping[str, Mapping[str, int]]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(glob, str) for glob in value):
        raise BudgetError(
            f"{keyword}={value!r} is not a mapping. Give ceilings by module path or glob, of FLOPs or by "
            f"metric: {_EXAMPLE}."
        )
    return {glob: _parse_module(limit, f"{keyword}[{glob!r}]") for glob, limit in value.items()}


def _parse_module(value: object, keyword: str) -> Mapping[str, int]:
    """Return the ceilings of a module by metric; a bare value is one on FLOPs."""
    if not isinstance(value, Mapping):
        return {"flops": parse_count(value, keyword)}
    metrics = {metric.name: metric for metric in COUNTED}
    _refuse_unknown(value, metrics, keyword)
    if not value:
        raise BudgetError(f"{keyword}={value!r} has no ceiling. Give it one, such as {_BY_METRIC}.")
    return {name: metrics[name].parse(limit, f"{keyword}[{name!r}]") for name, limit in value.items()}


def _parse_tolerances(value: object, keyword: str) -> Mapping[str, str]:
    """Return the tolerance of every metric that the value speaks of: of all, where it is a bare number."""
    metrics = {metric.name: metric for metric in COUNTED}
    if not isinstance(value, Mapping):
        return dict.fromkeys(metrics, parse_rtol(value, keyword))
    _refuse_unknown(value, metrics, keyword)
    return {name: parse_rtol(rtol, f"{keyword}[{name!r}]") for name, rtol in value.items()}


def _refuse_unknown(value: Mapping[object, object], known: Mapping[str, Metric], keyword: str) -> None:
    for name in value:
        if name not in known:
            raise BudgetError(f"{keyword} does not know {name!r}. Valid: {', '.join(known)}.")


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


class Keyword(NamedTuple):
    """How a keyword of `flops_budget` is read, and its default as one writes it."""

    parse: Callable[[object, str], object]
    default: str


def _keywords() -> Iterator[tuple[str, Keyword]]:
    for metric in COUNTED:
        yield metric.name, Keyword(_unless_none(metric.parse), "None")
    yield "modules", Keyword(_parse_modules, "None")
    yield "rtol", Keyword(_parse_tolerances, "0")
    yield "train", Keyword(_parse_flag, "False")
    yield "backward", Keyword(_parse_flag, "False")
    yield "unsupported", Keyword(_parse_unsupported, '"error"')
    yield "baseline", Keyword(_parse_flag, "True")
    for metric in MEASURED:
        yield metric.name, Keyword(_unless_none(metric.parse), "None")
        yield f"{metric.name}_rtol", Keyword(_unless_none(parse_rtol), "None")
        if metric.unit == "time":
            yield f"{metric.name}_threads", Keyword(_parse_threads, "1")


KEYWORDS: Mapping[str, Keyword] = dict(_keywords())


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
    limits = {name: closest.pop(name, None) for name in METRICS}
    measured_rtol = {metric.name: closest.pop(f"{metric.name}_rtol", None) for metric in MEASURED}
    tolerances = {**_parse_tolerances(rtol, "rtol"), **closest.pop("rtol", {})}
    return _sensible(Budget(_given(limits), measured_rtol=_given(measured_rtol), rtol=tolerances, **closest))


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _sensible(budget: Budget) -> Budget:
    if not (budget.baseline or budget.limits or budget.modules or budget.measured):
        raise BudgetError(
            "flops_budget(baseline=False) has no ceiling: nothing would be compared. Give it one, such as "
            'flops="8.3G"; flops.count(...) only counts.'
        )
    if budget.backward and budget.measured:
        raise BudgetError(
            f"flops_budget({budget.measured[0].name}=..., backward=True): what is measured is the forward "
            "pass alone. Give it a test of its own, without backward."
        )
    return budget


def _parse(args: tuple[object, ...], keywords: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    valid = ", ".join(KEYWORDS)
    if args:
        raise BudgetError(
            f'flops_budget takes keywords only, not {args[0]!r}, as in flops="8.3G". Valid: {valid}.'
        )
    for keyword, value in keywords.items():
        if keyword not in KEYWORDS:
            raise BudgetError(f"flops_budget does not know {keyword!r}. Valid: {valid}.")
        yield keyword, KEYWORDS[keyword].parse(value, keyword)
