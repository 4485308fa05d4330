"""What a model cost when somebody accepted it.

Nothing here decides whether a count is acceptable (that is `verdict`) or how it is kept (that is `store`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
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
    parts = parts_of(modules, functions)
    for path, flops in _work_of_leaves(report).items():
        if flops and path in parts:
            forward = Function(path, "forward")
            functions[forward] = functions.get(forward, 0) + flops
    return Baseline(
        formulas=report.formulas,
        torch=report.torch.partition("+")[0],
        mode=report.mode,
        inputs=report.inputs,
        totals=dict(report.totals),
        modules=modules,
        functions=functions,
    )


def _work_of_leaves(report: Report) -> dict[str, int]:
    """Return what leaf modules, and modules inside them, do themselves: no function has it.

    Where such a module has parts in the file (layers inside `nn.TransformerEncoder`, or a
    `self.attention.out_proj` called by itself), this stands as its function "forward": its parts add up.
    """
    own: dict[str, int] = {}
    for node in report.nodes:
        for part in node.shares if node.op == "call_module" else node.parts:
            own[part.module] = own.get(part.module, 0) + part.flops
    return own


def in_terms_of(now: Baseline, was: Baseline, leaves: Iterable[str]) -> Baseline:
    """Return a baseline without what an older one lacks: modules inside leaves, which were not counted once.

    `leaves` are the paths of leaf modules that have modules inside.
    """
    parts = parts_of(was.modules, was.functions)
    closed = tuple(f"{path}." for path in leaves if path in was.modules and path not in parts)
    if not closed:
        return now
    modules = {path: flops for path, flops in now.modules.items() if not path.startswith(closed)}
    functions = {
        function: flops
        for function, flops in now.functions.items()
        if not f"{function.module}.".startswith(closed)
    }
    return replace(now, modules=modules, functions=functions)


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
