"""What every test leaves as it found it, and fixtures for runs of pytest inside a test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.runs import NET, QUICK


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
