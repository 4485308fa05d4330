"""Tables for people: of nodes, of what changed, and of where the memory peaks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pytest_flops.budgets.baseline import Function
from pytest_flops.budgets.verdict import Change, Verdict
from pytest_flops.reporting.wording import calls, costs, delta, figure, place_name, plural
from pytest_flops.results.columns import aligned
from pytest_flops.results.report import Node, Report, base_name

_CHANGED_ROWS = 10
_DIGEST_ROWS = 24
_NODE_COLUMNS: tuple[str, ...] = ("node_name", "node_op", "op_target", "nn_module_stack[-1]", "flops", "macs")


def node_table(report: Report, *, peaks: bool = False) -> str:
    """Return all nodes of a report and its totals; with `peaks` also the memory at each node."""
    return "\n".join([_node_rows(report.nodes, peaks), "", *_totals(report)])


def node_digest(report: Report, verdict: Verdict) -> str:
    """Return the nodes where something changed and the largest ones, in the order in which they ran."""
    peaks = verdict.broken_peak_memory is not None
    if len(report.nodes) <= _DIGEST_ROWS:
        return node_table(report, peaks=peaks)
    modules = {change.what for change in verdict.places}
    functions = {change.what for change in verdict.functions}

    def rank(node: Node) -> tuple[bool, int]:
        if peaks and node.peak_memory == report.peak_memory:
            return True, report.flops
        if node.op == "call_module":
            return node.module in modules, node.flops
        return Function(node.module, base_name(node.name)) in functions, node.flops

    ranked = sorted(range(len(report.nodes)), key=lambda index: rank(report.nodes[index]), reverse=True)
    shown = [report.nodes[index] for index in sorted(ranked[:_DIGEST_ROWS])]
    hidden = f"... and {plural(len(report.nodes) - len(shown), 'smaller node')}; -vv shows all."
    return "\n".join([_node_rows(shown, peaks), hidden, *_totals(report)])


def _node_rows(nodes: Sequence[Node], peaks: bool) -> str:
    columns, align = _NODE_COLUMNS, "llllrr"
    rows: list[tuple[str, ...]] = [
        (node.name, node.op, node.target, node.module_type, f"{node.flops:,}", f"{node.macs:,}")
        for node in nodes
    ]
    if any(node.backward_flops for node in nodes):
        columns, align = (*columns, "of it backward"), align + "r"
        rows = [(*row, f"{node.backward_flops:,}") for row, node in zip(rows, nodes, strict=True)]
    if peaks:
        columns, align = (*columns, "peak_memory"), align + "r"
        rows = [(*row, f"{node.peak_memory:,}") for row, node in zip(rows, nodes, strict=True)]
    return aligned(rows, columns, align, "rst")


def _totals(report: Report) -> Iterator[str]:
    yield f"{report.model} ({report.mode}): {costs(report)}"
    if report.backward_flops:
        yield f"Of it backward: {report.backward_flops:,} FLOPs, {report.backward_macs:,} MACs"
    if report.executed == "real":
        yield f"Ran on real tensors: {report.reason}"
    if report.unsupported:
        yield f"Too low: no formula for {calls(report.unsupported.items())}"


def change_tables(report: Report, verdict: Verdict, *, full: bool = False) -> Iterator[str]:
    """Yield a table of the modules whose own work changed, then one of the functions; most first.

    Modules around them are left out: they only inherit the change. With `full` no row is dropped.
    """
    modules = [change for change in verdict.places if change.was != change.now]
    functions = sorted(verdict.functions, key=lambda change: (-abs(change.own), change.what))
    if modules:
        rows = [_module_row(report, change) for change in modules]
        yield _cut(rows, ("module", "type", "baseline", "now", "change"), "llrrl", full, "module")
    if functions:
        rows = [_function_row(report, change) for change in functions]
        yield _cut(rows, ("function", "in", "nodes", "baseline", "now", "change"), "lllrrl", full, "function")


def _cut(rows: Sequence[Sequence[str]], headers: Sequence[str], align: str, full: bool, noun: str) -> str:
    shown = rows if full else rows[:_CHANGED_ROWS]
    text = aligned(shown, headers, align)
    hidden = len(rows) - len(shown)
    return f"{text}\n... and {plural(hidden, f'more {noun}')}; -vv shows all." if hidden else text


def _module_row(report: Report, change: Change) -> tuple[str, ...]:
    path = str(change.what)
    kind = report.module_types.get(path, "-")
    text = delta(change.was, change.now)
    if change.own != change.now - change.was:
        text = f"{text}, {change.own:+,} its own"
    return place_name(path), kind, f"{change.was:,}", f"{change.now:,}", text


def _function_row(report: Report, change: Change) -> tuple[str, ...]:
    assert isinstance(change.what, Function)
    module, name = change.what
    numbers = f"{change.was:,}", f"{change.now:,}", delta(change.was, change.now)
    return name, place_name(module), _node_names(report, change.what), *numbers


def _node_names(report: Report, function: Function) -> str:
    names = [
        node.name
        for node in report.nodes
        if node.module == function.module and base_name(node.name) == function.name and node.flops
    ]
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} ... {names[-1]} ({len(names)})"


def peak_table(report: Report, above: int, *, full: bool = False) -> str:
    """Return the modules while whose own steps more than so many bytes were alive, and the highest such step.

    What modules inside them reach is theirs alone, so a container does not repeat it.
    """
    highest: dict[str, Node] = {}
    for node in report.nodes:
        if node.peak_memory > (highest[node.module].peak_memory if node.module in highest else above):
            highest[node.module] = node
    rows = [
        (
            place_name(node.module),
            report.module_types.get(node.module, "-"),
            node.name,
            figure("peak_memory", node.peak_memory),
        )
        for node in sorted(highest.values(), key=lambda node: -node.peak_memory)
    ]
    return _cut(rows, ("module", "type", "peak at", "bytes alive"), "llll", full, "module")
