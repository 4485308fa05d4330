"""The baseline files: one JSON file per test, readable in a diff, and refused unless every number adds up.

A file lies at `flops_baselines/<test module>/<test>.json` beside the test file and holds one `Baseline`
for each model of the test.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from pytest_flops.budgets.baseline import Baseline, Function, parts_of
from pytest_flops.errors import BaselineError
from pytest_flops.metrics import COUNTED, METRICS, Metric
from pytest_flops.results.measured import Latency, Measured, Quantity

FORMAT = 2
"""Format of the files.

2026-11: 1, the first.
2026-11: 2, has the predicted peak memory among the totals, and what was measured, by machine.

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
    return {name: _baseline(value, f"models.{name}") for name, value in models.items()}


def _baseline(value: object, where: str) -> Baseline:
    keys = ("formulas", "torch", "mode", "inputs", "totals", "modules", "functions")
    content = _fields(value, keys, where, optional=("measured",))
    functions = _counts(content["functions"], f"{where}.functions")
    found = Baseline(
        formulas=_count(content["formulas"], f"{where}.formulas"),
        torch=_text(content["torch"], f"{where}.torch"),
        mode=_text(content["mode"], f"{where}.mode"),
        inputs=_texts(content["inputs"], f"{where}.inputs"),
        totals=_totals(content["totals"], f"{where}.totals"),
        modules=_counts(content["modules"], f"{where}.modules"),
        functions={_function(key): flops for key, flops in functions.items()},
        measured=_machines(content.get("measured", {}), f"{where}.measured"),
    )
    _cross_check(found, where)
    return found


def _totals(value: object, where: str) -> dict[str, int]:
    """Return totals by metric: those that every file has, and those younger ones that this file has."""
    known = {metric.name for metric in COUNTED}
    for name in _mapping(value, where):
        if name not in known:
            raise _Unusable(
                f'has the unknown total "{where}.{name}": it was written by a newer pytest-flops. '
                "Upgrade pytest-flops."
            )
    originals = tuple(metric.name for metric in COUNTED if metric.is_original)
    return _counts(_fields(value, originals, where, optional=tuple(known)), where)


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


def _cross_check(found: Baseline, where: str) -> None:
    """Refuse numbers that do not add up, as a hand edit or a bad merge leaves them."""
    total, root = found.totals["flops"], found.modules.get("", 0)
    if total != root:
        raise _Unusable(
            f"does not add up: {where}.totals.flops is {total}, the model's entry in modules is {root}. "
            f"{_RESTORE}"
        )
    for path, parts in sorted(parts_of(found.modules, found.functions).items()):
        if parts != found.modules.get(path, 0):
            raise _Unusable(
                f'does not add up: {where}.modules["{path}"] is {found.modules.get(path, 0)}, '
                f"its parts sum to {parts}. {_RESTORE}"
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
    import json

    data = {
        "format": FORMAT,
        "test": test,
        "models": {name: _as_json(baseline) for name, baseline in models.items()},
    }
    return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _as_json(baseline: Baseline) -> dict[str, object]:
    machines = {
        machine: {
            name: asdict(value) if isinstance(value, Latency) else value for name, value in found.items()
        }
        for machine, found in baseline.measured.items()
    }
    return ({"measured": machines} if machines else {}) | {
        "formulas": baseline.formulas,
        "torch": baseline.torch,
        "mode": baseline.mode,
        "inputs": list(baseline.inputs),
        "totals": dict(baseline.totals),
        "modules": dict(baseline.modules),
        "functions": {_key(function): flops for function, flops in baseline.functions.items()},
    }


def _key(function: Function) -> str:
    return f"{function.module} {function.name}" if function.module else function.name


def _function(key: str) -> Function:
    module, _, name = key.rpartition(" ")
    return Function(module, name)
