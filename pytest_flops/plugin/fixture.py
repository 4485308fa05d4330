"""The `flops` fixture: count a model, and hold it against the budget of the test."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from pytest_flops.errors import FlopsError
from pytest_flops.plugin.attempt import Attempt
from pytest_flops.plugin.gate import gate
from pytest_flops.results.report import Report

if TYPE_CHECKING:
    from pytest_flops.counting.trace import Traced

T = TypeVar("T")


class Flops:
    """The fixture `flops`: count models, and hold them against the budget of the test.

    `flops(model, *args, **kwargs)` counts one forward pass on shapes alone, compares the count with the
    baseline and with the ceilings of the test's `flops_budget` markers, and returns the `Report`. A broken
    budget fails the test. Where the budget asks for latency or CUDA memory, and the counts are within it, the
    model is run for real and measured as well.

    `flops.named("encoder")(model, ...)` does the same under a name, for a test with several models.
    `flops.count(model, ...)` only counts.
    """

    def __init__(self, attempt: Attempt, name: str | None = None) -> None:
        self._attempt = attempt
        self._name = name

    def __call__(self, model: Any, /, *args: Any, **kwargs: Any) -> Report:
        """Count a model, called with these inputs, and return the report.

        Fails the test where the model breaks the budget, has no baseline or cannot be counted.
        """
        __tracebackhide__ = True
        try:
            found = self._traced(model, args, kwargs)
            report = found.report()
            plainly(gate, self._attempt, self._name or report.model, found, report)
        except pytest.fail.Exception as err:
            self._attempt.failure = str(err)
            raise
        return report

    def count(self, model: Any, /, *args: Any, **kwargs: Any) -> Report:
        """Count a model in the mode of the budget and return the report; compare it with nothing."""
        __tracebackhide__ = True
        return self._traced(model, args, kwargs).report()

    def _traced(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Traced:
        """Trace a model as the budget says; its inputs are read here, once for all that follows."""
        __tracebackhide__ = True
        from pytest_flops.counting.trace import Mode, Prepared, traced

        budget = self._attempt.budget
        prepared = plainly(Prepared.of, model, args, kwargs)
        return plainly(traced, prepared, Mode(budget.train, budget.backward))

    def named(self, name: str) -> Flops:
        """Return the fixture for one of several models of a test; the default name is the model's class."""
        __tracebackhide__ = True
        if not isinstance(name, str) or not name:
            pytest.fail(f"flops.named() needs a name, not {name!r}.", pytrace=False)
        return Flops(self._attempt, name)


def plainly(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call a function and turn our own errors into a failure of the test that shows their text alone."""
    __tracebackhide__ = True
    try:
        return function(*args, **kwargs)
    except FlopsError as err:
        message = str(err)
    pytest.fail(message, pytrace=False)
