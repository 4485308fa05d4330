"""Why a count fails its test: the limit, the fact, the place, and then the command that accepts it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from typing import NamedTuple

from pytest_flops.budgets.budget import Budget
from pytest_flops.budgets.changes import Mismatch, ModuleChange
from pytest_flops.budgets.finding import Finding, tolerated
from pytest_flops.budgets.verdict import Excess, Unmatched, Verdict
from pytest_flops.metrics import COUNTED, Metric
from pytest_flops.reporting.limits import NOT_WRITTEN, RAISE_IT, bounded
from pytest_flops.reporting.places import alike, in_order, label, renames, times, where
from pytest_flops.reporting.tables import change_tables
from pytest_flops.results.report import (
    Node,
    Report,
    around,
    calls,
    costs,
    headline,
    operators_and_unseen,
    place_name,
)

_MODULE_LINES = 3


def failure_text(
    name: str,
    report: Report,
    verdict: Verdict,
    budget: Budget,
    *,
    accept: str,
    file: str,
    strict: bool = False,
    updating: bool = False,
    full: bool = False,
    unreached: Iterable[str] = (),
) -> str:
    """Return why a model fails its budget: limit, fact, place; what changed; the command that accepts it.

    `accept` is that command, `file` the baseline; `updating` says that the run would have written it.
    `unreached` are models of the same file that the run did not come to.
    """
    problems = [
        *_limit_problems(name, report, verdict),
        *_baseline_problems(name, report, verdict, budget, file, strict),
    ]
    blocks = ["\n".join(problems), *change_tables(report, verdict, full=full)]
    blocks += ["\n".join([*_renamed(verdict, full), *([headline(report)] if verdict.changes.places else [])])]
    blocks += [_versions(verdict.changes.versions)] if verdict.changes.versions else []
    blocks += ["\n".join(_ways_out(verdict, budget, accept, updating, strict, tuple(unreached)))]
    return "\n\n".join(block for block in blocks if block)


# Ceilings ---------------------------------------------------------------------------------------------------


def _limit_problems(name: str, report: Report, verdict: Verdict) -> Iterator[str]:
    operators, unseen = operators_and_unseen(verdict.unsupported)
    if operators:
        yield f"{name}: every operator needs a FLOP formula, but there is none for {calls(operators)}"
    if unseen:
        yield f"{name}: every work needs a count, but PyTorch does not see that of {calls(unseen)}"
    for unmatched in verdict.unmatched:
        yield _unmatched(name, report, unmatched)
    for finding in verdict.over_limit:
        yield f"{name}: {_over_limit(finding)}{_peak_place(finding.metric, report, verdict)}"
    for excess in verdict.excesses:
        yield f"{f'{name} {excess.module}'.rstrip()}: {_excess(excess)}"


def _unmatched(name: str, report: Report, unmatched: Unmatched) -> str:
    paths = [path for path in report.module_types if path]
    if unmatched.near:
        hint = f"near it: {', '.join(unmatched.near)}"
    else:
        hint = (
            f"it has: {', '.join(paths[:6])}{', ...' if len(paths) > 6 else ''}" if paths else "it has none"
        )
    return f'{name}: "{unmatched.glob}" in flops_budget(modules=...) matches no module; {hint}'


def _over_limit(finding: Finding) -> str:
    assert finding.limit is not None
    assert isinstance(finding.now, int)
    source = f"flops_budget {finding.metric.name}"
    return bounded("at most", finding.limit, finding.metric, source, finding.now, finding.limit)


def _excess(excess: Excess) -> str:
    source = f'flops_budget modules "{excess.glob}"'
    return bounded("at most", excess.limit, excess.metric, source, excess.now, excess.limit)


# The baseline -----------------------------------------------------------------------------------------------


def _baseline_problems(
    name: str, report: Report, verdict: Verdict, budget: Budget, file: str, strict: bool
) -> Iterator[str]:
    if verdict.missing:
        yield f"{name}: no baseline in {file}; now {costs(report)}"
    for mismatch in verdict.changes.mismatches:
        yield (
            f"{name}: not comparable with its baseline, which has other {mismatch.what}\n"
            f"  baseline: {mismatch.was}\n  now:      {mismatch.now}"
        )
    for leading in _leading(verdict, attrgetter("grew")):
        limit = tolerated(leading.was, _rtol(leading, budget))
        yield _bound(name, leading, budget, "at most", limit) + _where(leading, report, verdict)
    if strict:
        for leading in _leading(verdict, attrgetter("shrank")):
            limit = 2 * leading.was - tolerated(leading.was, _rtol(leading, budget))
            yield _bound(name, leading, budget, "at least", limit) + _where(leading, report, verdict)
        for finding in verdict.changes.uncompared:
            yield f"{name}: {not_accepted_yet(finding)} (strict)"


def not_accepted_yet(finding: Finding) -> str:
    """Return what a total is that its baseline lacks, because its metric is younger."""
    assert isinstance(finding.now, int)
    return f"{finding.metric.amount(finding.now)} not accepted yet: the baseline is older than this metric"


class _Leading(NamedTuple):
    """A change that says why a test failed: of a total, or of the modules at `path`, which are alike."""

    metric: Metric
    was: int
    now: int
    path: str
    times: int = 1


def _leading(verdict: Verdict, decisive: Callable[[Finding | ModuleChange], bool]) -> Iterator[_Leading]:
    """Yield the decisive totals, and of metrics whose total is not among them the innermost modules."""
    totals = {
        finding.metric: _Leading(finding.metric, finding.was, finding.now, "")
        for finding in verdict.totals
        if decisive(finding) and isinstance(finding.was, int) and isinstance(finding.now, int)
    }
    for metric in COUNTED:
        if metric in totals:
            yield totals[metric]
            continue
        modules = {
            change.path: change
            for change in verdict.changes.modules
            if change.metric is metric and decisive(change)
        }
        outer = {each for path in modules for each in around(path)}
        yield from _alike([modules[path] for path in modules if path not in outer])[:_MODULE_LINES]


def _alike(changes: list[ModuleChange]) -> list[_Leading]:
    """Return changes of modules, those together that differ by numbers in their paths only."""
    return [
        _Leading(its[0].metric, its[0].was, its[0].now, label([each.path for each in its]), len(its))
        for its in alike(changes, lambda change: change.path, lambda change: (change.was, change.now))
    ]


def _rtol(leading: _Leading, budget: Budget) -> str:
    return budget.rtol.get(leading.metric.name, "0")


def _bound(name: str, leading: _Leading, budget: Budget, bound: str, limit: int) -> str:
    rtol = _rtol(leading, budget)
    source = "baseline" if limit == leading.was else f"baseline {leading.was:,}, rtol {rtol}"
    source += ", strict" if bound == "at least" else ""
    subject = times(f"{name} {leading.path}".rstrip(), leading.times)
    each = ", each" if leading.times > 1 else ""
    return f"{subject}{each}: {bounded(bound, limit, leading.metric, source, leading.now, leading.was)}"


# Places -----------------------------------------------------------------------------------------------------


def _where(leading: _Leading, report: Report, verdict: Verdict) -> str:
    """Return the place of a change: of a sum where most of it is, of a peak the step and whose bytes grew."""
    if leading.metric.place == "node":
        return _peak_place(leading.metric, report, verdict)
    if leading.path:
        return ""
    rising = leading.now > leading.was
    return where(verdict.changes, leading.metric, in_order(report), rising=rising)


def _peak_place(metric: Metric, report: Report, verdict: Verdict) -> str:
    """Return the node at the peak, and the module that has more alive there than it had."""
    if metric.place != "node" or not report.peak_memory:
        return ""
    where = f", at {_step(report.peak_node)}"
    if verdict.changes.peaks is None:
        return where
    was, now = (peak.owners for peak in verdict.changes.peaks)
    most = max(now, key=lambda path: now[path] - was.get(path, 0), default="")
    if now.get(most, 0) <= was.get(most, 0):
        return where
    return f"{where}, for {place_name(most)}: {was.get(most, 0):,} -> {now[most]:,} bytes alive then"


def _step(node: Node) -> str:
    module = place_name(node.module)
    return module if node.op == "call_module" else f"{node.name} in {module}"


# Ways out ---------------------------------------------------------------------------------------------------


def _renamed(verdict: Verdict, full: bool) -> list[str]:
    """Return the modules that go by another name, a few of them unless it is to be `full`."""
    lines = list(renames(verdict.changes.renamed))
    return lines if full or len(lines) <= _MODULE_LINES else [*lines[:_MODULE_LINES], "..."]


def _versions(versions: Iterable[Mismatch]) -> str:
    changed = ", ".join(f"{version.what} {version.was} -> {version.now}" for version in versions)
    return f"The counter changed since the baseline ({changed}): the model may be the same."


def _ways_out(
    verdict: Verdict, budget: Budget, accept: str, updating: bool, strict: bool, unreached: tuple[str, ...]
) -> Iterator[str]:
    operators, unseen = operators_and_unseen(verdict.unsupported)
    if operators:
        yield (
            "Give the operator a formula with pytest_flops.register_flop_formula, or count it as 0 with "
            'flops_budget(unsupported="warn").'
        )
    if unseen:
        yield (
            "State what it costs where it is called, `with pytest_flops.declared_cost(flops=...):`, or count "
            'it as 0 with flops_budget(unsupported="warn").'
        )
    if verdict.over_limit or verdict.excesses:
        yield RAISE_IT
    if budget.measured:
        titles = " and ".join(metric.title for metric in budget.measured)
        yield f"Not measured, since the counts already fail: {titles}."
    if updating and not verdict.within_limits:
        yield NOT_WRITTEN
    elif verdict.within_limits and budget.baseline and _is_to_accept(verdict, strict):
        more = f" (and what this run did not reach: {', '.join(unreached)})" if unreached else ""
        yield f"Accept it: {accept}{more}"


def _is_to_accept(verdict: Verdict, strict: bool) -> bool:
    return not verdict.within_baseline or (
        strict and bool(verdict.changes.uncompared or verdict.changes.shrunk)
    )
