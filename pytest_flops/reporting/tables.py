"""What changed, where memory peaks and what costs most, as rows of values: text is made of them last."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

from pytest_flops.budgets.baseline import Peak
from pytest_flops.budgets.changes import Changes
from pytest_flops.budgets.verdict import Verdict
from pytest_flops.metrics import METRICS, Metric
from pytest_flops.reporting.places import BY_IMPORTANCE, Group, alike, change_of, grouped, is_at, label, times
from pytest_flops.results.columns import Column, Table
from pytest_flops.results.report import Report, node_rows, place_name, total_lines
from pytest_flops.units import percent, plural

_CHANGED_ROWS = 10
_OWNER_ROWS = 5
_DIGEST_ROWS = 24
_COLUMNS = 3


def text_of(table: Table, style: str = "simple") -> str:
    """Return a table as text, with a line on the rows that it leaves out."""
    text = table.text(style)
    return f"{text}\n... and {plural(table.hidden, table.noun)}; -vv shows all." if table.hidden else text


# Nodes ------------------------------------------------------------------------------------------------------


def node_digest(report: Report, verdict: Verdict, *, full: bool = False) -> str:
    """Return the largest nodes, as they ran, and the totals; with `full` no node is left out.

    A broken peak adds the column for it, and the node where it is.
    """
    table = digest_rows(report, verdict, most=len(report.nodes) if full else _DIGEST_ROWS)
    gap = [] if table.hidden else [""]
    return "\n".join([text_of(table, "rst"), *gap, *total_lines(report)])


def digest_rows(report: Report, verdict: Verdict, most: int) -> Table:
    """Return rows for at most so many nodes, those with the most FLOPs, or else the most memory traffic."""
    peaks = verdict.peak_bound is not None

    def rank(index: int) -> tuple[bool, int, int]:
        node = report.nodes[index]
        return peaks and node is report.peak_node, node.flops, node.memory_traffic

    ranked = sorted(range(len(report.nodes)), key=rank, reverse=True)
    return node_rows(report.nodes, peaks=peaks).keep(sorted(ranked[:most]))


# Changes ----------------------------------------------------------------------------------------------------


def place_changes(changes: Changes, report: Report, metrics: Sequence[Metric]) -> Table:
    """Return the places whose work changed, by what changed most of the first metric that they share.

    Modules around them are left out: they only inherit the change.
    """
    places = [place for place in changes.places if any(map(place.delta, metrics))]
    groups = grouped(places, metrics)
    sizes = [max((abs(group.delta(metric)) for group in groups), default=0) or 1 for metric in metrics]

    def rank(group: Group) -> float:
        return -max(abs(group.delta(metric)) / most for metric, most in zip(metrics, sizes, strict=True))

    columns = (
        Column("module", place_name),
        Column("type or function"),
        Column("node"),
        *(Column(metric.title) for metric in metrics),
    )
    rows = [
        (
            times(group.label, len(group.places)),
            group.first.function or group.first.type,
            _nodes_of(group, report),
            *(change_of(group, metric) for metric in metrics),
        )
        for group in sorted(groups, key=rank)
    ]
    return Table(columns, tuple(rows), noun="more place")


def shown_metrics(verdict: Verdict) -> list[Metric]:
    """Return the metrics to show by place: those that grew, else those that changed, by what people read."""
    changes = verdict.changes
    grown = {each.metric for each in changes.grown}
    changed = {finding.metric for finding in changes.totals if finding.changed}
    wanted = [metric for metric in BY_IMPORTANCE if metric in (grown or changed)]
    return wanted[:_COLUMNS] or [METRICS["flops"]]


def _nodes_of(group: Group, report: Report) -> str:
    """Return the names of the nodes where the first place of a group is now."""
    names = [node.name for node in report.nodes if is_at(node, group.first)]
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} ... {names[-1]} ({len(names)})"


# Peak memory ------------------------------------------------------------------------------------------------


class _Owner(NamedTuple):
    """What is alive at the peak of what a module made."""

    path: str
    was: int
    now: int

    @property
    def change(self) -> int:
        return self.now - self.was


def owner_changes(peaks: tuple[Peak, Peak], report: Report) -> Table:
    """Return what was and is alive at the peak by the module that made it, where that changed."""
    was, now = (peak.owners for peak in peaks)
    owners = [_Owner(path, was.get(path, 0), now.get(path, 0)) for path in {**now, **was}]
    groups = alike([owner for owner in owners if owner.change], attrgetter("path"), attrgetter("was", "now"))
    rows = [
        (
            times(label([owner.path for owner in group]), len(group)),
            report.module_types.get(group[0].path, "-"),
            f"{group[0].was:,} -> {group[0].now:,} ({percent(group[0].was, group[0].now)})",
        )
        for group in sorted(groups, key=lambda group: -abs(group[0].change) * len(group))
    ]
    return Table(_OWNER_COLUMNS, tuple(rows), noun="more module")


def owner_rows(report: Report) -> Table:
    """Return what is alive at the peak by the module that made it, most first."""
    rows = [
        (path, report.module_types.get(path, "-"), f"{nbytes:,}")
        for path, nbytes in report.peak_owners.items()
    ]
    return Table(_OWNER_COLUMNS, tuple(rows), noun="more module")


_OWNER_COLUMNS = (Column("made by", place_name), Column("type"), Column("bytes alive at the peak"))


def change_tables(report: Report, verdict: Verdict, *, full: bool = False) -> list[str]:
    """Return what changed as text: places, and where the peak broke the budget what is alive then.

    With `full` no row is dropped.
    """
    tables = [(place_changes(verdict.changes, report, shown_metrics(verdict)), _CHANGED_ROWS)]
    if verdict.peak_bound is not None:
        peaks = verdict.changes.peaks
        tables.append((owner_changes(peaks, report) if peaks else owner_rows(report), _OWNER_ROWS))
    return [text_of(table if full else table.cut(most)) for table, most in tables if table.rows]
