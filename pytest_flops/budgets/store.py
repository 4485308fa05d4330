"""The baseline files: one JSON file per test, readable in a diff, and refused unless every number adds up.

A file lies at `flops_baselines/<test module>/<test>.json` beside the test file and holds one `Baseline`
for each model of the test.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from pytest_flops.budgets.baseline import Baseline, Costs, Function, Module, Peak, parents
from pytest_flops.budgets.folding import fold, unfold
from pytest_flops.errors import BaselineError
from pytest_flops.metrics import ADDITIVE, COUNTED, METRICS, Metric
from pytest_flops.results.measured import Latency, Measured, Quantity

FORMAT = 3
"""Format of the files.

2026-11: 1, the first.
2026-11: 2, has the predicted peak memory among the totals, and what was measured, by machine.
2026-11: 3, has every cost of every module, its class, a line for it, equal layers folded, and a digest.

Older formats are read: what they lack is not accepted yet. A new metric needs no new format.
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the baseline of one test lives: the file, the name to show for it, and the test's id."""

    path: Path
    shown: str
    test: str


# Loading ----------------------------------------------------------------------------------------------------

_RESTORE = "Restore it from version control, or delete it and run the test with --flops-update."


class _Unusable(Exception):
    """What is wrong with the contents of a file, before the file is named."""


def load(place: Place) -> dict[str, Baseline]:
    """Return the baselines of a test's models by name; an absent file holds none.

    Raises `BaselineError` for any file that cannot be trusted: it is never treated as empty.
    """
    text = _read(place)
    return {} if text is None else parse(text, place.test, place.shown)


def parse(text: str, test: str, name: str = "The baseline") -> dict[str, Baseline]:
    """Return the baselines by model in the text of the file of a test; `name` is what errors call it.

    Raises `BaselineError` for text that cannot be trusted.
    """
    try:
        return _models(_parse(text), test)
    except _Unusable as err:
        raise BaselineError(f"{name} {err}") from None


def owner(path: Path) -> str | None:
    """Return the id of the test that a baseline file belongs to; None for what is no readable baseline."""
    try:
        data = _parse(path.read_text("utf-8"))
    except (_Unusable, OSError, UnicodeDecodeError):
        return None
    test = data.get("test") if isinstance(data, dict) and "models" in data else None
    return test if isinstance(test, str) else None


def _read(place: Place) -> str | None:
    try:
        return place.path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return None
    except IsADirectoryError:
        message = "is a folder where the baseline file should be. Move it away."
    except UnicodeDecodeError as err:
        message = f"is not UTF-8 text (byte {err.start}). {_RESTORE}"
    except OSError as err:
        if place.path.is_dir():  # Windows calls it a denied permission
            message = "is a folder where the baseline file should be. Move it away."
        else:
            message = f"cannot be read: {err.strerror or err}."
    raise BaselineError(f"{place.shown} {message}")


def _parse(text: str) -> object:
    if not text.strip():
        raise _Unusable(f"is empty. {_RESTORE}")
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith(("<<<<<<< ", ">>>>>>> ", "||||||| ")) or line == "=======":
            raise _Unusable(
                f"has a merge conflict in line {number}. Keep either side of the whole file "
                "(git checkout --ours or --theirs), then run the test with --flops-update."
            )
    import json

    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as err:
        if err.pos >= len(text.rstrip()) or err.msg.startswith("Unterminated string"):
            raise _Unusable(f"ends too early, in line {err.lineno}. {_RESTORE}") from None
        detail = f"line {err.lineno}, column {err.colno}: {err.msg}"
        raise _Unusable(f"is not valid JSON ({detail}). {_RESTORE}") from None
    except (RecursionError, ValueError):  # thousands of brackets or of digits
        raise _Unusable(f"is not valid JSON. {_RESTORE}") from None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _Unusable(f'has the key "{twice}" twice. {_RESTORE}')
    return found


def _no_constant(name: str) -> NoReturn:
    raise _Unusable(f"holds {name} where a number belongs. {_RESTORE}")


def _models(data: object, test: str) -> dict[str, Baseline]:
    if not isinstance(data, dict):
        raise _Unusable(f"is not a baseline: a JSON object belongs there. {_RESTORE}")
    version = data.get("format")
    if type(version) is int and version > FORMAT:
        raise _Unusable(
            f"has format {version}; this version of pytest-flops reads {FORMAT}. Upgrade pytest-flops."
        )
    if type(version) is not int or version < 1:
        raise _Unusable(f"does not say that it has format {FORMAT}. {_RESTORE}")
    content = _fields(data, ("format", "test", "models"), "")
    if content["test"] != test:
        raise _Unusable(
            f'is the baseline of "{content["test"]}", not of "{test}". If the test was renamed, '
            "delete the file and run the test with --flops-update."
        )
    models = _mapping(content["models"], "models")
    return {name: _baseline(value, version, f"models.{name}") for name, value in models.items()}


def _baseline(value: object, version: int, where: str) -> Baseline:
    return _older(value, where) if version < FORMAT else _present(value, where)


def _present(value: object, where: str) -> Baseline:
    """Return a baseline of this format, whose digest says that some run wrote it as it is.

    One that was read in an older format, and kept, has no types, and by module nothing but FLOPs.
    """
    keys = ("digest", "formulas", "torch", "mode", "inputs", "modules", "functions")
    content = _fields(value, keys, where, optional=("own_formulas", "peak_memory", "measured"))
    if _digest(content) != content["digest"]:
        raise _Unusable(
            f'was changed by hand, or by a merge, in "{where}": its digest says that no run wrote this. '
            f"{_RESTORE}"
        )
    modules = {
        path: _module(entry, f'{where}.modules["{path}"]')
        for path, entry in _unfolded(content["modules"], f"{where}.modules").items()
    }
    if "" not in modules:
        raise _Unusable(f'lacks the model itself, "", in {where}.modules. {_RESTORE}')
    kind, totals = modules[""]
    metrics = frozenset(totals if kind else {"flops"})
    known = {name: amount for name, amount in totals.items() if amount and name in metrics}
    highest, peak = _peak(content.get("peak_memory"), f"{where}.peak_memory")
    return Baseline(
        **_run_of(content, where),
        totals={**totals, **highest},
        metrics=metrics,
        modules={**modules, "": Module(kind, known)},
        functions=_functions(content["functions"], f"{where}.functions"),
        peak=peak,
        own_formulas={
            op: _text(name, f'{where}.own_formulas["{op}"]')
            for op, name in _mapping(content.get("own_formulas", {}), f"{where}.own_formulas").items()
        },
    )


def _peak(value: object, where: str) -> tuple[dict[str, int], Peak]:
    """Return the total of the peak, if there is one, and where it was."""
    if value is None:
        return {}, Peak("", {})
    content = _fields(value, ("bytes", "node", "owners"), where)
    owners = _counts(_unfolded(content["owners"], f"{where}.owners"), f"{where}.owners")
    node = _text(content["node"], f"{where}.node")
    return {"peak_memory": _count(content["bytes"], f"{where}.bytes")}, Peak(node, owners)


def _run_of(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return what all formats say of a run in the same words."""
    return {
        "formulas": _count(content["formulas"], f"{where}.formulas"),
        "torch": _text(content["torch"], f"{where}.torch"),
        "mode": _text(content["mode"], f"{where}.mode"),
        "inputs": _texts(content["inputs"], f"{where}.inputs"),
        "measured": _machines(content.get("measured", {}), f"{where}.measured"),
    }


def _unfolded(value: object, where: str) -> dict[str, Any]:
    try:
        return unfold(_mapping(value, where))
    except ValueError as err:
        raise _Unusable(f'has "{err}" in {where}, which no run writes. {_RESTORE}') from None


def _module(value: object, where: str) -> Module:
    content = dict(_mapping(value, where))
    return Module(_text(content.pop("type", None), f"{where}.type"), _costs(content, where))


def _functions(value: object, where: str) -> dict[Function, Costs]:
    return {
        Function(module, name): _costs(costs, f'{where}["{module}"].{name}')
        for module, names in _unfolded(value, where).items()
        for name, costs in _mapping(names, f'{where}["{module}"]').items()
    }


def _costs(value: object, where: str) -> Costs:
    known = {metric.name for metric in ADDITIVE}
    for name in _mapping(value, where):
        if name not in known:
            raise _newer("metric", f"{where}.{name}")
    return _counts(value, where)


def _newer(what: str, name: str) -> _Unusable:
    return _Unusable(
        f'has the unknown {what} "{name}": it was written by a newer pytest-flops. Upgrade pytest-flops.'
    )


# Older formats ----------------------------------------------------------------------------------------------


def _older(value: object, where: str) -> Baseline:
    """Return a baseline of format 1 or 2: FLOPs by module and function, no types; the rest in all only."""
    keys = ("formulas", "torch", "mode", "inputs", "totals", "modules", "functions")
    content = _fields(value, keys, where, optional=("measured",))
    flops = _counts(content["modules"], f"{where}.modules")
    functions = _counts(content["functions"], f"{where}.functions")
    found = Baseline(
        **_run_of(content, where),
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
    for name in _mapping(value, where):
        if name not in known:
            raise _newer("total", f"{where}.{name}")
    originals = tuple(metric.name for metric in COUNTED if metric.is_original)
    return _counts(_fields(value, originals, where, optional=tuple(known)), where)


def _cross_check(total: int, modules: Mapping[str, int], functions: Mapping[str, int], where: str) -> None:
    """Refuse numbers that do not add up, as a hand edit or a bad merge leaves them."""
    if total != modules.get("", 0):
        raise _Unusable(
            f"does not add up: {where}.totals.flops is {total}, the model's entry in modules is "
            f"{modules.get('', 0)}. {_RESTORE}"
        )
    parts: dict[str, int] = {}
    for key, flops in functions.items():
        module = _function(key).module
        parts[module] = parts.get(module, 0) + flops
    for path, parent in parents(modules).items():
        parts[parent] = parts.get(parent, 0) + modules[path]
    for path, parts_flops in sorted(parts.items()):
        if parts_flops != modules.get(path, 0):
            raise _Unusable(
                f'does not add up: {where}.modules["{path}"] is {modules.get(path, 0)}, '
                f"its parts sum to {parts_flops}. {_RESTORE}"
            )


# Values -----------------------------------------------------------------------------------------------------


def _machines(value: object, where: str) -> dict[str, Measured]:
    return {key: _measured(entry, f'{where}["{key}"]') for key, entry in _mapping(value, where).items()}


def _measured(value: object, where: str) -> Measured:
    names = tuple(metric.name for metric in METRICS.values() if metric.is_measured)
    content = _fields(value, (), where, optional=names)
    if not content:
        raise _wrong(value, where, f"a {' or '.join(names)}")
    return {name: _quantity(METRICS[name], content[name], f"{where}.{name}") for name in content}


def _quantity(metric: Metric, value: object, where: str) -> Quantity:
    return _latency(value, where) if metric.unit == "time" else _count(value, where)


def _latency(value: object, where: str) -> Latency:
    content = _fields(value, ("ratio", "median_ms", "spread", "samples", "reference"), where)
    return Latency(
        ratio=_number(content["ratio"], f"{where}.ratio", above_zero=True),
        median_ms=_number(content["median_ms"], f"{where}.median_ms", above_zero=True),
        spread=_number(content["spread"], f"{where}.spread"),
        samples=_count(content["samples"], f"{where}.samples"),
        reference=_count(content["reference"], f"{where}.reference"),
    )


def _fields(
    value: object, expected: tuple[str, ...], where: str, optional: tuple[str, ...] = ()
) -> dict[str, Any]:
    content = _mapping(value, where)
    for kind, keys in (
        ("lacks", [key for key in expected if key not in content]),
        ("has the unknown key", [key for key in content if key not in expected + optional]),
    ):
        if keys:
            key = f"{where}.{keys[0]}".removeprefix(".")
            raise _Unusable(f'{kind} "{key}". {_RESTORE}')
    return content


def _mapping(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(value, where, "an object")
    return value


def _counts(value: object, where: str) -> dict[str, int]:
    return {key: _count(count, f'{where}["{key}"]') for key, count in _mapping(value, where).items()}


def _count(value: object, where: str) -> int:
    if type(value) is not int or value < 0:
        raise _wrong(value, where, "an integer of at least 0")
    return value


def _number(value: object, where: str, *, above_zero: bool = False) -> float:
    least = sys.float_info.min if above_zero else 0
    if isinstance(value, int | float) and not isinstance(value, bool) and least <= value < 1e300:
        return float(value)
    raise _wrong(value, where, "a number above 0" if above_zero else "a number of at least 0")


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise _wrong(value, where, "text")
    return value


def _texts(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _wrong(value, where, "a list")
    return tuple(_text(item, f"{where}[{index}]") for index, item in enumerate(value))


def _wrong(value: object, where: str, expected: str) -> _Unusable:
    import json

    return _Unusable(f"has {json.dumps(value)[:40]} at {where}, where {expected} belongs. {_RESTORE}")


# Saving -----------------------------------------------------------------------------------------------------


def save(place: Place, models: Mapping[str, Baseline]) -> None:
    """Write the baselines of a test's models, all or nothing; with no models, remove the file."""
    try:
        if models:
            _write(place.path, _dump(models, place.test).encode("utf-8", "backslashreplace"))
        else:
            remove(place.path)
    except OSError as err:
        raise BaselineError(f"{place.shown} cannot be written: {err.strerror or err}.") from err


def remove(path: Path) -> None:
    """Delete one baseline file, and its folders when nothing else is in them."""
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()
        path.parent.parent.rmdir()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(draft, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def _dump(models: Mapping[str, Baseline], test: str) -> str:
    data = {
        "format": FORMAT,
        "models": {name: _as_json(models[name]) for name in sorted(models)},
        "test": test,
    }
    return "\n".join(_lines(data, "")) + "\n"


class _Row(dict[str, object]):
    """An object that stands on one line, so that a diff shows it whole."""


def _lines(value: object, indent: str) -> Iterator[str]:
    """Yield the lines of a JSON value: objects and lists a line an entry, rows whole."""
    import json

    if not isinstance(value, (dict, list)) or isinstance(value, _Row) or not value:
        yield json.dumps(value, ensure_ascii=False)
        return
    opening, closing = ("{", "}") if isinstance(value, dict) else ("[", "]")
    yield opening
    entries = list(value.items()) if isinstance(value, dict) else [("", each) for each in value]
    for position, (key, entry) in enumerate(entries):
        first, *rest = _lines(entry, indent + "  ")
        name = f"{json.dumps(key, ensure_ascii=False)}: " if isinstance(value, dict) else ""
        lines = [f"{indent}  {name}{first}", *rest]
        lines[-1] += "," if position < len(entries) - 1 else ""
        yield from lines
    yield f"{indent}{closing}"


def _as_json(baseline: Baseline) -> dict[str, object]:
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
    return {"digest": _digest(content)} | content | ({"measured": machines} if machines else {})


def _functions_as_json(functions: Mapping[Function, Costs]) -> dict[str, object]:
    by_module: dict[str, dict[str, object]] = {}
    for function, costs in functions.items():
        by_module.setdefault(function.module, {})[function.name] = dict(costs)
    return {path: _Row(names) for path, names in fold(by_module).items()}


_UNSIGNED = ("digest", "torch", "measured")
"""What an entry's digest is not of: itself, and what differs between machines."""


def _digest(content: Mapping[str, object]) -> str:
    """Return what a model's entry comes to: any change of it that no run made shows."""
    import hashlib
    import json

    counted = {key: value for key, value in content.items() if key not in _UNSIGNED}
    text = json.dumps(counted, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
