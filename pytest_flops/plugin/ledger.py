"""The bookkeeping of one pytest run: what was asked for, collected and measured."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from pytest_flops.budgets.paths import FOLDER

Note = tuple[str, str]
"""A line for the summary, after its kind, such as "updated" or "improved"."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line and the ini file ask for."""

    update: str | None = None
    strict: bool = False
    prune: bool = False
    rtol: str = "0"
    time_limit: float = 60.0
    no_cuda: str = "error"


class Entry(TypedDict):
    """What one run of a test found; it travels from xdist workers with the test's report.

    `gated` names the models that were held against the `file`, `unused` the others that it has. `culprit`
    says what grew where the test failed by its baseline; `argument` names the test on a command line, and
    is "" where no update can accept what it found.
    """

    models: int
    file: str
    test: str
    gated: list[str]
    unused: list[str]
    notes: list[Note]
    culprit: str
    argument: str


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
    """What a run adds up to, on the process that prints the summary; `obsolete` names unused baselines."""

    collection: Collection = field(default_factory=Collection)
    entries: dict[str, Entry] = field(default_factory=dict)
    passed: set[str] = field(default_factory=set)
    obsolete: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def note_report(self, report: Any) -> None:
        """Take in the report of one phase of a test; of a test that is run again, the last attempt counts."""
        if report.when == "call" and report.outcome in ("passed", "failed"):
            if report.passed and not hasattr(report, "wasxfail"):
                self.passed.add(report.nodeid)
            if hasattr(report, "flops"):
                self.entries[report.nodeid] = report.flops
        elif report.failed:
            self.passed.discard(report.nodeid)

    @property
    def models(self) -> int:
        """Number of models counted."""
        return sum(entry["models"] for entry in self.entries.values())

    @property
    def failed(self) -> int:
        """Number of tests that counted models and failed."""
        return len(self.entries.keys() - self.passed)

    def culprits(self) -> dict[str, list[str]]:
        """Return what grew, and the arguments that name the tests that failed by it, the most first."""
        found: dict[str, list[str]] = {}
        for nodeid, entry in sorted(self.entries.items()):
            if entry["culprit"] and nodeid not in self.passed:
                found.setdefault(entry["culprit"], []).append(entry["argument"])
        return dict(sorted(found.items(), key=lambda item: -len(item[1])))

    def notes(self, kind: str) -> list[str]:
        """Return the lines of one kind, in the order of the tests' ids."""
        found = sorted(self.entries.items())
        return [text for _, entry in found for kind_, text in entry["notes"] if kind_ == kind]


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
