"""Measure what a budget asks for: again before a limit counts as broken, and rounded as it is stored."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from operator import attrgetter
from typing import Any, NamedTuple

import pytest

from pytest_flops.budgets.budget import Budget
from pytest_flops.budgets.measured_verdict import MeasuredVerdict, judge
from pytest_flops.errors import MeasurementError
from pytest_flops.results.measured import Latency, Measured

Step = Callable[[str], AbstractContextManager[None]]
"""Shows that something is being measured, as long as it takes."""


class Call(NamedTuple):
    """A model and the inputs that it is called with, as `trace` and what measures take them."""

    model: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class Run(NamedTuple):
    """What a run of pytest says: the mode of `--flops-update`, the longest that a measurement may take in
    seconds, and the way to show a step."""

    update: str | None
    time_limit: float
    step: Step


def measure(call: Call, budget: Budget, baselines: Mapping[str, Measured], run: Run) -> MeasuredVerdict:
    """Measure a model and return the verdict; `baselines` are those by machine.

    Raises `MeasurementError` for what cannot be measured.
    """
    from pytest_flops.measuring.machine import fingerprint

    machine = fingerprint(*call, threads=budget.latency_threads)
    was = baselines.get(machine, Measured())
    latency, tries, memory = None, 0, None
    if "latency" in budget.measured:
        latency, tries = _latency(call, budget, was, run)
    if "cuda_memory" in budget.measured:
        memory = _cuda_memory(call, budget, run)
    now = Measured(latency, memory)
    return MeasuredVerdict(machine, now, was, judge(now, was, budget), tries)


def _latency(call: Call, budget: Budget, was: Measured, run: Run) -> tuple[Latency, int]:
    """Return a latency, and how often it was measured.

    One measurement is enough for a budget that holds. Where it would break the budget or become a baseline,
    chance may have been at work: then it is the middle one of three.
    """
    tried = [_measured_latency(call, budget, run, "latency")]
    (finding,) = judge(Measured(tried[0]), was, budget)
    if finding.over_ceiling or finding.grew or finding.accepted(run.update):
        tried += [_measured_latency(call, budget, run, f"latency again ({number})") for number in (2, 3)]
    by_what_is_limited = attrgetter("ratio" if budget.gates("latency") else "median_ms")
    return sorted(tried, key=by_what_is_limited)[len(tried) // 2], len(tried)


def _measured_latency(call: Call, budget: Budget, run: Run, step: str) -> Latency:
    from pytest_flops.measuring.latency import measure_latency

    with run.step(step):
        latency = measure_latency(
            *call, threads=budget.latency_threads, time_limit=run.time_limit, train=budget.train
        )
    return _rounded(latency)


def _cuda_memory(call: Call, budget: Budget, run: Run) -> int:
    from pytest_flops.measuring.cuda_memory import measure_cuda_memory

    with run.step("CUDA memory"):
        return measure_cuda_memory(*call, train=budget.train)


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
