"""Why a test failed: the limit, the fact, the place, and then the command that accepts it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from operator import attrgetter
from typing import NamedTuple

from pytest_flops.budgets.budget import Budget
from pytest_flops.budgets.measured_verdict import Finding, MeasuredVerdict
from pytest_flops.budgets.verdict import Change, Excess, Mismatch, Unmatched, Verdict, tolerated
from pytest_flops.reporting.tables import change_tables, peak_table
from pytest_flops.reporting.wording import (
    TITLES,
    amount,
    calls,
    costs,
    delta,
    figure,
    milliseconds,
    percent,
    place_name,
    plural,
)
from pytest_flops.results.report import Node, Report


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
        *([_unsupported(name, verdict.unsupported)] if verdict.unsupported else []),
        *(_unmatched(name, report, unmatched) for unmatched in verdict.unmatched),
        *(_excess(name, report, excess) for excess in verdict.excesses),
        *_baseline_problems(name, report, verdict, budget, file, strict),
    ]
    blocks = ["\n".join(problems), *change_tables(report, verdict, full=full)]
    if verdict.broken_peak_memory is not None:
        blocks.append(peak_table(report, verdict.broken_peak_memory, full=full))
    blocks += [_versions(verdict.versions)] if verdict.versions else []
    blocks += ["\n".join(_ways_out(verdict, budget, accept, updating))]
    return "\n\n".join(block for block in blocks if block)


def _unsupported(name: str, unsupported: Mapping[str, int]) -> str:
    return f"{name}: every operator needs a FLOP formula, but there is none for {calls(unsupported.items())}"


def _unmatched(name: str, report: Report, unmatched: Unmatched) -> str:
    if unmatched.near:
        hint = f"near it: {', '.join(unmatched.near)}"
    else:
        paths = [path for path in report.module_types if path]
        hint = (
            f"it has: {', '.join(paths[:6])}{', ...' if len(paths) > 6 else ''}" if paths else "it has none"
        )
    return f'{name}: "{unmatched.glob}" in flops_budget(modules=...) matches no module; {hint}'


def _excess(name: str, report: Report, excess: Excess) -> str:
    subject, source = name, f"flops_budget {excess.metric}"
    if excess.glob is not None:
        subject = f"{name} {excess.module}".rstrip()
        source = f'flops_budget modules "{excess.glob}"'
    place = _peak_place(report) if excess.metric == "peak_memory" else ""
    return _limit(subject, "at most", excess.limit, excess.metric, source, excess.now, excess.limit) + place


def _limit(subject: str, bound: str, limit: int, metric: str, source: str, now: int, base: int) -> str:
    return f"{subject}: {_bounded(bound, limit, metric, source, now, base)}"


def _bounded(bound: str, limit: int, metric: str, source: str, now: int, base: int) -> str:
    return f"{bound} {amount(metric, limit)} ({source}), now {figure(metric, now)}: {delta(base, now)}"


def _baseline_problems(
    name: str, report: Report, verdict: Verdict, budget: Budget, file: str, strict: bool
) -> Iterator[str]:
    if verdict.missing:
        yield f"{name}: no baseline in {file}; now {costs(report)}"
    for mismatch in verdict.mismatches:
        yield (
            f"{name}: not comparable with its baseline, which has other {mismatch.what}\n"
            f"  baseline: {mismatch.was}\n  now:      {mismatch.now}"
        )
    for leading in _leading(verdict, attrgetter("grew")):
        limit = tolerated(leading.change.was, budget.rtol)
        yield _bound(name, leading, budget, "at most", limit) + _where(leading, report, verdict)
    if strict:
        for leading in _leading(verdict, attrgetter("shrank")):
            limit = 2 * leading.change.was - tolerated(leading.change.was, budget.rtol)
            yield _bound(name, leading, budget, "at least", limit) + _where(leading, report, verdict)


class _Leading(NamedTuple):
    """A change that says why a test failed: of a total, or of the FLOPs of the module at `path`."""

    change: Change
    metric: str
    path: str


def _leading(verdict: Verdict, decisive: Callable[[Change], bool]) -> list[_Leading]:
    """Return the decisive totals, and where the total FLOPs are not among them, the innermost modules."""
    totals = [_Leading(change, str(change.what), "") for change in verdict.totals if decisive(change)]
    if any(leading.metric == "flops" for leading in totals):
        return totals
    modules = {str(change.what): change for change in verdict.modules if decisive(change)}
    inner = [path for path in modules if not any(is_inside(other, path) for other in modules.keys() - {path})]
    return totals + [_Leading(modules[path], "flops", path) for path in inner]


def is_inside(path: str, module: str) -> bool:
    """Tell whether a path is that of the module or of one inside it."""
    return not module or path == module or path.startswith(f"{module}.")


def _bound(name: str, leading: _Leading, budget: Budget, bound: str, limit: int) -> str:
    was, now = leading.change.was, leading.change.now
    source = "baseline" if limit == was else f"baseline {was:,}, rtol {budget.rtol}"
    if bound == "at least":
        source += ", strict"
    subject = f"{name} {leading.path}".rstrip()
    return _limit(subject, bound, limit, leading.metric, source, now, was)


def _where(leading: _Leading, report: Report, verdict: Verdict) -> str:
    """Return the place of a change: of the total FLOPs the module with most of it, of a peak the step."""
    if leading.metric == "peak_memory":
        return _peak_place(report)
    if leading.metric != "flops" or leading.path or not verdict.places:
        return ""
    rising = leading.change.own > 0
    first, *others = [change for change in verdict.places if (change.own > 0) == rising]
    more = f" and {plural(len(others), 'more module')}" if others else ""
    return f", in {place_name(str(first.what))}{more}"


def _peak_place(report: Report) -> str:
    highest = max(report.nodes, key=attrgetter("peak_memory"), default=None)
    return f", at {_step(highest)}" if highest is not None and highest.peak_memory else ""


def _step(node: Node) -> str:
    return (
        place_name(node.module) if node.op == "call_module" else f"{node.name} in {place_name(node.module)}"
    )


def _versions(versions: Iterable[Mismatch]) -> str:
    changes = ", ".join(f"{version.what} {version.was} -> {version.now}" for version in versions)
    return f"The counter changed since the baseline ({changes}): the model may be the same."


def _ways_out(verdict: Verdict, budget: Budget, accept: str, updating: bool) -> Iterator[str]:
    if verdict.unsupported:
        yield (
            "Give the operator a formula with pytest_flops.register_flop_formula, or count it as 0 with "
            'flops_budget(unsupported="warn").'
        )
    if verdict.excesses:
        yield "Lower the cost or raise the limit in flops_budget; --flops-update lifts no limit."
    if budget.measured:
        titles = " and ".join(TITLES[metric] for metric in budget.measured)
        yield f"Not measured, since the counts already fail: {titles}."
    if updating and not verdict.within_limits:
        yield "The baseline was not written."
    elif budget.baseline and not verdict.within_baseline:
        yield f"Accept it: {accept}"


# What was measured ------------------------------------------------------------------------------------------


def measured_failure_text(
    name: str,
    verdict: MeasuredVerdict,
    budget: Budget,
    *,
    accept: str,
    strict: bool = False,
    update: str | None = None,
) -> str:
    """Return why what was measured fails the budget of a model: limit, fact, machine; then the ways out.

    `update` is the mode of `--flops-update`, which accepts all that is not a ceiling.
    """
    broken = verdict.broken(update, strict)
    problems = [
        f"{name}: {text}" for finding in broken for text in _measured_problems(finding, verdict, budget)
    ]
    ways_out = []
    if not verdict.within_limits:
        ways_out.append("Lower the cost or raise the limit in flops_budget; --flops-update lifts no limit.")
    if update is not None and not verdict.within_limits:
        ways_out.append("The baseline was not written.")
    elif any(finding.grew or finding.uncompared for finding in broken):
        ways_out.append(f"Accept it: {accept}")
    return "\n".join([*problems, "", *ways_out])


def uncompared(finding: Finding, verdict: MeasuredVerdict) -> str:
    """Return why a measurement was not compared with a baseline."""
    text = f"{TITLES[finding.metric]} not compared: "
    if finding.comparison == "no baseline":
        return f"{text}no baseline for {verdict.machine}"
    assert verdict.was.latency is not None
    assert verdict.now.latency is not None
    return (
        f"{text}measured with reference workload {verdict.was.latency.reference}, "
        f"this is {verdict.now.latency.reference}"
    )


def _measured_problems(finding: Finding, verdict: MeasuredVerdict, budget: Budget) -> Iterator[str]:
    if finding.uncompared:
        yield uncompared(finding, verdict)
    describe = _latency_problems if finding.metric == "latency" else _memory_problems
    yield from describe(finding, verdict, budget)


def _latency_problems(finding: Finding, verdict: MeasuredVerdict, budget: Budget) -> Iterator[str]:
    now, was = verdict.now.latency, verdict.was.latency
    assert now is not None
    tries = f", measured {verdict.tries} times" if verdict.tries > 1 else ""
    if finding.over_ceiling:
        assert budget.latency is not None
        limit = budget.latency / 1e6
        yield (
            f"at most {milliseconds(limit)} (flops_budget latency), now {milliseconds(now.median_ms)} on "
            f"{verdict.machine}: {percent(limit, now.median_ms)}{tries}"
        )
    if finding.grew:
        assert was is not None
        assert budget.latency_rtol is not None
        factor = float(1 + Fraction(budget.latency_rtol))
        baseline = f"ratio {was.ratio:g}, {milliseconds(was.median_ms)} on {verdict.machine}"
        yield (
            f"at most {factor:g}x its baseline latency ({baseline}, latency_rtol {budget.latency_rtol}), "
            f"now ratio {now.ratio:g} ({milliseconds(now.median_ms)}): {percent(was.ratio, now.ratio)}{tries}"
        )


def _memory_problems(finding: Finding, verdict: MeasuredVerdict, budget: Budget) -> Iterator[str]:
    now, was = verdict.now.cuda_memory, verdict.was.cuda_memory
    assert now is not None
    if finding.over_ceiling:
        assert budget.cuda_memory is not None
        source = f"flops_budget cuda_memory, on {verdict.machine}"
        yield _bounded("at most", budget.cuda_memory, "cuda_memory", source, now, budget.cuda_memory)
    if finding.grew:
        assert was is not None
        assert budget.cuda_memory_rtol is not None
        limit = tolerated(was, budget.cuda_memory_rtol)
        source = f"baseline {was:,} on {verdict.machine}, cuda_memory_rtol {budget.cuda_memory_rtol}"
        yield _bounded("at most", limit, "cuda_memory", source, now, was)
