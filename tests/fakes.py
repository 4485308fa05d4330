"""Stand-ins: reports of models that do not exist, and a probe that says what a test tells it to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pytest_flops.measuring.probes import CudaProbe, CudaReading
from pytest_flops.metrics import Cost, Held
from pytest_flops.results.report import Node, Op, Part, Report


def node(
    name: str,
    op: Op,
    target: str,
    module: str,
    module_type: str,
    flops: int,
    macs: int = 0,
    peak_memory: int = 0,
    memory_traffic: int = 0,
    ops: int = 0,
) -> Node:
    """Return a node of a forward pass with these costs."""
    cost = Cost(flops, macs, memory_traffic, ops)
    return Node(name, op, target, module, module_type, cost, peak_memory=peak_memory)


def make_report(**changes: Any) -> Report:
    """Return a report of a small model: a body of two leaves, the second wider, and an addition."""
    fields: dict[str, Any] = {
        "model": "Net",
        "mode": "eval",
        "inputs": ("x: float32[2, 3]",),
        "executed": "meta",
        "reason": "",
        "held": {"": Held(changes.pop("params", 50), changes.pop("parameter_memory", 200))},
        "nodes": (
            node("x", "placeholder", "x", "", "Net", 0, 0),
            node("body_up", "call_module", "body.up", "body.up", "Linear", 40, 20, 1600, 400, 1),
            node("body_down", "call_module", "body.down", "body.down", "Linear", 60, 30, 2048, 600, 1),
            node("add", "call_function", "<built-in function add>", "body", "Body", 6, 0, 1000, 96, 1),
            node("output", "output", "output", "", "Net", 0, 0),
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


def leaf_report(**inside: int) -> Report:
    """Return a report of a model that is one leaf: 10 FLOPs its own, and modules inside it of these FLOPs."""
    parts = [
        Part("encoder.layer", Cost(7)),
        *(Part(f"encoder.{name}", Cost(n)) for name, n in inside.items()),
    ]
    leaf = node("encoder", "call_module", "encoder", "encoder", "Encoder", 17 + sum(inside.values()))
    types = {"": "Net", "encoder": "Encoder", "encoder.layer": "Layer"}
    types |= {f"encoder.{name}": "Linear" for name in inside}
    return make_report(nodes=(replace(leaf, parts=tuple(parts)),), module_types=types)


def with_costs(report: Report, flops: Mapping[str, int], **others: Mapping[str, int]) -> Report:
    """Return the report with other FLOPs, or other amounts of other metrics, for the named nodes."""

    def changed(step: Node) -> Node:
        new = {metric: found[step.name] for metric, found in costs.items() if step.name in found}
        return replace(step, cost=step.cost._replace(**new))

    costs = {"flops": flops, **others}
    return replace(report, nodes=tuple(map(changed, report.nodes)))


def with_peaks(report: Report, peaks: Mapping[str, int]) -> Report:
    """Return the report with another peak memory at the named nodes."""
    nodes = tuple(replace(step, peak_memory=peaks.get(step.name, step.peak_memory)) for step in report.nodes)
    return replace(report, nodes=nodes)


def many(count: int) -> Report:
    """Return a report of a model with that many layers, each larger than the one before."""
    nodes = [
        node(f"n{i}", "call_module", f"n{i}", f"n{i}", "Linear", 1000 + 10 * i, 1 + i) for i in range(count)
    ]
    types = {"": "Net"} | {f"n{i}": "Linear" for i in range(count)}
    return make_report(nodes=tuple(nodes), module_types=types)


class Script:
    """Reads (clock, allocated, peak) before and after each step, the same again in every run."""

    def __init__(self, *readings: tuple[float, int, int]) -> None:
        self.given = [CudaReading(*reading) for reading in readings]

    def __enter__(self) -> None:
        self.readings = iter(self.given)

    def __exit__(self, *error: Any) -> None: ...

    def before(self) -> CudaReading:
        return next(self.readings)

    after = before

    def elapsed_ms(self, before: CudaReading, after: CudaReading) -> float:
        return after.event - before.event

    memory = CudaProbe.memory
