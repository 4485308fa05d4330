"""The bookkeeping of one pytest run: what was measured, and which baselines nothing uses any more."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from pytest_flops.baseline import FOLDER, Place, baseline_folder, load, owner, save
from pytest_flops.errors import BaselineError

Note = tuple[str, str]
"""A line for the summary, after its kind: updated, improved, moved, tolerated, unsupported or real."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line and the ini file ask for."""

    update: str | None = None
    strict: bool = False
    prune: bool = False
    rtol: str = "0"


class Outcome(TypedDict):
    """What one run of a test found; it travels from xdist workers with the test's report."""

    models: int
    file: str
    test: str
    gated: list[str]
    notes: list[Note]


class Obsolete(NamedTuple):
    """A baseline that nothing uses: a whole file, or one model in it."""

    place: Place
    model: str | None = None


@dataclass
class Collection:
    """Which tests were collected, by test file; only files with baselines beside them matter.

    `complete` says that the run left out no test of any file that it collected.
    """

    complete: bool = True
    tests: dict[str, list[str]] = field(default_factory=dict)

    def merge(self, complete: bool, tests: dict[str, list[str]]) -> None:
        """Take over what an xdist worker collected; all of them collect the same."""
        self.complete = self.complete and complete
        self.tests.update(tests)


@dataclass
class Ledger:
    """What a run adds up to, on the process that prints the summary."""

    collection: Collection = field(default_factory=Collection)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    passed: set[str] = field(default_factory=set)
    obsolete: list[Obsolete] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def note_report(self, report: Any) -> None:
        """Take in the report of one phase of a test; of a test that is run again, the last attempt counts."""
        if report.when == "call" and report.outcome in ("passed", "failed"):
            if report.passed and not hasattr(report, "wasxfail"):
                self.passed.add(report.nodeid)
            if hasattr(report, "flops"):
                self.outcomes[report.nodeid] = report.flops
        elif report.failed:
            self.passed.discard(report.nodeid)

    def settle(self, *, prune: bool, folders: bool, start: Path) -> None:
        """Find the baselines that nothing uses, and delete them if asked to."""
        try:
            self.obsolete = list(find_obsolete(self, folders=folders, start=start))
            if prune:
                delete(self.obsolete)
        except BaselineError as err:
            self.problems.append(str(err))

    @property
    def models(self) -> int:
        """Number of models counted."""
        return sum(outcome["models"] for outcome in self.outcomes.values())

    @property
    def failed(self) -> int:
        """Number of tests that counted models and failed."""
        return len(self.outcomes.keys() - self.passed)

    def notes(self, kind: str) -> list[str]:
        """Return the lines of one kind, in the order of the tests' ids."""
        found = sorted(self.outcomes.items())
        return [text for _, outcome in found for kind_, text in outcome["notes"] if kind_ == kind]


def whole_files(items: Iterable[Any], counted: dict[Path, int]) -> tuple[bool, dict[str, list[str]]]:
    """Return whether no collected item was dropped since, and the node ids by test file.

    `counted` holds the number of items collected in each file.
    """
    found: dict[Path, list[str]] = {}
    for item in items:
        found.setdefault(item.path, []).append(item.nodeid)
    complete = {path: len(nodeids) for path, nodeids in found.items()} == counted
    with_baselines = {path.parent: (path.parent / FOLDER).is_dir() for path in found}
    return complete, {os.fspath(path): ids for path, ids in found.items() if with_baselines[path.parent]}


def find_obsolete(ledger: Ledger, *, folders: bool, start: Path) -> Iterator[Obsolete]:
    """Yield the baselines that nothing uses, on full evidence only.

    A file counts as unused when every test of its test file was collected, ran and passed, and none used it;
    or, when whole `folders` were collected, when its test file is gone. Paths are shown relative to `start`.
    """
    if not ledger.collection.complete:
        return
    live = {outcome["file"]: outcome for outcome in ledger.outcomes.values() if outcome["gated"]}
    known = {baseline_folder(Path(file)): nodeids for file, nodeids in ledger.collection.tests.items()}
    for folder, nodeids in sorted(known.items()):
        if ledger.passed.issuperset(nodeids):
            yield from _unused(folder, live, start)
    if folders:
        for parent in sorted({folder.parent for folder in known}):
            yield from _orphans(parent, known.keys(), start)


def _unused(folder: Path, live: dict[str, Outcome], start: Path) -> Iterator[Obsolete]:
    for path in sorted(folder.glob("*.json")):
        outcome = live.get(os.fspath(path))
        test = owner(path)
        if test is None:
            continue  # not one of ours
        place = Place(path, shown_path(path, start), test)
        if outcome is None:
            yield Obsolete(place)
        else:
            yield from (Obsolete(place, name) for name in sorted(load(place).keys() - set(outcome["gated"])))


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


def shown_path(path: Path, start: Path) -> str:
    """Return a path as the user would type it: relative to where pytest was started, when inside it."""
    return os.fspath(path.relative_to(start) if path.is_relative_to(start) else path)
