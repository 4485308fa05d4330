"""What every test leaves as it found it, and fixtures for runs of pytest inside a test."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.runs import NET, QUICK

# One thread for what a test computes, here and in the processes that it starts; torch reads this when it is
# imported. Where two processes each take all cores, their threads spin while they wait for one that has none:
# up to five times the processor's seconds.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that shuffles the tests: a plugin would add lines to what inner runs show, too."""
    parser.addoption("--shuffle", type=int, metavar="SEED", help="run the tests in a random order")


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say how to get the same order again."""
    seed = config.getoption("shuffle", None)
    return None if seed is None else f"in the random order of --shuffle={seed}"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Shuffle the tests of all files together, the same way in every worker."""
    seed = config.getoption("shuffle", None)
    if seed is not None:
        random.Random(seed).shuffle(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Let a worker that is through with its tests take from the others': some take a minute, most no time."""
    if config.getoption("dist") != "load":  # what xdist chooses where nobody does
        return None
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


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
