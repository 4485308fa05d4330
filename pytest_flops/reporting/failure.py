"""Why a count fails its test: the limit, the fact, the place, and then the command that accepts it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from typing import NamedTuple

from pytest_flops.budgets.budget import Budget
from pytest_flops.budgets.verdict import Change, Excess, Finding, Mismatch, Unmatched, Verdict, tolerated
from pytest_flops.metrics import METRICS, Metric
from pytest_flops.reporting.limits import NOT_WRITTEN, RAISE_IT, bounded
from pytest_flops.reporting.tables import change_tables
from pytest_flops.results.report import Node, Report, calls, costs, operators_and_unseen, place_name
from pytest_flops.units import plural

_FLOPS = METRICS["flops"]


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
) -> str:
    """Return why a model fails its budget: limit, fact, place; what changed; the command that accepts it.

    `accept` is that command, `file` the baseline; `updating` says that the run would have written it.
    """
    problems = [
        *_limit_problems(name, report, verdict),
        *_baseline_problems(name, report, verdict, budget, file, strict),
    ]
    blocks = ["\n".join(problems), *change_tables(report, verdict, full=full)]
    blocks += [_versions(verdict.changes.versions)] if verdict.changes.versions else []
    blocks += ["\n".join(_ways_out(verdict, budget, accept, updating, strict))]
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
        yield f"{name}: {_over_limit(finding)}{_place(finding.metric, report)}"
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
    return bounded("at most", excess.limit, _FLOPS, source, excess.now, excess.limit)


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
        limit = tolerated(leading.was, budget.rtol)
        yield _bound(name, leading, budget, "at most", limit) + _where(leading, report, verdict)
    if strict:
        for leading in _leading(verdict, attrgetter("shrank")):
            limit = 2 * leading.was - tolerated(leading.was, budget.rtol)
            yield _bound(name, leading, budget, "at least", limit) + _where(leading, report, verdict)
        for finding in verdict.changes.uncompared:
            yield f"{name}: {not_accepted_yet(finding)} (strict)"


def not_accepted_yet(finding: Finding) -> str:
    """Return what a total is that its baseline lacks, because its metric is younger."""
    assert isinstance(finding.now, int)
    return f"{finding.metric.amount(finding.now)} not accepted yet: the baseline is older than this metric"


class _Leading(NamedTuple):
    """A change that says why a test failed: of a total, or of the FLOPs of the module at `path`."""

    metric: Metric
    was: int
    now: int
    path: str


def _leading(verdict: Verdict, decisive: Callable[[Finding | Change], bool]) -> list[_Leading]:
    """Return the decisive totals, and where the total FLOPs are not among them, the innermost modules."""
    totals = [
        _Leading(finding.metric, finding.was, finding.now, "")
        for finding in verdict.totals
        if decisive(finding) and isinstance(finding.was, int) and isinstance(finding.now, int)
    ]
    if any(leading.metric is _FLOPS for leading in totals):
        return totals
    modules = {str(change.what): change for change in verdict.changes.modules if decisive(change)}
    inner = [path for path in modules if not any(is_inside(other, path) for other in modules.keys() - {path})]
    return totals + [_Leading(_FLOPS, modules[path].was, modules[path].now, path) for path in inner]


def is_inside(path: str, module: str) -> bool:
    """Tell whether a path is that of the module or of one inside it."""
    return not module or path == module or path.startswith(f"{module}.")


def _bound(name: str, leading: _Leading, budget: Budget, bound: str, limit: int) -> str:
    source = "baseline" if limit == leading.was else f"baseline {leading.was:,}, rtol {budget.rtol}"
    source += ", strict" if bound == "at least" else ""
    subject = f"{name} {leading.path}".rstrip()
    return f"{subject}: {bounded(bound, limit, leading.metric, source, leading.now, leading.was)}"


# Places -----------------------------------------------------------------------------------------------------


def _where(leading: _Leading, report: Report, verdict: Verdict) -> str:
    """Return the place of a change: of a sum the module with most of it, of a peak the step."""
    if leading.metric.place != "module":
        return _place(leading.metric, report)
    if leading.path or not verdict.changes.places:
        return ""
    rising = leading.now > leading.was
    first, *others = [change for change in verdict.changes.places if (change.own > 0) == rising]
    more = f" and {plural(len(others), 'more module')}" if others else ""
    return f", in {place_name(str(first.what))}{more}"


def _place(metric: Metric, report: Report) -> str:
    """Return the node where a metric is highest, for one that is no sum."""
    if metric.place != "node":
        return ""
    highest = max(report.nodes, key=attrgetter(metric.name), default=None)
    return f", at {_step(highest)}" if highest is not None and getattr(highest, metric.name) else ""


def _step(node: Node) -> str:
    module = place_name(node.module)
    return module if node.op == "call_module" else f"{node.name} in {module}"


# Ways out ---------------------------------------------------------------------------------------------------


def _versions(versions: Iterable[Mismatch]) -> str:
    changed = ", ".join(f"{version.what} {version.was} -> {version.now}" for version in versions)
    return f"The counter changed since the baseline ({changed}): the model may be the same."


def _ways_out(verdict: Verdict, budget: Budget, accept: str, updating: bool, strict: bool) -> Iterator[str]:
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
    elif budget.baseline and (not verdict.within_baseline or (strict and verdict.changes.uncompared)):
        yield f"Accept it: {accept}"
