"""The lines that end a run: one when all is well."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_flops.plugin.attempt import command_accepting
from pytest_flops.plugin.ledger import Ledger, Options
from pytest_flops.units import plural

_ROWS = 20
_MOST_ARGUMENTS = 20


def summary_lines(ledger: Ledger, options: Options, verbosity: int) -> Iterator[str]:
    """Yield the summary of a run; nothing for one that used no budget, or that is quiet and all well."""
    if ledger.entries and (verbosity >= 0 or ledger.failed):
        yield _verdict(ledger)
    sections = [
        ("updated baselines", ledger.notes("updated")),
        ("improved: lock it in with --flops-update", ledger.notes("improved")),
        ("not compared: write a baseline with --flops-update", ledger.notes("uncompared")),
        ("moved without growth: accept it with --flops-update", ledger.notes("moved")),
        ("operators without a formula", ledger.notes("unsupported")),
        (_obsolete_title(options), ledger.obsolete),
        ("problems", ledger.problems),
    ]
    if verbosity > 0:
        sections.append(("changed within the tolerance", ledger.notes("tolerated")))
        sections.append(("ran on real tensors, which takes longer", ledger.notes("real")))
        sections.append(("counted", ledger.notes("counted")))
    for title, rows in sections:
        if rows:
            yield from _section(title, rows, verbosity)
    yield from ledger.notes("nodes")
    if verbosity >= 0 and ledger.failed > 1:
        yield from _culprits(ledger.culprits())


def _culprits(culprits: dict[str, list[str]]) -> Iterator[str]:
    """Yield what grew in how many tests, and one command that accepts it all."""
    if not culprits:
        return
    yield "flops: what grew"
    yield from (f"  {culprit}: {plural(len(tests), 'test')}" for culprit, tests in culprits.items())
    arguments = [argument for tests in culprits.values() for argument in tests if argument]
    if not arguments:
        return
    if len(arguments) <= _MOST_ARGUMENTS:
        yield f"  Accept it all: {command_accepting(arguments)}"
    else:
        yield "  Accept it all: pytest --last-failed --flops-update"


def _verdict(ledger: Ledger) -> str:
    tests = len(ledger.entries)
    counted = f"flops: {plural(ledger.models, 'model')} in {plural(tests, 'test')}"
    return f"{counted}, {ledger.failed} failed" if ledger.failed else f"{counted} within budget"


def _section(title: str, rows: list[str], verbosity: int) -> Iterator[str]:
    if verbosity < 0:
        yield f"flops: {title} ({len(rows)})"
        return
    yield f"flops: {title}"
    shown = rows if verbosity > 0 else rows[:_ROWS]
    yield from (f"  {row}" for row in shown)
    if len(shown) < len(rows):
        yield f"  ... and {len(rows) - len(shown)} more; -v shows all."


def _obsolete_title(options: Options) -> str:
    return (
        "obsolete baselines, deleted"
        if options.prune
        else "obsolete baselines: delete them with --flops-prune"
    )
