"""A broken limit in words: "at most X (source), now Y: +Z"."""

from __future__ import annotations

from pytest_flops.metrics import Metric
from pytest_flops.units import delta

RAISE_IT = "Lower the cost or raise the limit in flops_budget; --flops-update lifts no limit."
NOT_WRITTEN = "The baseline was not written."


def bounded(bound: str, limit: int, metric: Metric, source: str, now: int, base: int) -> str:
    """Return a broken limit with where it comes from, the fact, and by how much that differs from `base`."""
    return f"{bound} {metric.amount(limit)} ({source}), now {metric.figure(now)}: {delta(base, now)}"
