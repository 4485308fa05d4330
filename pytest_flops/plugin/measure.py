"""Measure what a budget asks for: again before a limit counts as broken, and rounded as it is stored."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

import pytest

from pytest_flops.budgets.budget import Budget
from pytest_flops.budgets.verdict import MeasuredVerdict, judge_measured
from pytest_flops.errors import MeasurementError
from pytest_flops.results.measured import Latency, Measured, Quantity

if TYPE_CHECKING:
    from pytest_flops.counting.trace import Traced
    from pytest_flops.measuring.ready import Ready

Announce = Callable[[str], AbstractContextManager[None]]
"""Shows what is being measured, as long as it takes."""


class Conditions(NamedTuple):
    """Under what a model is measured."""

    was: Measured
    """The baseline of this machine."""
    update: str | None = None
    """The mode of `--flops-update`."""
    time_limit: float = 60.0
    """The longest that one measurement of a latency may take, in seconds."""
    announce: Announce = lambda text: nullcontext()
    """The way to show what is being measured."""


class Taken(NamedTuple):
    """A value of a metric, and how often it was measured."""

    value: Quantity
    tries: int = 1


def measure(
    found: Traced,
    budget: Budget,
    baselines: Mapping[str, Measured],
    *,
    update: str | None = None,
    time_limit: float = 60.0,
    announce: Announce = lambda text: nullcontext(),
) -> MeasuredVerdict:
    """Measure a model that was counted, and return the verdict; `baselines` are those by machine.

    Raises `MeasurementError` for what cannot be measured.
    """
    from pytest_flops.measuring.machine import fingerprint
    from pytest_flops.measuring.ready import Ready, device_of

    ready = Ready(found, device_of(found.prepared), budget.train)
    machine = fingerprint(found.prepared, threads=budget.latency_threads)
    conditions = Conditions(baselines.get(machine, {}), update, time_limit, announce)
    taken = {metric.name: _METHODS[metric.name](ready, budget, conditions) for metric in budget.measured}
    now = {name: found.value for name, found in taken.items()}
    tries = max(found.tries for found in taken.values())
    return MeasuredVerdict(machine, judge_measured(now, conditions.was, budget), conditions.was, tries)


def _latency(ready: Ready, budget: Budget, conditions: Conditions) -> Taken:
    """Return a latency, and how often it was measured.

    One measurement is enough for a budget that holds. Where it would break the budget or become a baseline,
    chance may have been at work: then it is the middle one of three.
    """
    tried = [_one_latency(ready, budget, conditions, "latency")]
    (finding,) = judge_measured({"latency": tried[0]}, conditions.was, budget)
    if finding.over_limit or finding.grew or finding.accepted(conditions.update):
        tried += [_one_latency(ready, budget, conditions, f"latency again ({number})") for number in (2, 3)]
    by_what_is_limited = attrgetter("median_ms" if finding.rtol is None else "ratio")
    return Taken(sorted(tried, key=by_what_is_limited)[len(tried) // 2], len(tried))


def _one_latency(ready: Ready, budget: Budget, conditions: Conditions, what: str) -> Latency:
    from pytest_flops.measuring.latency import latency_of

    with conditions.announce(what):
        latency = latency_of(ready, threads=budget.latency_threads, time_limit=conditions.time_limit)
    return _rounded(latency)


def _cuda_memory(ready: Ready, budget: Budget, conditions: Conditions) -> Taken:
    from pytest_flops.measuring.cuda_memory import cuda_memory_of

    with conditions.announce("CUDA memory"):
        return Taken(cuda_memory_of(ready))


_METHODS: Mapping[str, Callable[[Ready, Budget, Conditions], Taken]] = {
    "latency": _latency,
    "cuda_memory": _cuda_memory,
}
"""How each metric is measured."""


def _rounded(latency: Latency) -> Latency:
    """Return a latency in as many digits as mean anything: what is judged is what is stored and shown."""
    numbers = (latency.ratio, latency.median_ms, latency.spread)
    if not (all(map(math.isfinite, numbers)) and latency.ratio > 0 and latency.median_ms > 0):
        raise MeasurementError(
            f"The clock says that a forward pass takes {latency.median_ms} ms, {latency.ratio} times as long "
            "as the reference workload: nothing was measured."
        )
    return replace(
        latency,
        ratio=float(f"{latency.ratio:.4g}"),
        median_ms=float(f"{latency.median_ms:.4g}"),
        spread=float(f"{latency.spread:.2g}"),
    )


def require_cuda(*, skip: bool) -> None:
    """Skip or fail a test that needs CUDA where there is none. This imports torch."""
    import torch

    if torch.cuda.is_available():
        return
    if skip:
        raise pytest.skip.Exception("no CUDA on this machine (flops_no_cuda = skip)", _use_item_location=True)
    pytest.fail(
        "flops_budget(cuda_memory=...): there is no CUDA on this machine, so nothing would be measured. "
        "In runs on the CPU alone, skip such tests with --flops-no-cuda=skip or flops_no_cuda = skip in the "
        "ini file.",
        pytrace=False,
    )
