"""What a trace finds: nodes with their cost, and the totals that derive from them.

No torch here: a report outlives the model, is compared, stored and printed without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import islice
from typing import Any, Literal

from pytest_flops.metrics import COUNTED, METRICS, Cost, Held, Metric
from pytest_flops.results.columns import NODE_COLUMNS, Column, Table, count
from pytest_flops.units import plural

Op = Literal["placeholder", "call_module", "call_function", "call_method", "output"]
Executed = Literal["meta", "real"]

KERNEL = "kernel outside PyTorch"
"""How work is named in `Report.unsupported` of which nothing but its result is seen."""
_NONE = Cost()
_NOTHING_HELD = Held()
_SUMMARY_ROWS = 20


class _Costed:
    """Something with a cost, whose parts are attributes of its own as well."""

    __slots__ = ()
    cost: Cost

    @property
    def flops(self) -> int:
        """Real additions, multiplications, comparisons and elementary functions."""
        return self.cost.flops

    @property
    def macs(self) -> int:
        """The multiply-accumulates of contractions among them."""
        return self.cost.macs

    @property
    def memory_traffic(self) -> int:
        """The bytes that an eager run reads and writes, op by op: no cache, no fusion, no workspace."""
        return self.cost.memory_traffic

    @property
    def ops(self) -> int:
        """The operators that read or wrote memory: a proxy for kernel launches and for Python's part."""
        return self.cost.ops


class _WithBackward(_Costed):
    """Something whose cost may include that of a backward pass."""

    __slots__ = ()
    backward_cost: Cost

    @property
    def backward_flops(self) -> int:
        """The part of `flops` that is the backward pass; 0 where it was not counted."""
        return self.backward_cost.flops

    @property
    def backward_macs(self) -> int:
        """The part of `macs` that is the backward pass; 0 where it was not counted."""
        return self.backward_cost.macs


@dataclass(frozen=True, slots=True)
class Part(_Costed):
    """What a module inside a node does itself, in all its calls there: less what modules inside it do."""

    module: str
    """The module's path."""
    cost: Cost
    """What it costs, its backward pass included."""
    peak_memory: int = 0
    """The most bytes alive in the whole model while the module ran there, or its backward pass."""


@dataclass(frozen=True, slots=True)
class Node(_WithBackward):
    """One step of the forward pass, as `torch.fx` would name it."""

    name: str
    """The name that fx gives it: "layer1_0_conv1", "add_1"."""
    op: Op
    """What kind of step it is, in fx's words."""
    target: str
    """The module's path, the function or the method that it calls."""
    module: str
    """The path of the module whose code ran the step, "" for the model itself; of a leaf module its own.

    Code of a module is that of its methods, however they are called: `self.head(x)`, `self.head.forward(x)`.
    """
    module_type: str
    """That module's class name."""
    cost: Cost
    """What it costs, its backward pass included where that was counted."""
    backward_cost: Cost = _NONE
    """The part of `cost` that is the backward pass."""
    peak_memory: int = 0
    """The most bytes alive while the step ran, or its backward pass: see `Report.peak_memory`."""
    parts: tuple[Part, ...] = ()
    """The modules that ran inside: those of a leaf that is made of others, as `nn.TransformerEncoder` is."""

    @property
    def shares(self) -> tuple[Part, ...]:
        """What each module does in this step by its own code, that of `module` first."""
        if not self.parts:
            return (Part(self.module, self.cost, self.peak_memory),)
        inside = Cost.total([part.cost for part in self.parts])
        own = Cost(*[whole - part for whole, part in zip(self.cost, inside, strict=True)])
        return Part(self.module, own, self.peak_memory), *self.parts


@dataclass(frozen=True, slots=True)
class ModuleTotal(_Costed):
    """Inclusive cost of one module: its own steps and those of all modules inside it."""

    type: str
    """The module's class name."""
    cost: Cost
    """What its steps cost together."""
    peak_memory: int = 0
    """The most bytes alive in the whole model while this module ran."""
    held: Held = _NOTHING_HELD
    """The parameters and buffers in it, shared ones under the first module that has them."""

    @property
    def params(self) -> int:
        """The number of elements of its parameters."""
        return self.held.params

    @property
    def parameter_memory(self) -> int:
        """The size of its parameters and buffers in bytes."""
        return self.held.parameter_memory

    def total(self, metric: Metric) -> int:
        """Return the module's part of one additive metric."""
        return int(getattr(self, metric.name))


@dataclass(frozen=True, repr=False)
class Report(_WithBackward):
    """The cost of one forward pass, or of one forward and backward pass."""

    model: str
    """The class of the model, or the name of the function."""
    mode: str
    """How it ran: "eval", "train", "train with backward"."""
    inputs: tuple[str, ...]
    """Each input by the name that `forward` gives it: "x: float32[1, 3, 224, 224]", "use_cache: False"."""
    executed: Executed
    """"meta" where the run on shapes sufficed, "real" where real tensors were needed."""
    reason: str
    """Why real tensors were needed, and where; "" where they were not."""
    held: Mapping[str, Held]
    """The parameters and buffers of each module's own, by its path; shared ones once."""
    nodes: tuple[Node, ...]
    """The steps in the order in which they ran."""
    module_types: Mapping[str, str]
    """The class name of every module by its path, in order of registration; "" is the model."""
    unsupported: Mapping[str, int]
    """The number of calls of each operator without an answer: where it is not empty, `flops` is too low."""
    formulas: int
    """The version of the formulas that counted."""
    torch: str
    """The version of torch that ran."""
    by_torch: Mapping[str, int] = field(default_factory=dict)
    """The number of calls of each operator that counts by a formula which torch's own counter was given.

    Its FLOPs are two for each multiply-accumulate, by torch's convention.
    """
    own_formulas: Mapping[str, str] = field(default_factory=dict)
    """A fingerprint of each formula of yours that counted, by the operator."""
    peak_owners: Mapping[str, int] = field(default_factory=dict)
    """The bytes that were alive at the peak, by the path of the module that made them, most first."""

    @cached_property
    def cost(self) -> Cost:  # type: ignore[override]  # derived here, a field elsewhere
        """The sum of the nodes' costs."""
        return Cost.total([node.cost for node in self.nodes])

    @property
    def backward_cost(self) -> Cost:  # type: ignore[override]  # likewise
        """The part of `cost` that is the backward pass; 0 where it was not counted."""
        return Cost.total([node.backward_cost for node in self.nodes])

    @property
    def params(self) -> int:
        """The number of elements of all parameters, shared ones once."""
        return sum(held.params for held in self.held.values())

    @property
    def parameter_memory(self) -> int:
        """The size of all parameters and buffers in bytes, shared ones once."""
        return sum(held.parameter_memory for held in self.held.values())

    @property
    def intensity(self) -> float:
        """FLOPs per byte of memory traffic, the arithmetic intensity of an eager run; 0.0 without traffic."""
        return self.flops / self.memory_traffic if self.memory_traffic else 0.0

    @cached_property
    def peak_memory(self) -> int:
        """The most bytes of tensors alive at once, over what was there before the model ran.

        These are the tensors that the run makes: activations, and in training what is saved for the backward
        pass, and the gradients. Inputs, parameters and buffers are there before.
        """
        return self.peak_node.peak_memory if self.nodes else 0

    @cached_property
    def peak_node(self) -> Node:
        """The step at which the most bytes were alive."""
        return max(self.nodes, key=lambda node: node.peak_memory)

    @property
    def peak_memory_with_parameters(self) -> int:
        """The most bytes of tensors alive at once, the parameters and buffers included."""
        return self.peak_memory + self.parameter_memory

    def total(self, metric: Metric) -> int:
        """Return the total of one metric that a trace finds."""
        return int(getattr(self, metric.name))

    @cached_property
    def totals(self) -> Mapping[str, int]:
        """The total of every metric that a trace finds, by name."""
        return {metric.name: self.total(metric) for metric in COUNTED}

    @cached_property
    def modules(self) -> Mapping[str, ModuleTotal]:
        """Inclusive totals by module path; "" is the model, every path of `module_types` is present.

        A module that runs twice counts twice; a module reachable by several paths counts under the first.
        """
        costs: dict[str, list[Cost]] = {path: [] for path in self.module_types}
        held: dict[str, list[Held]] = {path: [] for path in self.module_types}
        peaks = dict.fromkeys(self.module_types, 0)
        for module, own in self.held.items():
            for path in filter(held.__contains__, enclosing(module)):
                held[path].append(own)
        for part in [part for node in self.nodes for part in node.shares]:
            for path in enclosing(part.module):
                if path in costs:  # "a" need not be a module where one is registered as "a.b"
                    costs[path].append(part.cost)
                    peaks[path] = max(peaks[path], part.peak_memory)
        return {
            path: ModuleTotal(kind, Cost.total(costs[path]), peaks[path], Held.total(held[path]))
            for path, kind in self.module_types.items()
        }

    @cached_property
    def functions(self) -> Mapping[tuple[str, str], int]:
        """FLOPs of functional work, by (path of the module whose code does it, name of the function).

        With these a module's total is the sum of its functions and of its direct children. A leaf module's
        total is its own, and that of modules inside it.
        """
        found: dict[tuple[str, str], int] = {}
        for node in self.nodes:
            if node.op in ("call_function", "call_method") and (own := node.shares[0].flops):
                key = (node.module, base_name(node.name))
                found[key] = found.get(key, 0) + own
        return found

    def table(self, *, peaks: bool = False) -> str:
        """Return the node table as text, as `torch.fx` prints it, with costs, and the totals.

        With `peaks` it also shows the most bytes that were alive at each node.
        """
        return "\n".join([node_rows(self.nodes, peaks=peaks).text("rst"), "", *total_lines(self)])

    def to_dict(self) -> dict[str, Any]:
        """Return everything in the report in plain values, ready for `json.dumps`."""
        return {
            "model": self.model,
            "mode": self.mode,
            "inputs": list(self.inputs),
            "executed": self.executed,
            "reason": self.reason,
            "totals": dict(self.totals),
            "backward": self.backward_cost._asdict(),
            "parameter_memory": self.parameter_memory,
            "peak_memory_with_parameters": self.peak_memory_with_parameters,
            "modules": {path: _fields(module) for path, module in self.modules.items()},
            "nodes": [_fields(node) for node in self.nodes],
            "peak_owners": dict(self.peak_owners),
            "unsupported": dict(self.unsupported),
            "by_torch": dict(self.by_torch),
            "own_formulas": dict(self.own_formulas),
            "formulas": self.formulas,
            "torch": self.torch,
        }

    def __repr__(self) -> str:
        return f"<Report of {headline(self)}>"

    def __str__(self) -> str:
        return "\n".join([module_rows(self).text(), "", *total_lines(self)])

    def _repr_html_(self) -> str:
        """Return the module tree for a notebook."""
        from pytest_flops.results.module_tree import ModuleTree

        modules = {path: (m.type, m.flops) for path, m in self.modules.items() if not path or any(m.cost)}
        return ModuleTree(self.model, modules).html(total_lines(self))


def _fields(found: Node | ModuleTotal | Part) -> dict[str, Any]:
    """Return the fields of a node or a module, its cost by metric."""
    values = {each.name: getattr(found, each.name) for each in fields(found)}
    if parts := values.pop("parts", ()):
        values["parts"] = [_fields(part) for part in parts]
    found_costs: dict[str, Any] = values.pop("cost")._asdict()
    if isinstance(found, ModuleTotal):
        found_costs |= values.pop("held")._asdict()
    if isinstance(found, Node):
        backward = values.pop("backward_cost")._asdict()
        found_costs |= {f"backward_{name}": value for name, value in backward.items()}
    return values | found_costs


# Words and rows ---------------------------------------------------------------------------------------------


def headline(report: Report) -> str:
    """Return in a line what was counted and what it costs: "Net (eval): 44 FLOPs, 20 MACs, ..."."""
    return f"{report.model} ({report.mode}): {costs(report)}"


def costs(report: Report) -> str:
    """Return the totals of a report in one line."""
    return ", ".join(metric.brief(report.total(metric)) for metric in COUNTED)


def total_lines(report: Report) -> Iterator[str]:
    """Yield the totals of a report, and what one has to know of them, line by line."""
    yield headline(report)
    if any(report.backward_cost):
        parts = report.backward_cost._asdict().items()
        yield f"Of it backward: {', '.join(METRICS[name].brief(value) for name, value in parts)}"
    if report.executed == "real":
        yield f"Ran on real tensors: {report.reason}"
    if report.unsupported:
        operators, unseen = operators_and_unseen(report.unsupported)
        reasons = [f"no formula for {calls(operators)}"] if operators else []
        reasons += [f"work that PyTorch does not see: {calls(unseen)}"] if unseen else []
        yield f"Too low: {'; '.join(reasons)}"
    if report.by_torch:
        yield f"Counted as torch's 2 x MACs: {calls(report.by_torch)}"


def operators_and_unseen(unsupported: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """Return what has no answer in two parts: operators, which can have a formula, and what is none.

    These are kernels that PyTorch does not know, and ways for values to leave it: "Tensor.numpy".
    """
    unseen = {name: n for name, n in unsupported.items() if name.startswith((KERNEL, "Tensor."))}
    return {name: n for name, n in unsupported.items() if name not in unseen}, unseen


def calls(unsupported: Mapping[str, int]) -> str:
    """Return operators with their numbers of calls: "aten::odd (2 calls)"."""
    return ", ".join(f"{op} ({plural(number, 'call')})" for op, number in unsupported.items())


def node_rows(nodes: tuple[Node, ...], *, peaks: bool = False) -> Table:
    """Return a row for each node, with the metrics that have a column; with `peaks` also its peak memory."""
    shown = [metric.name for metric in COUNTED if metric.has_column]
    shown += ["backward_flops"] if any(node.backward_flops for node in nodes) else []
    shown += ["peak_memory"] if peaks else []
    rows = [
        (node.name, node.op, node.target, node.module_type, *(getattr(node, name) for name in shown))
        for node in nodes
    ]
    titles = {"backward_flops": "of it backward"}
    columns = [Column(titles.get(name, name), count, right=True) for name in shown]
    return Table((*NODE_COLUMNS, *columns), tuple(rows), noun="smaller node")


def module_rows(report: Report) -> Table:
    """Return a row for each module that costs anything, as deep into the tree as a short table can show."""
    busy = [path for path, module in report.modules.items() if any(module.cost)]
    depths = [path.count(".") + 1 if path else 0 for path in busy]
    deepest = max((d for d in depths if sum(depth <= d for depth in depths) <= _SUMMARY_ROWS), default=0)
    shown = [metric.name for metric in COUNTED if metric.has_column]
    rows = [
        (place_name(path), module.type, *(getattr(module, name) for name in shown), _share(module, report))
        for path, depth in zip(busy, depths, strict=True)
        if depth <= deepest and (module := report.modules[path])
    ]
    columns = [Column(name, count, right=True) for name in shown]
    table = Table((Column("module"), Column("type"), *columns, Column("share", right=True)), tuple(rows))
    return table.cut(_SUMMARY_ROWS)


def _share(module: ModuleTotal, report: Report) -> str:
    return f"{module.flops / report.flops:.1%}" if report.flops else ""


def place_name(path: str) -> str:
    """Return a module path as shown to people."""
    return path or "(model)"


# Names ------------------------------------------------------------------------------------------------------


def enclosing(path: str) -> Iterator[str]:
    """Yield a module path and the paths of all modules around it, innermost first, "" last."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""


def around(path: str) -> Iterator[str]:
    """Yield the paths of the modules around one, innermost first, "" last; none around the model."""
    return islice(enclosing(path), 1, None)


def base_name(node_name: str) -> str:
    """Return a node name without the number that makes it unique: `add_12` is an `add`."""
    head, _, tail = node_name.rpartition("_")
    return head if head and tail.isdigit() else node_name
