"""What one metric says, counted or measured: against its ceiling, and against its baseline. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from pytest_flops.metrics import Metric
from pytest_flops.results.measured import Latency, Quantity

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
    return Finding(metric, now, was, limit, rtol, comparison_of(now, was, rtol))


def comparison_of(now: Quantity, was: Quantity | None, rtol: str | None) -> Comparison:
    """Return how a value compares with its baseline, where `rtol` is the growth that passes."""
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
