"""One run of one test: what it may cost, what it has cost so far, and where its baselines lie."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from pytest_flops.budgets.baseline import Baseline
from pytest_flops.budgets.budget import Budget
from pytest_flops.budgets.paths import baseline_path, shown_path
from pytest_flops.budgets.store import Place, load, save
from pytest_flops.plugin.ledger import Entry, Note, Options

PROPERTY = "flops:"
"""What the names of our properties of a test begin with."""


@dataclass
class Attempt:
    """One run of one test: a test that is run again starts from a new one."""

    item: pytest.Item
    budget: Budget
    options: Options
    place: Place
    counted: dict[str, Baseline] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    accepted: dict[str, Baseline] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    sections: list[tuple[str, str]] = field(default_factory=list)
    failure: str = ""
    culprit: str = ""
    is_acceptable: bool = True
    _stored: dict[str, Baseline] | None = None

    @property
    def stored(self) -> dict[str, Baseline]:
        """The baselines in the test's file, read once."""
        if self._stored is None:
            self._stored = load(self.place)
        return self._stored

    def store(self, models: dict[str, Baseline]) -> None:
        """Write the baselines of the test's models. Raises `BaselineError` where that is not possible."""
        save(self.place, models)
        self._stored = models

    @property
    def verbosity(self) -> int:
        """How much the run asks for: 1 for `-v`, 2 for `-vv`."""
        return self.item.config.get_verbosity()

    @property
    def verbose(self) -> bool:
        """Whether the run asks for everything (`-vv`)."""
        return self.verbosity > 1

    def note(self, kind: str, text: str) -> None:
        """Keep a line for the summary of the run."""
        self.notes.append((kind, f"{self.item.nodeid} {text}"))

    def entry(self) -> Entry:
        """Return what the summary needs of this test, in builtin types that travel between processes."""
        return {
            "models": len(self.counted),
            "file": str(self.place.path),
            "test": self.place.test,
            "gated": sorted(self.gated),
            "unused": sorted((self._stored or {}).keys() - self.gated),
            "notes": self.notes,
            "culprit": self.culprit,
            "argument": test_argument(self.item) if self.is_acceptable else "",
        }


def start_attempt(item: pytest.Item, budget: Budget, options: Options) -> Attempt:
    """Return a new attempt at a test, and drop the properties that an earlier one recorded."""
    item.user_properties[:] = [pair for pair in item.user_properties if not pair[0].startswith(PROPERTY)]
    return Attempt(item, budget, options, place_of(item))


def place_of(item: pytest.Item) -> Place:
    """Return where a test's baseline lives.

    The id starts at the test file's own name and is made of the names inside it: the same from whatever
    folder pytest runs, with whatever root, and free of what xdist adds to node ids.
    """
    folders = (pytest.Session, pytest.Directory, pytest.File)
    names = [node.name for node in item.listchain() if not isinstance(node, folders)]
    test = "::".join([item.path.name, *names])
    path = baseline_path(item.path, test)
    return Place(path, shown_path(path, item.config.invocation_params.dir), test)


def test_argument(item: pytest.Item) -> str:
    """Return how one test is named on the command line, from where pytest was called."""
    inside = place_of(item).test.partition("::")[2]
    return f"{shown_path(item.path, item.config.invocation_params.dir)}::{inside}"


def accept_command(item: pytest.Item) -> str:
    """Return the command that accepts the present counts of one test."""
    return command_accepting([test_argument(item)])


def command_accepting(arguments: Sequence[str]) -> str:
    """Return the command that accepts the present counts of some tests, quoted for the user's shell."""
    command = ["pytest", *arguments, "--flops-update"]
    return subprocess.list2cmdline(command) if os.name == "nt" else shlex.join(command)
