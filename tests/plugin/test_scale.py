"""A suite of a thousand models holds no more than one at a time: counted, not timed."""

from __future__ import annotations

import pytest

SUITE = """
import gc
import weakref
import pytest
import torch

alive = weakref.WeakSet()

@pytest.mark.parametrize("number", range(3))
def test_net(flops, number):
    assert not alive, "the model of an earlier test, and the garbage collector was off"
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU())
    flops(model, torch.randn(2, 3))
    if number:  # the first meta kernel of a process imports much, and leaves frames behind for the collector
        gc.disable()
        alive.add(model)
"""
COUNT_BASELINES = """
import gc

def pytest_sessionfinish():
    from pytest_flops.budgets.baseline import Baseline

    gc.collect()
    print("alive:", sum(type(thing) is Baseline for thing in gc.get_objects()))
"""


def test_a_model_is_freed_with_its_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(SUITE)
    pytester.runpytest_subprocess("--flops-update").assert_outcomes(passed=3)
    pytester.runpytest_subprocess().assert_outcomes(passed=3)


@pytest.mark.parametrize("args", [("--flops-update",), ()])
def test_no_baseline_outlives_its_test(pytester: pytest.Pytester, args: tuple[str, ...]) -> None:
    pytester.makepyfile(SUITE)
    pytester.makeconftest(COUNT_BASELINES)
    pytester.runpytest_subprocess("--flops-update")
    result = pytester.runpytest_subprocess("-s", *args)
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines("*alive: 0")
