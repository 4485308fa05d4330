"""Show what is being measured and how long it takes: to people at a terminal, and to nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import perf_counter
from typing import Any

import pytest

from pytest_flops.plugin.measure import Announce


@contextmanager
def shown(item: pytest.Item, model: str) -> Iterator[Announce]:
    """Give the means to show the steps of measuring a model, in one line of pytest's own terminal.

    The line stands between pytest's, which goes on below it with the path of the test file. Nothing is shown
    where the output is no terminal, in quiet runs, and on the workers of xdist, which have none.
    """
    reporter = item.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not reporter.isatty or item.config.get_verbosity() < 0:
        yield lambda text: nullcontext()
        return
    line = _Line(item, reporter, f"flops: measuring {model}: ")
    try:
        yield line.step
    finally:
        line.close()


class _Line:
    def __init__(self, item: pytest.Item, reporter: pytest.TerminalReporter, start: str) -> None:
        self._item = item
        self._reporter = reporter
        self._start = start
        self._begun = False

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Show a step, and then the seconds that it took."""
        with self._uncaptured():
            if not self._begun:
                self._reporter.ensure_newline()
            self._reporter.write(f"{', ' if self._begun else self._start}{text} ... ", flush=True)
        self._begun = True
        started = perf_counter()
        try:
            yield
        finally:
            with self._uncaptured():
                self._reporter.write(f"{perf_counter() - started:.1f} s", flush=True)

    def close(self) -> None:
        """Let pytest go on in a line of its own."""
        if self._begun and self._reporter.showfspath and not self._reporter.showlongtestinfo:
            with self._uncaptured():
                self._reporter.write_fspath_result(self._item.nodeid, "")

    def _uncaptured(self) -> AbstractContextManager[Any]:
        capture = self._item.config.pluginmanager.get_plugin("capturemanager")
        return nullcontext() if capture is None else capture.global_and_fixture_disabled()
