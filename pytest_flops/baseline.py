"""The baselines: one JSON file per test, readable in a diff, and refused unless every number adds up.

A file lies at `flops_baselines/<test module>/<test>.json` beside the test file and holds one `Baseline`
for each model of the test. Nothing here decides whether a count is acceptable: that is `budget`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from pytest_flops.errors import BaselineError
from pytest_flops.report import Report, enclosing

FORMAT = 1
"""Format of the files. 2026-11: 1, the first."""

METRICS = ("flops", "macs", "params")
"""Totals that a baseline holds."""


class Function(NamedTuple):
    """Functional work by place: the path of the module whose code does it, and the function's name."""

    module: str
    name: str


@dataclass(frozen=True, slots=True)
class Baseline:
    """What one model cost when its baseline was accepted.

    `modules` maps module paths ("" is the model) to inclusive FLOPs, `functions` gives the functional share;
    both leave out what costs nothing. A module either has parts (functions of its own, modules inside it)
    that add up to its FLOPs, or it is a leaf with nothing inside. `formulas` and `torch` are the versions
    that counted: where they differ, a count may change without any change of the model.
    """

    formulas: int
    torch: str
    mode: str
    inputs: tuple[str, ...]
    totals: Mapping[str, int]
    modules: Mapping[str, int]
    functions: Mapping[Function, int]

    def same_cost(self, other: Baseline) -> bool:
        """Tell whether nothing differs but the version of torch, which is no reason to rewrite a file."""
        return _comparable(self) == _comparable(other)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the baseline of one test lives: the file, the name to show for it, and the test's id."""

    path: Path
    shown: str
    test: str


def _comparable(baseline: Baseline) -> tuple[object, ...]:
    return (
        baseline.formulas,
        baseline.mode,
        baseline.inputs,
        dict(baseline.totals),
        dict(baseline.modules),
        dict(baseline.functions),
    )


def snapshot(report: Report) -> Baseline:
    """Return what a report says in the terms of a baseline."""
    modules = {path: total.flops for path, total in report.modules.items() if total.flops}
    functions = {Function(*place): flops for place, flops in report.functions.items()}
    totals = {"flops": report.flops, "macs": report.macs, "params": report.params}
    return Baseline(
        formulas=report.formulas,
        torch=report.torch.partition("+")[0],
        mode=report.mode,
        inputs=report.inputs,
        totals=totals,
        modules=modules,
        functions=functions | dict(_leaves_with_parts(report, modules, functions)),
    )


def _leaves_with_parts(
    report: Report, modules: Mapping[str, int], functions: Mapping[Function, int]
) -> Iterator[tuple[Function, int]]:
    """Yield the own cost of leaf modules that are no leaves in the file.

    `self.attention(x)` costs as a leaf, yet the model may also call `self.attention.out_proj(x)` by itself:
    the leaf's own share then stands as its function "forward", so that its parts add up.
    """
    parts = parts_of(modules, functions)
    own: dict[str, int] = {}
    for node in report.nodes:
        if node.op == "call_module" and parts.get(node.module):
            own[node.module] = own.get(node.module, 0) + node.flops
    for path, flops in own.items():
        if flops:
            yield Function(path, "forward"), flops


def parts_of(modules: Mapping[str, int], functions: Mapping[Function, int]) -> dict[str, int]:
    """Return for each module the sum of its functions and its direct children; leaves are left out."""
    parts: dict[str, int] = {}
    for function, flops in functions.items():
        parts[function.module] = parts.get(function.module, 0) + flops
    for path, flops in modules.items():
        if path:
            parent = next(around for around in list(enclosing(path))[1:] if not around or around in modules)
            parts[parent] = parts.get(parent, 0) + flops
    return parts


# Loading ----------------------------------------------------------------------------------------------------

_RESTORE = "Restore it from version control, or delete it and run the test with --flops-update."


class _Unusable(Exception):
    """What is wrong with the contents of a file, before the file is named."""


def load(place: Place) -> dict[str, Baseline]:
    """Return the baselines of a test's models by name; an absent file holds none.

    Raises `BaselineError` for any file that cannot be trusted: it is never treated as empty.
    """
    text = _read(place)
    if text is None:
        return {}
    try:
        return _models(_parse(text), place.test)
    except _Unusable as err:
        raise BaselineError(f"{place.shown} {err}") from None


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
    raise _Unusable(f"holds {name} where an integer belongs. {_RESTORE}")


def _models(data: object, test: str) -> dict[str, Baseline]:
    if not isinstance(data, dict):
        raise _Unusable(f"is not a baseline: a JSON object belongs there. {_RESTORE}")
    version = data.get("format")
    if type(version) is int and version > FORMAT:
        raise _Unusable(
            f"has format {version}; this version of pytest-flops reads {FORMAT}. Upgrade pytest-flops."
        )
    if type(version) is not int or version != FORMAT:
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
    content = _fields(value, keys, where)
    totals = _fields(content["totals"], METRICS, f"{where}.totals")
    functions = _counts(content["functions"], f"{where}.functions")
    found = Baseline(
        formulas=_count(content["formulas"], f"{where}.formulas"),
        torch=_text(content["torch"], f"{where}.torch"),
        mode=_text(content["mode"], f"{where}.mode"),
        inputs=_texts(content["inputs"], f"{where}.inputs"),
        totals=_counts(totals, f"{where}.totals"),
        modules=_counts(content["modules"], f"{where}.modules"),
        functions={_function(key): flops for key, flops in functions.items()},
    )
    _cross_check(found, where)
    return found


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


def _fields(value: object, expected: tuple[str, ...], where: str) -> dict[str, Any]:
    content = _mapping(value, where)
    for kind, keys in (
        ("lacks", [key for key in expected if key not in content]),
        ("has the unknown key", [key for key in content if key not in expected]),
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
    return {
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
