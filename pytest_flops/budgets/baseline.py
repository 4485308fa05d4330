"""What a model cost when somebody accepted it.

Nothing here decides whether a count is acceptable (that is `verdict`) or how it is kept (that is `store`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from pytest_flops.results.measured import Measured
from pytest_flops.results.report import Report, enclosing


class Function(NamedTuple):
    """Functional work by place: the path of the module whose code does it, and the function's name."""

    module: str
    name: str


@dataclass(frozen=True, slots=True)
class Baseline:
    """What one model cost when its baseline was accepted.

    A module either has parts (functions of its own, modules inside it) that add up to its FLOPs, or it is a
    leaf with nothing inside.
    """

    formulas: int
    """The version of the formulas that counted: where it differs, a count may change without the model."""
    torch: str
    """The version of torch that ran: likewise."""
    mode: str
    """How the model ran: "eval", "train", "train with backward"."""
    inputs: tuple[str, ...]
    """What it was given, as `Report.inputs` describes it."""
    totals: Mapping[str, int]
    """Totals by metric; a metric that is younger than the baseline is not there."""
    modules: Mapping[str, int]
    """Inclusive FLOPs by module path ("" is the model), less what costs nothing."""
    functions: Mapping[Function, int]
    """FLOPs of functional work by place, less what costs nothing."""
    measured: Mapping[str, Measured] = field(default_factory=dict)
    """What was measured by running the model, by the fingerprint of the machine."""

    def same_cost(self, other: Baseline) -> bool:
        """Tell whether the counts agree; a version of torch is no reason to rewrite a file."""
        return _comparable(self) == _comparable(other)

    def same_inputs(self, other: Baseline) -> bool:
        """Tell whether both are of the same run: only then do costs compare."""
        return (self.mode, self.inputs) == (other.mode, other.inputs)


def _comparable(baseline: Baseline) -> tuple[object, ...]:
    return (
        baseline.formulas,
        baseline.mode,
        baseline.inputs,
        dict(baseline.totals),
        dict(baseline.modules),
        dict(baseline.functions),
    )


def snapshot(report: Report) -> Baseline:
    """Return what a report says in the terms of a baseline."""
    modules = {path: total.flops for path, total in report.modules.items() if total.flops}
    functions = {Function(*place): flops for place, flops in report.functions.items()}
    return Baseline(
        formulas=report.formulas,
        torch=report.torch.partition("+")[0],
        mode=report.mode,
        inputs=report.inputs,
        totals=dict(report.totals),
        modules=modules,
        functions=functions | dict(_leaves_with_parts(report, modules, functions)),
    )


def _leaves_with_parts(
    report: Report, modules: Mapping[str, int], functions: Mapping[Function, int]
) -> Iterator[tuple[Function, int]]:
    """Yield the own cost of leaf modules that are no leaves in the file.

    `self.attention(x)` costs as a leaf, yet the model may also call `self.attention.out_proj(x)` by itself:
    the leaf's own share then stands as its function "forward", so that its parts add up.
    """
    parts = parts_of(modules, functions)
    own: dict[str, int] = {}
    for node in report.nodes:
        if node.op == "call_module" and parts.get(node.module):
            own[node.module] = own.get(node.module, 0) + node.flops
    for path, flops in own.items():
        if flops:
            yield Function(path, "forward"), flops


def parts_of(modules: Mapping[str, int], functions: Mapping[Function, int]) -> dict[str, int]:
    """Return for each module the sum of its functions and its direct children; leaves are left out."""
    parts: dict[str, int] = {}
    for function, flops in functions.items():
        parts[function.module] = parts.get(function.module, 0) + flops
    for path, flops in modules.items():
        if path:
            parent = next(around for around in list(enclosing(path))[1:] if not around or around in modules)
            parts[parent] = parts.get(parent, 0) + flops
    return parts
