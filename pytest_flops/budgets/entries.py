"""The entry of one model in a baseline file of the present format, as JSON that people read in diffs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from pytest_flops.budgets.baseline import Baseline, Costs, Function, Module, Peak
from pytest_flops.budgets.folding import fold, unfold
from pytest_flops.budgets.json_values import (
    RESTORE,
    UnusableError,
    read_count,
    read_counts,
    read_fields,
    read_mapping,
    read_number,
    read_text,
    read_texts,
    too_new,
    wrong_value,
)
from pytest_flops.metrics import ADDITIVE, METRICS, Metric
from pytest_flops.results.measured import Latency, Measured, Quantity

# Reading ----------------------------------------------------------------------------------------------------


def read_entry(value: object, where: str) -> Baseline:
    """Return a baseline of this format, whose digest says that some run wrote it as it is.

    One that was read in an older format, and kept, has no types, and by module nothing but FLOPs.
    """
    keys = ("digest", "formulas", "torch", "mode", "inputs", "modules", "functions")
    content = read_fields(value, keys, where, optional=("own_formulas", "peak_memory", "measured"))
    if digest_of(content) != content["digest"]:
        raise UnusableError(
            f'was changed by hand, or by a merge, in "{where}": its digest says that no run wrote this. '
            f"{RESTORE}"
        )
    modules = {
        path: _module(entry, f'{where}.modules["{path}"]')
        for path, entry in _unfolded(content["modules"], f"{where}.modules").items()
    }
    if "" not in modules:
        raise UnusableError(f'lacks the model itself, "", in {where}.modules. {RESTORE}')
    kind, totals = modules[""]
    metrics = frozenset(totals if kind else {"flops"})
    known = {name: amount for name, amount in totals.items() if amount and name in metrics}
    highest, peak = _peak(content.get("peak_memory"), f"{where}.peak_memory")
    return Baseline(
        **run_of(content, where),
        totals={**totals, **highest},
        metrics=metrics,
        modules={**modules, "": Module(kind, known)},
        functions=_functions(content["functions"], f"{where}.functions"),
        peak=peak,
        own_formulas={
            op: read_text(name, f'{where}.own_formulas["{op}"]')
            for op, name in read_mapping(content.get("own_formulas", {}), f"{where}.own_formulas").items()
        },
    )


def _peak(value: object, where: str) -> tuple[dict[str, int], Peak]:
    """Return the total of the peak, if there is one, and where it was."""
    if value is None:
        return {}, Peak("", {})
    content = read_fields(value, ("bytes", "node", "owners"), where)
    owners = read_counts(_unfolded(content["owners"], f"{where}.owners"), f"{where}.owners")
    node = read_text(content["node"], f"{where}.node")
    return {"peak_memory": read_count(content["bytes"], f"{where}.bytes")}, Peak(node, owners)


def run_of(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return what all formats say of a run in the same words."""
    return {
        "formulas": read_count(content["formulas"], f"{where}.formulas"),
        "torch": read_text(content["torch"], f"{where}.torch"),
        "mode": read_text(content["mode"], f"{where}.mode"),
        "inputs": read_texts(content["inputs"], f"{where}.inputs"),
        "measured": _machines(content.get("measured", {}), f"{where}.measured"),
    }


def _unfolded(value: object, where: str) -> dict[str, Any]:
    try:
        return unfold(read_mapping(value, where))
    except ValueError as err:
        raise UnusableError(f'has "{err}" in {where}, which no run writes. {RESTORE}') from None


def _module(value: object, where: str) -> Module:
    content = dict(read_mapping(value, where))
    return Module(read_text(content.pop("type", None), f"{where}.type"), _costs(content, where))


def _functions(value: object, where: str) -> dict[Function, Costs]:
    return {
        Function(module, name): _costs(costs, f'{where}["{module}"].{name}')
        for module, names in _unfolded(value, where).items()
        for name, costs in read_mapping(names, f'{where}["{module}"]').items()
    }


def _costs(value: object, where: str) -> Costs:
    known = {metric.name for metric in ADDITIVE}
    for name in read_mapping(value, where):
        if name not in known:
            raise too_new("metric", f"{where}.{name}")
    return read_counts(value, where)


# What was measured ------------------------------------------------------------------------------------------


def _machines(value: object, where: str) -> dict[str, Measured]:
    return {key: _measured(entry, f'{where}["{key}"]') for key, entry in read_mapping(value, where).items()}


def _measured(value: object, where: str) -> Measured:
    names = tuple(metric.name for metric in METRICS.values() if metric.is_measured)
    content = read_fields(value, (), where, optional=names)
    if not content:
        raise wrong_value(value, where, f"a {' or '.join(names)}")
    return {name: _quantity(METRICS[name], content[name], f"{where}.{name}") for name in content}


def _quantity(metric: Metric, value: object, where: str) -> Quantity:
    return _latency(value, where) if metric.unit == "time" else read_count(value, where)


def _latency(value: object, where: str) -> Latency:
    content = read_fields(value, ("ratio", "median_ms", "spread", "samples", "reference"), where)
    return Latency(
        ratio=read_number(content["ratio"], f"{where}.ratio", above_zero=True),
        median_ms=read_number(content["median_ms"], f"{where}.median_ms", above_zero=True),
        spread=read_number(content["spread"], f"{where}.spread"),
        samples=read_count(content["samples"], f"{where}.samples"),
        reference=read_count(content["reference"], f"{where}.reference"),
    )


# Writing ----------------------------------------------------------------------------------------------------


def entry_of(baseline: Baseline) -> dict[str, object]:
    """Return a baseline as what the file holds of it."""
    modules = {
        path: _Row({"type": module.type} | dict(module.costs)) for path, module in baseline.modules.items()
    }
    totals = {
        metric.name: baseline.totals[metric.name] for metric in ADDITIVE if metric.name in baseline.totals
    }
    modules[""] = _Row(modules.get("", {"type": ""}) | totals)  # zeros too: which metrics there are
    content: dict[str, object] = {
        "formulas": baseline.formulas,
        **({"own_formulas": dict(baseline.own_formulas)} if baseline.own_formulas else {}),
        "torch": baseline.torch,
        "mode": baseline.mode,
        "inputs": list(baseline.inputs),
        "modules": {path: _Row(row) for path, row in fold(modules).items()},
        "functions": _functions_as_json(baseline.functions),
    }
    if "peak_memory" in baseline.totals:
        content["peak_memory"] = {
            "bytes": baseline.totals["peak_memory"],
            "node": baseline.peak.node,
            "owners": _Row(fold(baseline.peak.owners)),
        }
    machines = {
        machine: {
            name: _Row(asdict(value)) if isinstance(value, Latency) else value
            for name, value in found.items()
        }
        for machine, found in sorted(baseline.measured.items())
    }
    return {"digest": digest_of(content)} | content | ({"measured": machines} if machines else {})


def _functions_as_json(functions: Mapping[Function, Costs]) -> dict[str, object]:
    by_module: dict[str, dict[str, object]] = {}
    for function, costs in functions.items():
        by_module.setdefault(function.module, {})[function.name] = dict(costs)
    return {path: _Row(names) for path, names in fold(by_module).items()}


_UNSIGNED = ("digest", "torch", "measured")
"""What an entry's digest is not of: itself, and what differs between machines."""


def digest_of(content: Mapping[str, object]) -> str:
    """Return what a model's entry comes to: any change of it that no run made shows."""
    import hashlib

    counted = {key: value for key, value in content.items() if key not in _UNSIGNED}
    text = json.dumps(counted, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class _Row(dict[str, object]):
    """An object that stands on one line, so that a diff shows it whole."""


def lines_of(value: object, indent: str) -> Iterator[str]:
    """Yield the lines of a JSON value: objects and lists a line an entry, rows whole."""
    if not isinstance(value, (dict, list)) or isinstance(value, _Row) or not value:
        yield json.dumps(value, ensure_ascii=False)
        return
    opening, closing = ("{", "}") if isinstance(value, dict) else ("[", "]")
    yield opening
    entries = list(value.items()) if isinstance(value, dict) else [("", each) for each in value]
    for position, (key, entry) in enumerate(entries):
        first, *rest = lines_of(entry, indent + "  ")
        name = f"{json.dumps(key, ensure_ascii=False)}: " if isinstance(value, dict) else ""
        lines = [f"{indent}  {name}{first}", *rest]
        lines[-1] += "," if position < len(entries) - 1 else ""
        yield from lines
    yield f"{indent}{closing}"
