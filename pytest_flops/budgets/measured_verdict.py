"""The verdict on what was measured: against ceilings and the baseline of the same machine. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from pytest_flops.budgets.budget import Budget, MeasuredMetric
from pytest_flops.results.measured import Latency, Measured

Comparison = Literal["not asked", "no baseline", "other reference", "within", "grew", "shrank"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one measured metric says: `comparison` is the one with the baseline of this machine."""

    metric: MeasuredMetric
    over_ceiling: bool
    comparison: Comparison

    @property
    def grew(self) -> bool:
        """Whether it is above the baseline by more than the tolerance."""
        return self.comparison == "grew"

    @property
    def uncompared(self) -> bool:
        """Whether there is nothing that it could be compared with."""
        return self.comparison in ("no baseline", "other reference")

    def accepted(self, update: str | None) -> bool:
        """Tell whether a run with this `--flops-update` mode takes the measurement for the new baseline.

        One that agrees with the baseline within the tolerance is never taken: noise is no reason to rewrite a
        file, and small steps do not add up unseen.
        """
        if self.comparison == "no baseline":
            return update in ("new", "all")
        return self.comparison in ("other reference", "grew", "shrank") and update in ("changed", "all")


@dataclass(frozen=True, slots=True)
class MeasuredVerdict:
    """What was measured `now` on a `machine`, what its baseline `was` there, and what follows for the budget.

    `tries` is the number of times that the latency was measured; `now` has the middle one.
    """

    machine: str
    now: Measured
    was: Measured
    findings: tuple[Finding, ...]
    tries: int = 1

    @property
    def within_limits(self) -> bool:
        """Whether every ceiling holds."""
        return not any(finding.over_ceiling for finding in self.findings)

    def accepted(self, update: str | None) -> Measured:
        """Return the baseline of this machine after a run with this `--flops-update` mode."""
        taken = [finding.metric for finding in self.findings if finding.accepted(update)]
        return replace(
            self.was,
            latency=self.now.latency if "latency" in taken else self.was.latency,
            cuda_memory=self.now.cuda_memory if "cuda_memory" in taken else self.was.cuda_memory,
        )

    def broken(self, update: str | None, strict: bool) -> tuple[Finding, ...]:
        """Return the findings that fail the test.

        A strict run also fails where nothing was compared. It does not fail for less than the baseline, as it
        does for counts: what is measured is less by chance.
        """
        return tuple(
            finding
            for finding in self.findings
            if finding.over_ceiling
            or (not finding.accepted(update) and (finding.grew or (strict and finding.uncompared)))
        )


def judge(now: Measured, was: Measured, budget: Budget) -> tuple[Finding, ...]:
    """Return what each metric that was measured says about the budget; limits are inclusive."""
    findings = []
    if now.latency is not None:
        findings.append(_latency(now.latency, was.latency, budget))
    if now.cuda_memory is not None:
        findings.append(_cuda_memory(now.cuda_memory, was.cuda_memory, budget))
    return tuple(findings)


def _latency(now: Latency, was: Latency | None, budget: Budget) -> Finding:
    over = budget.latency is not None and round(now.median_ms * 1e6) > budget.latency
    if budget.latency_rtol is None or not budget.baseline:
        return Finding("latency", over, "not asked")
    if was is None:
        return Finding("latency", over, "no baseline")
    if was.reference != now.reference:
        return Finding("latency", over, "other reference")
    growth = _exact(was.ratio) * Fraction(budget.latency_rtol)
    return Finding("latency", over, _comparison(_exact(now.ratio) - _exact(was.ratio), growth))


def _cuda_memory(now: int, was: int | None, budget: Budget) -> Finding:
    over = budget.cuda_memory is not None and now > budget.cuda_memory
    if budget.cuda_memory_rtol is None or not budget.baseline:
        return Finding("cuda_memory", over, "not asked")
    if was is None:
        return Finding("cuda_memory", over, "no baseline")
    growth = was * Fraction(budget.cuda_memory_rtol)
    return Finding("cuda_memory", over, _comparison(Fraction(now - was), growth))


def _comparison(change: Fraction, tolerance: Fraction) -> Comparison:
    if abs(change) <= tolerance:
        return "within"
    return "grew" if change > 0 else "shrank"


def _exact(ratio: float) -> Fraction:
    """Return the decimal number that people see, not its binary neighbour."""
    return Fraction(repr(ratio))
