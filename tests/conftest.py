"""Fixtures for runs of pytest inside a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runs import NET, QUICK


@pytest.fixture(autouse=True)
def off_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pytest shorten its summary, as it does for people; on CI machines it does not."""
    for name in ("CI", "BUILD_NUMBER"):
        monkeypatch.delenv(name, raising=False)


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
