"""Synthetic reports, and tiny real models for runs of pytest inside a test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from pytest_flops.results.report import Node, Report

# hypothesis, where it is installed, would be imported anew at the end of every run inside a test: 1 s.
QUICK = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")

NET = """
import pytest
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up = nn.Linear(3, width)
        self.down = nn.Linear(width, 3)

    def forward(self, x):
        return self.down(self.up(x))


class Net(nn.Module):
    def __init__(self, widths=(4, 4), shift=False, head=False):
        super().__init__()
        self.blocks = nn.Sequential(*(Block(width) for width in widths))
        self.shift = shift
        if head:
            self.head = nn.Linear(3, 7)

    def forward(self, x):
        x = self.blocks(x)
        if self.shift:
            x += 1.0
        return self.head(x) if hasattr(self, "head") else x


def x(batch=2):
    return torch.randn(batch, 3)
"""


def make_report(**changes: Any) -> Report:
    """Return a report of a small model: a body of two leaves, the second wider, and an addition."""
    fields: dict[str, Any] = {
        "model": "Net",
        "mode": "eval",
        "inputs": ("x: float32[2, 3]",),
        "executed": "meta",
        "reason": "",
        "params": 50,
        "nodes": (
            Node("x", "placeholder", "x", "", "Net", 0, 0),
            Node("body_up", "call_module", "body.up", "body.up", "Linear", 40, 20, peak_memory=1600),
            Node("body_down", "call_module", "body.down", "body.down", "Linear", 60, 30, peak_memory=2048),
            Node("add", "call_function", "<built-in function add>", "body", "Body", 6, 0, peak_memory=1000),
            Node("output", "output", "output", "", "Net", 0, 0),
        ),
        "module_types": {
            "": "Net",
            "body": "Body",
            "body.up": "Linear",
            "body.down": "Linear",
            "body.drop": "Dropout",
        },
        "unsupported": {},
        "formulas": 1,
        "torch": "2.15.0+cpu",
    }
    return Report(**(fields | changes))


def with_costs(report: Report, costs: Mapping[str, int]) -> Report:
    """Return the report with other FLOPs for the named nodes."""
    from dataclasses import replace

    nodes = tuple(replace(node, flops=costs.get(node.name, node.flops)) for node in report.nodes)
    return replace(report, nodes=nodes)


def with_peaks(report: Report, peaks: Mapping[str, int]) -> Report:
    """Return the report with another peak memory at the named nodes."""
    from dataclasses import replace

    nodes = tuple(replace(node, peak_memory=peaks.get(node.name, node.peak_memory)) for node in report.nodes)
    return replace(report, nodes=nodes)


def many(count: int) -> Report:
    """Return a report of a model with that many layers, each larger than the one before."""
    nodes = [
        Node(f"n{i}", "call_module", f"n{i}", f"n{i}", "Linear", 1000 + 10 * i, 1 + i) for i in range(count)
    ]
    types = {"": "Net"} | {f"n{i}": "Linear" for i in range(count)}
    return make_report(nodes=tuple(nodes), module_types=types)


def load_torch() -> None:
    """Import all that counts and measures, once: pytester unloads what a run inside this process imported."""
    import torch

    from pytest_flops.counting.trace import trace

    for room in ("cuda_memory", "latency", "machine"):
        import_module(f"pytest_flops.measuring.{room}")
    trace(torch.nn.Linear(2, 3), (torch.zeros(1, 2),))


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
