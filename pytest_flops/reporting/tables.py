"""What changed and where memory peaks, as rows of values: text is made of them last."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from pytest_flops.budgets.baseline import Function
from pytest_flops.budgets.verdict import Change, Changes, Verdict
from pytest_flops.metrics import METRICS
from pytest_flops.results.columns import Column, Table, count
from pytest_flops.results.report import Node, Report, base_name, node_rows, place_name, total_lines
from pytest_flops.units import delta, plural

_CHANGED_ROWS = 10
_DIGEST_ROWS = 24


class Delta(NamedTuple):
    """A change of FLOPs, and the part of it that is a module's own."""

    was: int
    now: int
    own: int

    def __str__(self) -> str:
        text = delta(self.was, self.now)
        return text if self.own == self.now - self.was else f"{text}, {self.own:+,} its own"


def text_of(table: Table, style: str = "simple") -> str:
    """Return a table as text, with a line on the rows that it leaves out."""
    text = table.text(style)
    return f"{text}\n... and {plural(table.hidden, table.noun)}; -vv shows all." if table.hidden else text


# Nodes ------------------------------------------------------------------------------------------------------


def node_digest(report: Report, verdict: Verdict, *, full: bool = False) -> str:
    """Return the nodes where something changed and the largest ones, as they ran, and the totals.

    A broken peak adds the column for it. With `full` no node is left out.
    """
    table = digest_rows(report, verdict, most=len(report.nodes) if full else _DIGEST_ROWS)
    gap = [] if table.hidden else [""]
    return "\n".join([text_of(table, "rst"), *gap, *total_lines(report)])


def digest_rows(report: Report, verdict: Verdict, most: int) -> Table:
    """Return rows for at most so many nodes: those where something changed before the others, by cost."""
    peaks = verdict.peak_bound is not None
    modules = {change.what for change in verdict.changes.places}
    functions = {change.what for change in verdict.changes.functions}

    def rank(index: int) -> tuple[bool, int]:
        node = report.nodes[index]
        if peaks and node.peak_memory == report.peak_memory:
            return True, report.flops
        if node.op == "call_module":
            return any(part.module in modules for part in node.shares), node.flops
        return Function(node.module, base_name(node.name)) in functions, node.flops

    ranked = sorted(range(len(report.nodes)), key=rank, reverse=True)
    table = node_rows(report.nodes, peaks=peaks)
    return table.keep(sorted(ranked[:most]))


# Changes ----------------------------------------------------------------------------------------------------


def module_changes(changes: Changes, report: Report) -> Table:
    """Return the modules whose own work changed, most first.

    Modules around them are left out: they only inherit the change.
    """
    columns = (Column("module", place_name), Column("type"), *_NUMBERS)
    rows = [
        (change.what, report.module_types.get(str(change.what), "-"), *_numbers(change))
        for change in changes.places
        if change.was != change.now
    ]
    return Table(columns, tuple(rows), noun="more module")


def function_changes(changes: Changes, report: Report) -> Table:
    """Return the functions whose work changed, most first, and the nodes where they are called."""
    columns = (Column("function"), Column("in", place_name), Column("nodes", _names), *_NUMBERS)
    functions = sorted(changes.functions, key=lambda change: (-abs(change.own), change.what))
    rows = [
        (change.what.name, change.what.module, _calls_of(change.what, report.nodes), *_numbers(change))
        for change in functions
        if isinstance(change.what, Function)
    ]
    return Table(columns, tuple(rows), noun="more function")


_NUMBERS = (Column("baseline", count, right=True), Column("now", count, right=True), Column("change"))


def _numbers(change: Change) -> tuple[int, int, Delta]:
    return change.was, change.now, Delta(change.was, change.now, change.own)


def _calls_of(function: Function, nodes: Iterable[Node]) -> list[str]:
    return [
        node.name
        for node in nodes
        if node.module == function.module and base_name(node.name) == function.name and node.flops
    ]


def _names(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} ... {names[-1]} ({len(names)})"


# Peak memory ------------------------------------------------------------------------------------------------


def peak_rows(report: Report, above: int) -> Table:
    """Return the modules while whose own steps more than so many bytes were alive, and the highest such step.

    What modules inside them reach is theirs alone, so a container does not repeat it.
    """
    highest: dict[str, Node] = {}
    for node in report.nodes:
        if node.peak_memory > (highest[node.module].peak_memory if node.module in highest else above):
            highest[node.module] = node
    peak = METRICS["peak_memory"]
    columns = (
        Column("module", place_name),
        Column("type"),
        Column("peak at"),
        Column("bytes alive", peak.figure),
    )
    rows = [
        (node.module, report.module_types.get(node.module, "-"), node.name, node.peak_memory)
        for node in sorted(highest.values(), key=lambda node: -node.peak_memory)
    ]
    return Table(columns, tuple(rows), noun="more module")


def change_tables(report: Report, verdict: Verdict, *, full: bool = False) -> list[str]:
    """Return what changed as text: modules, functions, and where memory is above what the budget allows.

    With `full` no row is dropped.
    """
    tables = [module_changes(verdict.changes, report), function_changes(verdict.changes, report)]
    if verdict.peak_bound is not None:
        tables.append(peak_rows(report, verdict.peak_bound))
    return [text_of(table if full else table.cut(_CHANGED_ROWS)) for table in tables if table.rows]
