"""What follows from a count: does the test fail, what becomes the baseline, what is worth a line. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from pytest_flops.budgets.baseline import Baseline, snapshot
from pytest_flops.budgets.budget import Budget
from pytest_flops.budgets.verdict import Verdict, compare
from pytest_flops.results.measured import Measured
from pytest_flops.results.report import Report

Drift = Literal["improved", "tolerated", "moved"]
"""How a count differs from its baseline without breaking the budget: less work, more of it within the
tolerance, or as much in other places."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows from the count of one model, before anything is measured or written."""

    now: Baseline
    """The count in the terms of a baseline."""
    was: Baseline | None
    """The baseline that it was held against."""
    verdict: Verdict
    """What the count says about the budget."""
    accepted: Baseline | None
    """What this run takes for the new baseline, if anything; what was measured is yet to be added."""
    fails: bool
    """Whether the test fails."""
    drift: Drift | None
    """How the count differs from a baseline that it does not break and does not replace."""

    @property
    def measured(self) -> Mapping[str, Measured]:
        """What was measured before and still holds, by machine.

        A count that changed says nothing of how the baselines of other machines were measured; other inputs
        do.
        """
        return self.was.measured if self.was is not None and self.was.same_inputs(self.now) else {}

    def accept(self, measured: Mapping[str, Measured]) -> Baseline | None:
        """Return the new baseline, with what was measured by machine; None where nothing is to be written."""
        if self.accepted is not None:
            return replace(self.accepted, measured=measured)
        if self.was is not None and measured != self.was.measured:
            return replace(self.was, measured=measured)
        return None


def decide(
    report: Report, was: Baseline | None, budget: Budget, *, update: str | None = None, strict: bool = False
) -> Decision:
    """Return what follows from a report under a budget, in a run with this `--flops-update` mode.

    `was` is the baseline of the model, if its test has one; a `strict` run also fails for less than that, and
    where a total has nothing to be compared with.
    """
    now, was = snapshot(report), was if budget.baseline else None
    verdict = compare(report, now, was, budget)
    accepted = _accepted(now, was, verdict, update) if budget.baseline and verdict.within_limits else None
    is_replaced = accepted is now
    too_strict = bool(verdict.changes.shrunk or (accepted is None and verdict.changes.uncompared))
    fails = not is_replaced and (not verdict.ok or (strict and too_strict))
    return Decision(now, was, verdict, accepted, fails, None if is_replaced else _drift(verdict))


def _accepted(now: Baseline, was: Baseline | None, verdict: Verdict, update: str | None) -> Baseline | None:
    """Return the baseline that a run with this mode writes: the count whole, or totals that were missing."""
    if was is None:
        return now if update in ("new", "all") else None
    if update in ("changed", "all") and not now.same_cost(was):
        return now
    if update == "new" and verdict.changes.uncompared and not verdict.changes.any_cost:
        return now  # all that it holds is as it was
    return None


def _drift(verdict: Verdict) -> Drift | None:
    if not verdict.changes.any_cost:
        return None
    changed = [finding for finding in verdict.totals if finding.changed]
    if changed and all(finding.is_less for finding in changed):
        return "improved"
    return "tolerated" if changed else "moved"
