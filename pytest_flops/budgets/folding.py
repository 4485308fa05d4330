"""Equal layers on one line: `layers.[0-79].mlp` stands for `layers.0.mlp` to `layers.79.mlp`.

Modules whose names count (of a Sequential or a ModuleList) are folded where all that is in them is equal,
from one to the next.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, TypeVar

Value = TypeVar("Value")

_RANGE = re.compile(r"\[(\d{1,9})-(\d{1,9})\]")
_NUMBER = re.compile(r"0|[1-9]\d{0,8}")
MOST = 1_000_000
"""Modules that a baseline may unfold to: more is no model, but a damaged file."""


class _Branch:
    """The value of a path, if it has one, and the branches below it by name."""

    def __init__(self) -> None:
        self.value: Any = None
        self.below: dict[str, _Branch] = {}
        self.signature = ""


def fold(values: Mapping[str, Value]) -> dict[str, Value]:
    """Return values by path with equal siblings folded; values are what JSON can say, and not None."""
    root = _Branch()
    for path, value in values.items():
        branch = root
        for name in path.split(".") if path else ():
            branch = branch.below.setdefault(name, _Branch())
        branch.value = value
    _sign(root, {})
    return dict(_folded(root, ""))


def _sign(branch: _Branch, known: dict[str, int]) -> None:
    """Give equal branches equal signatures."""
    for below in branch.below.values():
        _sign(below, known)
    text = json.dumps([branch.value, [[name, below.signature] for name, below in branch.below.items()]])
    branch.signature = str(known.setdefault(text, len(known)))


def _folded(branch: _Branch, path: str) -> Iterator[tuple[str, Any]]:
    if branch.value is not None:
        yield path, branch.value
    for name, below in _runs(branch):
        yield from _folded(below, f"{path}.{name}" if path else name)


def _runs(branch: _Branch) -> Iterator[tuple[str, _Branch]]:
    """Yield the branches below, equal ones with consecutive numbers once."""
    runs: list[list[str]] = []
    for name, below in branch.below.items():
        last = runs[-1][-1] if runs else ""
        follows = _NUMBER.fullmatch(name) and _NUMBER.fullmatch(last) and int(name) == int(last) + 1
        if follows and below.signature == branch.below[last].signature:
            runs[-1].append(name)
        else:
            runs.append([name])
    for names in runs:
        first = f"[{names[0]}" if names[0].startswith("[") else names[0]
        yield f"[{names[0]}-{names[-1]}]" if len(names) > 1 else first, branch.below[names[0]]


def unfold(values: Mapping[str, Value]) -> dict[str, Value]:
    """Return values by path as they were before `fold`; raise ValueError for what cannot come of it."""
    found: dict[str, Value] = {}
    for folded, value in values.items():
        for path in _unfolded(folded):
            if path in found or len(found) >= MOST:
                raise ValueError(folded)
            found[path] = value
    return found


def _unfolded(path: str) -> Iterator[str]:
    segments = [_names(segment) for segment in path.split(".")]
    size = 1
    for names in segments:
        size *= len(names)
    if size > MOST or not size:
        raise ValueError(path)
    return map(".".join, product(*segments))


def _names(segment: str) -> list[str] | range | Any:
    if match := _RANGE.fullmatch(segment):
        first, last = int(match[1]), int(match[2])
        if last - first >= MOST:
            raise ValueError(segment)
        return [str(number) for number in range(first, last + 1)]
    return [segment[1:] if segment.startswith("[[") else segment]
