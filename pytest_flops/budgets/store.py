"""The baseline files: one JSON file per test, readable in a diff, and refused unless every number adds up.

A file lies at `flops_baselines/<test module>/<test>.json` beside the test file and holds one `Baseline`
for each model of the test.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_flops.budgets.baseline import Baseline
from pytest_flops.budgets.entries import entry_of, lines_of, read_entry
from pytest_flops.budgets.json_values import RESTORE, UnusableError, read_fields, read_json, read_mapping
from pytest_flops.budgets.older_formats import read_older_entry
from pytest_flops.errors import BaselineError

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
        return _models(read_json(text), test)
    except UnusableError as err:
        raise BaselineError(f"{name} {err}") from None


def owner(path: Path) -> str | None:
    """Return the id of the test that a baseline file belongs to; None for what is no readable baseline."""
    try:
        data = read_json(path.read_text("utf-8"))
    except (UnusableError, OSError, UnicodeDecodeError):
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
        message = f"is not UTF-8 text (byte {err.start}). {RESTORE}"
    except OSError as err:
        if place.path.is_dir():  # Windows calls it a denied permission
            message = "is a folder where the baseline file should be. Move it away."
        else:
            message = f"cannot be read: {err.strerror or err}."
    raise BaselineError(f"{place.shown} {message}")


def _models(data: object, test: str) -> dict[str, Baseline]:
    if not isinstance(data, dict):
        raise UnusableError(f"is not a baseline: a JSON object belongs there. {RESTORE}")
    version = data.get("format")
    if type(version) is int and version > FORMAT:
        raise UnusableError(
            f"has format {version}; this version of pytest-flops reads {FORMAT}. Upgrade pytest-flops."
        )
    if type(version) is not int or version < 1:
        raise UnusableError(f"does not say that it has format {FORMAT}. {RESTORE}")
    content = read_fields(data, ("format", "test", "models"), "")
    if content["test"] != test:
        raise UnusableError(
            f'is the baseline of "{content["test"]}", not of "{test}". If the test was renamed, '
            "delete the file and run the test with --flops-update."
        )
    models = read_mapping(content["models"], "models")
    read = read_older_entry if version < FORMAT else read_entry
    return {name: read(value, f"models.{name}") for name, value in models.items()}


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
        "models": {name: entry_of(models[name]) for name in sorted(models)},
        "test": test,
    }
    return "\n".join(lines_of(data, "")) + "\n"
