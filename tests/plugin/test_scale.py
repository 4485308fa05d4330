"""A suite of a thousand models holds no more than one at a time: counted, not timed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import QUICK

SUITE = """
import gc
import weakref
import pytest
import torch

alive = weakref.WeakSet()

@pytest.mark.parametrize("number", range(3))
def test_net(flops, number):
    assert not alive, "the model of an earlier test, and the garbage collector was off"
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.LayerNorm(5))
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


RUNS = {"new": ("--flops-update",), "updated": ("--flops-update",), "compared": ()}


@pytest.fixture(scope="session")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return what runs of the suite one after the other print, each in a process of its own."""
    folder: Path = tmp_path_factory.mktemp("scale")
    (folder / "test_it.py").write_text(SUITE)
    (folder / "conftest.py").write_text(COUNT_BASELINES)
    command = [sys.executable, "-m", "pytest", "-s", *QUICK]
    return {
        name: subprocess.run([*command, *args], cwd=folder, capture_output=True, text=True).stdout
        for name, args in RUNS.items()
    }


@pytest.mark.parametrize("run", RUNS)
def test_a_model_is_freed_with_its_test(printed: dict[str, str], run: str) -> None:
    assert "3 passed" in printed[run]


@pytest.mark.parametrize("run", RUNS)
def test_no_baseline_outlives_its_test(printed: dict[str, str], run: str) -> None:
    assert "alive: 0\n" in printed[run]
