"""Find baselines that no test uses any more, and delete them on demand.

A run that left out or failed a test of a file says nothing about that file, so that deleting loses nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import NamedTuple

from pytest_flops.budgets.paths import baseline_folder, shown_path
from pytest_flops.budgets.store import Place, load, owner, save
from pytest_flops.errors import BaselineError
from pytest_flops.plugin.ledger import Entry, Ledger


class Obsolete(NamedTuple):
    """A baseline that nothing uses: a whole file, or one model in it."""

    place: Place
    model: str | None = None


def settle(ledger: Ledger, *, prune: bool, folders: bool, start: Path) -> None:
    """Note in the ledger which baselines nothing uses, and delete them if asked to."""
    try:
        obsolete = list(find_obsolete(ledger, folders=folders, start=start))
        if prune:
            delete(obsolete)
    except BaselineError as err:
        ledger.problems.append(str(err))
    else:
        ledger.obsolete = [f"{place.shown}{f' ({model})' if model else ''}" for place, model in obsolete]


def find_obsolete(ledger: Ledger, *, folders: bool, start: Path) -> Iterator[Obsolete]:
    """Yield the baselines that no test uses any more.

    A file counts as unused when every test of its test file was collected, ran and passed, and none used it;
    or, when whole `folders` were collected, when its test file is gone. Paths are shown relative to `start`.
    """
    if not ledger.collection.complete:
        return
    live = {entry["file"]: entry for entry in ledger.entries.values() if entry["gated"]}
    known = {Path(file): nodeids for file, nodeids in ledger.collection.tests.items()}
    for file, nodeids in sorted(known.items()):
        if ledger.passed.issuperset(nodeids):
            yield from _unused(file, live, start)
    if folders:
        in_use = {baseline_folder(file) for file in known}
        for parent in sorted({folder.parent for folder in in_use}):
            yield from _orphans(parent, in_use, start)


def _unused(file: Path, live: dict[str, Entry], start: Path) -> Iterator[Obsolete]:
    for path in sorted(baseline_folder(file).glob("*.json")):
        entry = live.get(os.fspath(path))
        if entry is not None:
            place = Place(path, shown_path(path, start), entry["test"])
            yield from (Obsolete(place, name) for name in entry["unused"])
            continue
        test = owner(path)
        if test is None or test.partition("::")[0] != file.name:
            continue  # not one of ours, or of a file of the same stem, such as a doctest beside a module
        yield Obsolete(Place(path, shown_path(path, start), test))


def _orphans(parent: Path, known: AbstractSet[Path], start: Path) -> Iterator[Obsolete]:
    for folder in sorted(set(parent.iterdir()) - known):
        for path in sorted(folder.glob("*.json")):
            test = owner(path)
            if test is not None and not (parent.parent / test.partition("::")[0]).exists():
                yield Obsolete(Place(path, shown_path(path, start), test))


def delete(obsolete: Iterable[Obsolete]) -> None:
    """Delete baselines that nothing uses. Raises `BaselineError` where that is not possible."""
    for place, model in obsolete:
        models = load(place) if model is not None else {}
        save(place, {name: baseline for name, baseline in models.items() if name != model})
