"""What a model cost when somebody accepted it.

Nothing here decides whether a count is acceptable (that is `verdict`) or how it is kept (that is `store`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from pytest_flops.metrics import ADDITIVE, Cost
from pytest_flops.results.measured import Measured
from pytest_flops.results.report import Report, around, base_name

Costs = Mapping[str, int]
"""Amounts by the name of an additive metric; what is not there is 0."""


class Function(NamedTuple):
    """Work by place: the path of the module whose code does it, and the name of the function that it calls.

    Without a name it is what the module does and holds itself.
    """

    module: str
    name: str


class Module(NamedTuple):
    """A module as a baseline has it: its class name, and its costs with all that is inside it."""

    type: str
    costs: Costs


@dataclass(frozen=True, slots=True)
class Peak:
    """The step at which the most bytes were alive, and which modules had made them."""

    node: str
    owners: Mapping[str, int]


_NO_PEAK = Peak("", {})


@dataclass(frozen=True, slots=True)
class Baseline:
    """What one model cost when its baseline was accepted."""

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
    metrics: frozenset[str]
    """The additive metrics that modules and functions have."""
    modules: Mapping[str, Module]
    """Modules by path, less those that cost nothing and have names of their own; "" is the model."""
    functions: Mapping[Function, Costs]
    """Functional work by place, less what costs nothing."""
    peak: Peak = _NO_PEAK
    """Where memory was highest; of an older baseline only the total is known."""
    own_formulas: Mapping[str, str] = field(default_factory=dict)
    """A fingerprint of each formula of the user's that counted, by the operator."""
    measured: Mapping[str, Measured] = field(default_factory=dict)
    """What was measured by running the model, by the fingerprint of the machine."""

    @property
    def has_types(self) -> bool:
        """Whether it knows what its modules are: files older than format 3 do not."""
        return bool(self.modules[""].type) if "" in self.modules else False

    def same_cost(self, other: Baseline) -> bool:
        """Tell whether the counts agree; a version of torch is no reason to rewrite a file."""
        return _comparable(self) == _comparable(other)

    def same_inputs(self, other: Baseline) -> bool:
        """Tell whether both are of the same run: only then do costs compare."""
        return (self.mode, self.inputs) == (other.mode, other.inputs)


def _comparable(baseline: Baseline) -> Baseline:
    return replace(baseline, torch="", measured={})


def snapshot(report: Report) -> Baseline:
    """Return what a report says in the terms of a baseline."""
    modules = {
        path: Module(total.type, _costing(total.cost._asdict() | total.held._asdict()))
        for path, total in report.modules.items()
        if any(total.cost) or any(total.held) or _has_a_place(path)
    }
    return Baseline(
        formulas=report.formulas,
        torch=report.torch.partition("+")[0],
        mode=report.mode,
        inputs=report.inputs,
        totals=dict(report.totals),
        metrics=frozenset(metric.name for metric in ADDITIVE),
        modules=modules,
        functions=_functions(report),
        own_formulas=dict(report.own_formulas),
        peak=Peak(report.peak_node.name if report.nodes else "", _in_order(report.peak_owners, modules)),
    )


def _in_order(owners: Mapping[str, int], modules: Iterable[str]) -> dict[str, int]:
    """Return owners in the order of the modules, so that equal neighbours are next to each other."""
    return {path: owners[path] for path in modules if path in owners}


def _functions(report: Report) -> dict[Function, Costs]:
    costs: dict[Function, list[Cost]] = {}
    for node in report.nodes:
        if node.op in ("call_function", "call_method") and any(own := node.shares[0].cost):
            costs.setdefault(Function(node.module, base_name(node.name)), []).append(own)
    return {function: _costing(Cost.total(its)._asdict()) for function, its in costs.items()}


def _has_a_place(path: str) -> bool:
    """Tell whether a module matters though it costs nothing: the model, and layers that others count from."""
    return not path or path.rpartition(".")[2].isdecimal()


def _costing(costs: dict[str, int]) -> dict[str, int]:
    """Return costs in the order in which people read them, less what is 0."""
    return {metric.name: costs[metric.name] for metric in ADDITIVE if costs.get(metric.name)}


def in_terms_of(now: Baseline, was: Baseline, leaves: Iterable[str]) -> Baseline:
    """Return a baseline without what an older one lacks: modules inside leaves, which were not counted once.

    `leaves` are the paths of leaf modules that have modules inside.
    """
    outer = {path for module in was.modules for path in around(module)}
    closed = tuple(f"{path}." for path in leaves if path in was.modules and path not in outer)
    if was.has_types or not closed:
        return now
    modules = {path: module for path, module in now.modules.items() if not path.startswith(closed)}
    functions = {
        function: costs
        for function, costs in now.functions.items()
        if not f"{function.module}.".startswith(closed)
    }
    return replace(now, modules=modules, functions=functions)


def parents(paths: Iterable[str]) -> dict[str, str]:
    """Return the module around each module but the model: "a" need not be one where one is called "a.b"."""
    known = set(paths)
    return {path: next((outer for outer in around(path) if outer in known), "") for path in known if path}


def own_costs(baseline: Baseline) -> dict[Function, dict[str, int]]:
    """Return what each place does itself: a module less the modules inside it and the functions it calls."""
    own = {Function(path, ""): dict(module.costs) for path, module in baseline.modules.items()}
    for path, parent in parents(baseline.modules).items():
        _subtract(own[Function(parent, "")], baseline.modules[path].costs)
    for function, costs in baseline.functions.items():
        own[function] = dict(costs)
        if (module := Function(function.module, "")) in own:
            _subtract(own[module], costs)
    return own


def _subtract(costs: dict[str, int], part: Costs) -> None:
    for name, amount in part.items():
        costs[name] = costs.get(name, 0) - amount
