"""What every test leaves as it found it, and fixtures for runs of pytest inside a test."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest

from tests.runs import NET, QUICK

# One thread for what a test computes, here and in the processes that it starts; torch reads this when it is
# imported. Where two processes each take all cores, their threads spin while they wait for one that has none:
# up to five times the processor's seconds.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def off_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pytest shorten its summary, as it does for people; on CI machines it does not."""
    for name in ("CI", "BUILD_NUMBER"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def formulas_as_found() -> Iterator[None]:
    """Undo what a test registers: nothing, where nobody has imported the formulas, and torch with them."""
    registry = sys.modules.get("pytest_flops.formulas.registry")
    with registry.registrations_undone() if registry else nullcontext():
        yield


@pytest.fixture
def net(pytester: pytest.Pytester) -> Path:
    """Put `net.py` with tiny models beside the tests of an inner run."""
    return pytester.makepyfile(net=NET)


@pytest.fixture
def run_inside(pytester: pytest.Pytester, net: Path) -> Callable[..., pytest.RunResult]:
    """Run pytest in this process over a test file made of the body, which sees all of `net.py`."""

    def run(body: str | None, *args: str) -> pytest.RunResult:
        if body is not None:
            pytester.makepyfile(test_it=f"from net import *\n\n{body}")
        return pytester.runpytest_inprocess(*QUICK, *args)

    return run


@pytest.fixture
def quick_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let budgets in this process measure with the least effort: where the time itself does not matter."""
    from pytest_flops.measuring import latency

    effort = latency.Effort(most_runs=1, work_s=0.0)
    monkeypatch.setattr(latency, "latency_of", partial(latency.latency_of, effort=effort))
