"""A pytest plugin for the benchmarks: where the time of each test goes, and what memory the process has then.

Seconds are of the processor, which a machine with other work to do hardly changes.

`-p stopwatch --stopwatch FILE` gives tests the fixture `stopwatch` and writes a line of JSON for each test;
with pytest-xdist each worker writes a file of its own. Where the pytest-flops plugin is off (`-p no:flops`),
`flops` does nothing: that is what the same suite costs without budgets.
"""

from __future__ import annotations

import json
import os
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import peak_mib, resident_mib


class Stopwatch:
    """Processor seconds by name, of one test, and how many of the models shown to it are still alive."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._models: weakref.WeakSet[Any] = weakref.WeakSet()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.process_time()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start

    def watch(self, model: Any) -> Any:
        """Notice when a model is freed; return it."""
        self._models.add(model)
        return model

    def lap(self) -> dict[str, float]:
        """Return the seconds since the last lap, and the state of the process."""
        seconds, self.seconds = self.seconds, {}
        return {**seconds, "alive": len(self._models), "rss_mib": resident_mib(), "peak_mib": peak_mib()}

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with its time taken."""

        def run(*args: Any, **kwargs: Any) -> Any:
            with self(name):
                return function(*args, **kwargs)

        return run


_watch = Stopwatch()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that says where the lines go."""
    parser.addoption("--stopwatch", type=Path, metavar="FILE", help="write the seconds of each test there")


def pytest_configure(config: pytest.Config) -> None:
    """Take the time of every trace, or, without the pytest-flops plugin, do nothing in its place."""
    if config.pluginmanager.hasplugin("flops"):
        from pytest_flops.counting import trace as room

        room.traced = _watch.timed("trace", room.traced)
        room.Traced.report = _watch.timed("trace", room.Traced.report)  # type: ignore[method-assign]
    else:
        config.pluginmanager.register(_NoBudgets())


class _NoBudgets:
    @pytest.fixture
    def flops(self) -> Callable[..., None]:
        """Do nothing with a model."""
        return lambda model, *args, **kwargs: None


@pytest.fixture
def stopwatch() -> Stopwatch:
    """Take the time of parts of a test: `with stopwatch("construction"): ...`."""
    return _watch


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Write a line for each test, once all of it has ended."""
    _watch.lap()
    with _watch("test"):
        result = yield
    file = item.config.getoption("stopwatch")
    if file is not None:
        worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
        with open(f"{file}.{worker}", "a") as lines:
            lines.write(json.dumps({"name": item.name, **_watch.lap()}) + "\n")
    return result


def laps(file: Path) -> dict[str, list[dict[str, Any]]]:
    """Return what a run wrote, by worker."""
    found = sorted(file.parent.glob(f"{file.name}.*"))
    return {path.suffix[1:]: [json.loads(line) for line in path.read_text().splitlines()] for path in found}
