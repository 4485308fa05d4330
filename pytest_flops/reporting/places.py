"""Places where work changed, in words: equal ones together, as `layers.[0-79].attn.q_proj`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple, TypeVar

from pytest_flops.budgets.baseline import Function
from pytest_flops.budgets.changes import Changes, PlaceChange
from pytest_flops.budgets.verdict import Verdict
from pytest_flops.metrics import METRICS, Metric
from pytest_flops.results.report import Node, Report, base_name, enclosing, place_name
from pytest_flops.units import percent, plural

Item = TypeVar("Item")
_OPS = METRICS["ops"]
BY_IMPORTANCE = [
    METRICS[name] for name in ("flops", "memory_traffic", "params", "ops", "parameter_memory", "macs")
]
"""Additive metrics, those first that say most about what happened."""


class Group(NamedTuple):
    """Places that differ by nothing but the numbers in their paths."""

    label: str
    """Their paths in one: "layers.[0-79].mlp"."""
    places: tuple[PlaceChange, ...]

    @property
    def first(self) -> PlaceChange:
        """The first of them, which stands for all."""
        return self.places[0]

    def delta(self, metric: Metric) -> int:
        """Return by how much one cost changed in all of them together."""
        return sum(place.delta(metric) for place in self.places)

    def __str__(self) -> str:
        what = f": {self.first.function}" if self.first.function else ""
        return f"{times(place_name(self.label), len(self.places))}{what}"


def grouped(places: Iterable[PlaceChange], metrics: Sequence[Metric]) -> list[Group]:
    """Return places in groups of the same change of some metrics, in the order of the first of each."""
    found = alike(
        places,
        lambda place: place.module,
        lambda place: (place.function, place.type, _amounts(place, metrics)),
    )
    return [Group(label([place.module for place in group]), tuple(group)) for group in found]


def culprits(changes: Changes, metric: Metric, *, rising: bool = True) -> list[Group]:
    """Return the places where a cost grew (or shrank), most first."""
    places = [place for place in changes.places_of(metric) if (place.delta(metric) > 0) == rising]
    return sorted(grouped(places, [metric]), key=lambda group: -abs(group.delta(metric)))


def _amounts(place: PlaceChange, metrics: Sequence[Metric]) -> tuple[object, ...]:
    return tuple(
        None if costs is None else costs.get(metric.name, 0)
        for costs in (place.was, place.now)
        for metric in metrics
    )


def alike(
    items: Iterable[Item], path_of: Callable[[Item], str], key_of: Callable[[Item], object]
) -> list[list[Item]]:
    """Return items in groups of the same key whose paths differ by nothing but numbers."""
    found: dict[tuple[object, ...], list[Item]] = {}
    for item in items:
        found.setdefault((_pattern(path_of(item)), key_of(item)), []).append(item)
    return list(found.values())


def _pattern(path: str) -> str:
    return ".".join("#" if name.isdecimal() else name for name in path.split("."))


def times(name: str, number: int) -> str:
    """Return a name, and how many have it if several do: "layers.[0-79] x80"."""
    return f"{name} x{number}" if number > 1 else name


def label(paths: Sequence[str]) -> str:
    """Return paths that differ in numbers as one: "layers.[0-79].mlp", "stages.*.blocks.*"."""
    names: list[str] = []
    columns = [
        sorted(set(column), key=_as_number)
        for column in zip(*[path.split(".") for path in paths], strict=True)
    ]
    varying = sum(len(column) > 1 for column in columns)
    for column in columns:
        if len(column) == 1:
            names.append(column[0])
        elif varying == 1 and int(column[-1]) - int(column[0]) == len(column) - 1:
            names.append(f"[{column[0]}-{column[-1]}]")
        else:
            names.append(f"[{','.join(column)}]" if varying == 1 and len(column) <= 4 else "*")
    return ".".join(names)


def _as_number(name: str) -> int:
    return int(name) if name.isdecimal() else 0


def change_of(group: Group, metric: Metric) -> str:
    """Return how one cost changed: "64 -> 80 (+25.00%) each", "0 -> 2,048 (new)"; "" where it did not."""
    place = group.first
    was, now = ((costs or {}).get(metric.name, 0) for costs in (place.was, place.now))
    each = " each" if len(group.places) > 1 else ""
    return f"{was:,} -> {now:,} ({percent(was, now)}){each}" if was != now else ""


def brief_change(group: Group, metric: Metric) -> str:
    """Return a place and how one cost changed there: "refine.0.conv +100.00% FLOPs", "add (new)"."""
    was, now = (
        sum((costs or {}).get(metric.name, 0) for costs in side)
        for side in zip(*[(place.was, place.now) for place in group.places], strict=True)
    )
    if was and now:
        return f"{group} {percent(was, now)} {metric.title}"
    is_whole = group.first.was is None or group.first.now is None
    if is_whole and not group.first.function:
        return _named(group)
    return f"{group} ({percent(was, now)})" if is_whole else f"{group} ({percent(was, now)} {metric.title})"


def culprit(verdict: Verdict) -> str:
    """Return in a few words what grew most over the baseline, and where; "" where nothing did."""
    for metric in BY_IMPORTANCE:
        if any(each.metric is metric for each in verdict.changes.grown) and (
            groups := culprits(verdict.changes, metric)
        ):
            return brief_change(groups[0], metric)
    grown = [finding for finding in verdict.changes.totals if finding.grew]
    return f"{grown[0].metric.title}" if grown else ""


def where(changes: Changes, metric: Metric, order: Iterable[Function] = (), *, rising: bool = True) -> str:
    """Return where a cost grew (or shrank) most, and in how many more places; "" where no place is known.

    With the `order` of the run it also says from where on: what comes later may only inherit another size.
    """
    groups = culprits(changes, metric, rising=rising)
    if not groups:
        return ""
    text = f", in {_named(groups[0])}"
    if len(groups) == 1:
        return text
    at = {(place.module, place.function): group for group in groups for place in group.places}
    whole = {module: group for (module, _), group in at.items() if _is_whole(group.first)}

    def group_at(place: Function) -> Group | None:
        around_it = (whole[module] for module in enclosing(place.module) if module in whole)
        return at.get(place) or next(around_it, None)

    first = next(filter(None, map(group_at, order)), groups[0])
    since = f", from {first} on" if first is not groups[0] else ""
    return f"{text} and {plural(len(groups) - 1, 'more place')}{since}"


def _is_whole(place: PlaceChange) -> bool:
    """Tell whether a place is a module that is new, with all that is inside."""
    return place.was is None and not place.function


def is_at(node: Node, place: PlaceChange) -> bool:
    """Tell whether a node works at a place as it is now."""
    inside = _is_whole(place) and place.module in enclosing(node.module)
    return place.now is not None and (inside or place_of(node) == (place.module, place.function))


def _named(group: Group) -> str:
    """Return a place, and of a module that is new or gone its class."""
    place = group.first
    state = "new" if place.was is None else "gone" if place.now is None else ""
    return f"{group} ({state} {place.type})" if state and not place.function else str(group)


def in_order(report: Report) -> Iterator[Function]:
    """Yield the places where a model works, in the order of its run."""
    return map(place_of, report.nodes)


def place_of(node: Node) -> Function:
    """Return where a node works."""
    return Function(node.module, "" if node.op == "call_module" else base_name(node.name))


# What moved -------------------------------------------------------------------------------------------------


def moves(changes: Changes) -> str:
    """Return what is done elsewhere or otherwise: "- attention  + matmul x2, softmax; fc is now head"."""
    signs = {"-": list[str](), "+": list[str]()}
    for place in changes.places:
        if steps := place.delta(_OPS):
            signs["-" if steps < 0 else "+"].append(place.function or f"{place.module} ({place.type})")
    words = [f"{sign} {_counted(names)}" for sign, names in signs.items() if names]
    return "; ".join(filter(None, ["  ".join(words), *renames(changes.renamed)]))


def _counted(names: list[str]) -> str:
    most = 5
    counts = [(name, names.count(name)) for name in dict.fromkeys(names)]
    shown = [times(name, number) for name, number in counts[:most]]
    return ", ".join([*shown, *([f"{len(counts) - most} more"] if len(counts) > most else [])])


def renames(renamed: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield modules that go by another name, neighbours together: "2 ... 11 are now 3 ... 12"."""
    for _, group in groupby(renamed, key=_shift):
        pairs = list(group)
        (was, now), (last_was, last_now) = pairs[0], pairs[-1]
        if len(pairs) == 1:
            yield f"{was} is now {now}"
        else:
            yield f"{was} ... {last_was} are now {now} ... {last_now}"


def _shift(pair: tuple[str, str]) -> tuple[object, ...]:
    """Return what neighbours have in common that moved together; a name that is no number goes alone."""
    (was_in, _, was), (now_in, _, now) = (path.rpartition(".") for path in pair)
    if was.isdecimal() and now.isdigit():
        return was_in, now_in, int(now) - int(was)
    return pair
