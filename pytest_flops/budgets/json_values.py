"""Values in a baseline file, refused unless they are what belongs there: `where` is what errors call them."""

from __future__ import annotations

import json
import sys
from typing import Any, NoReturn

RESTORE = "Restore it from version control, or delete it and run the test with --flops-update."


class UnusableError(Exception):
    """What is wrong with the contents of a file, before the file is named."""


def read_json(text: str) -> object:
    """Return the JSON value in a text; raise UnusableError for what is none, with a way out."""
    if not text.strip():
        raise UnusableError(f"is empty. {RESTORE}")
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith(("<<<<<<< ", ">>>>>>> ", "||||||| ")) or line == "=======":
            raise UnusableError(
                f"has a merge conflict in line {number}. Keep either side of the whole file "
                "(git checkout --ours or --theirs), then run the test with --flops-update."
            )
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as err:
        if err.pos >= len(text.rstrip()) or err.msg.startswith("Unterminated string"):
            raise UnusableError(f"ends too early, in line {err.lineno}. {RESTORE}") from None
        detail = f"line {err.lineno}, column {err.colno}: {err.msg}"
        raise UnusableError(f"is not valid JSON ({detail}). {RESTORE}") from None
    except (RecursionError, ValueError):  # thousands of brackets or of digits
        raise UnusableError(f"is not valid JSON. {RESTORE}") from None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UnusableError(f'has the key "{twice}" twice. {RESTORE}')
    return found


def _no_constant(name: str) -> NoReturn:
    raise UnusableError(f"holds {name} where a number belongs. {RESTORE}")


# One value --------------------------------------------------------------------------------------------------


def read_fields(
    value: object, expected: tuple[str, ...], where: str, optional: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return an object that has these keys, and no others but the optional ones."""
    content = read_mapping(value, where)
    for kind, keys in (
        ("lacks", [key for key in expected if key not in content]),
        ("has the unknown key", [key for key in content if key not in expected + optional]),
    ):
        if keys:
            key = f"{where}.{keys[0]}".removeprefix(".")
            raise UnusableError(f'{kind} "{key}". {RESTORE}')
    return content


def read_mapping(value: object, where: str) -> dict[str, Any]:
    """Return an object."""
    if not isinstance(value, dict):
        raise wrong_value(value, where, "an object")
    return value


def read_counts(value: object, where: str) -> dict[str, int]:
    """Return an object of counts."""
    return {key: read_count(count, f'{where}["{key}"]') for key, count in read_mapping(value, where).items()}


def read_count(value: object, where: str) -> int:
    """Return a whole number of at least 0."""
    if type(value) is not int or value < 0:
        raise wrong_value(value, where, "an integer of at least 0")
    return value


def read_number(value: object, where: str, *, above_zero: bool = False) -> float:
    """Return a number of at least 0, or above it."""
    least = sys.float_info.min if above_zero else 0
    if isinstance(value, int | float) and not isinstance(value, bool) and least <= value < 1e300:
        return float(value)
    raise wrong_value(value, where, "a number above 0" if above_zero else "a number of at least 0")


def read_text(value: object, where: str) -> str:
    """Return a text."""
    if not isinstance(value, str):
        raise wrong_value(value, where, "text")
    return value


def read_texts(value: object, where: str) -> tuple[str, ...]:
    """Return a list of texts."""
    if not isinstance(value, list):
        raise wrong_value(value, where, "a list")
    return tuple(read_text(item, f"{where}[{index}]") for index, item in enumerate(value))


def wrong_value(value: object, where: str, expected: str) -> UnusableError:
    """Return what to raise for a value that does not belong where it is."""
    return UnusableError(f"has {json.dumps(value)[:40]} at {where}, where {expected} belongs. {RESTORE}")


def too_new(what: str, name: str) -> UnusableError:
    """Return what to raise for something that this release does not know."""
    return UnusableError(
        f'has the unknown {what} "{name}": it was written by a newer pytest-flops. Upgrade pytest-flops.'
    )
