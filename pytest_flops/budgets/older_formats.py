"""Baselines of formats 1 and 2: they still gate what they hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pytest_flops.budgets.baseline import Baseline, Function, Module, parents
from pytest_flops.budgets.entries import run_of
from pytest_flops.budgets.json_values import (
    RESTORE,
    UnusableError,
    read_counts,
    read_fields,
    read_mapping,
    too_new,
)
from pytest_flops.metrics import COUNTED


def read_older_entry(value: object, where: str) -> Baseline:
    """Return a baseline of format 1 or 2: FLOPs by module and function, no types; the rest in all only."""
    keys = ("formulas", "torch", "mode", "inputs", "totals", "modules", "functions")
    content = read_fields(value, keys, where, optional=("measured",))
    flops = read_counts(content["modules"], f"{where}.modules")
    functions = read_counts(content["functions"], f"{where}.functions")
    found = Baseline(
        **run_of(content, where),
        totals=_totals(content["totals"], f"{where}.totals"),
        metrics=frozenset({"flops"}),
        modules={path: Module("", {"flops": count}) for path, count in flops.items()},
        functions={_function(key): {"flops": count} for key, count in functions.items()},
    )
    _cross_check(found.totals["flops"], flops, functions, where)
    return replace(
        found, functions={f: costs for f, costs in found.functions.items() if f.name != _WORK_OF_A_LEAF}
    )


_WORK_OF_A_LEAF = "forward"
"""What format 2 called the work of a leaf that has modules inside, so that its parts add up."""


def _function(key: str) -> Function:
    module, _, name = key.rpartition(" ")
    return Function(module, name)


def _totals(value: object, where: str) -> dict[str, int]:
    """Return totals by metric: those that every file has, and those younger ones that this file has."""
    known = {metric.name for metric in COUNTED}
    for name in read_mapping(value, where):
        if name not in known:
            raise too_new("total", f"{where}.{name}")
    originals = tuple(metric.name for metric in COUNTED if metric.is_original)
    return read_counts(read_fields(value, originals, where, optional=tuple(known)), where)


def _cross_check(total: int, modules: Mapping[str, int], functions: Mapping[str, int], where: str) -> None:
    """Refuse numbers that do not add up, as a hand edit or a bad merge leaves them."""
    if total != modules.get("", 0):
        raise UnusableError(
            f"does not add up: {where}.totals.flops is {total}, the model's entry in modules is "
            f"{modules.get('', 0)}. {RESTORE}"
        )
    parts: dict[str, int] = {}
    for key, flops in functions.items():
        module = _function(key).module
        parts[module] = parts.get(module, 0) + flops
    for path, parent in parents(modules).items():
        parts[parent] = parts.get(parent, 0) + modules[path]
    for path, parts_flops in sorted(parts.items()):
        if parts_flops != modules.get(path, 0):
            raise UnusableError(
                f'does not add up: {where}.modules["{path}"] is {modules.get(path, 0)}, '
                f"its parts sum to {parts_flops}. {RESTORE}"
            )
