"""What was measured, in words: why it fails a test, and how it changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction

from pytest_flops.budgets.finding import Finding, tolerated
from pytest_flops.budgets.verdict import MeasuredVerdict
from pytest_flops.metrics import MEASURED, Metric
from pytest_flops.reporting.limits import NOT_WRITTEN, RAISE_IT, bounded
from pytest_flops.results.measured import Latency, Measured, Quantity
from pytest_flops.units import milliseconds, percent, size


def measured_failure_text(
    name: str, verdict: MeasuredVerdict, *, accept: str, strict: bool = False, update: str | None = None
) -> str:
    """Return why what was measured fails the budget of a model: limit, fact, machine; then the ways out.

    `update` is the mode of `--flops-update`, which accepts all that is not a ceiling.
    """
    broken = verdict.broken(update, strict)
    problems = [f"{name}: {text}" for finding in broken for text in _problems(finding, verdict)]
    ways_out = [] if verdict.within_limits else [RAISE_IT]
    if update is not None and not verdict.within_limits:
        ways_out.append(NOT_WRITTEN)
    elif any(finding.grew or finding.uncompared for finding in broken):
        ways_out.append(f"Accept it: {accept}")
    return "\n".join([*problems, "", *ways_out])


def uncompared(finding: Finding, machine: str) -> str:
    """Return why a measurement was not compared with a baseline."""
    text = f"{finding.metric.title} not compared: "
    if finding.comparison == "no baseline":
        return f"{text}no baseline for {machine}"
    assert isinstance(finding.was, Latency)
    assert isinstance(finding.now, Latency)
    return f"{text}measured with reference workload {finding.was.reference}, this is {finding.now.reference}"


def _problems(finding: Finding, verdict: MeasuredVerdict) -> Iterator[str]:
    if finding.uncompared:
        yield uncompared(finding, verdict.machine)
    if isinstance(finding.now, Latency):
        yield from _latency_problems(finding, finding.now, verdict)
    else:
        yield from _memory_problems(finding, finding.now, verdict.machine)


def _latency_problems(finding: Finding, now: Latency, verdict: MeasuredVerdict) -> Iterator[str]:
    name, machine, was = finding.metric.name, verdict.machine, finding.was
    tries = f", measured {verdict.tries} times" if verdict.tries > 1 else ""
    if finding.over_limit and finding.limit is not None:
        limit = finding.limit / 1e6
        yield (
            f"at most {milliseconds(limit)} (flops_budget {name}), now {milliseconds(now.median_ms)} on "
            f"{machine}: {percent(limit, now.median_ms)}{tries}"
        )
    if finding.grew and isinstance(was, Latency) and finding.rtol is not None:
        factor = float(1 + Fraction(finding.rtol))
        baseline = f"ratio {was.ratio:g}, {milliseconds(was.median_ms)} on {machine}"
        yield (
            f"at most {factor:g}x its baseline {finding.metric.title} "
            f"({baseline}, {name}_rtol {finding.rtol}), now ratio {now.ratio:g} "
            f"({milliseconds(now.median_ms)}): {percent(was.ratio, now.ratio)}{tries}"
        )


def _memory_problems(finding: Finding, now: int, machine: str) -> Iterator[str]:
    metric, was, limit = finding.metric, finding.was, finding.limit
    if finding.over_limit and limit is not None:
        yield bounded("at most", limit, metric, f"flops_budget {metric.name}, on {machine}", now, limit)
    if finding.grew and isinstance(was, int) and finding.rtol is not None:
        source = f"baseline {was:,} on {machine}, {metric.name}_rtol {finding.rtol}"
        yield bounded("at most", tolerated(was, finding.rtol), metric, source, now, was)


# Changes ----------------------------------------------------------------------------------------------------


def measured_changes(was: Mapping[str, Measured], now: Mapping[str, Measured]) -> Iterator[str]:
    """Yield what is new, changed and gone of the measured baselines, by machine."""
    for machine in sorted(was.keys() | now.keys()):
        if machine not in now:
            yield f"what {machine} measured is dropped: it was with other inputs"
            continue
        old, new = was.get(machine, {}), now[machine]
        for metric in MEASURED:
            if new.get(metric.name) not in (None, old.get(metric.name)):
                yield f"{measured_change(metric, old.get(metric.name), new[metric.name])} on {machine}"


def measured_change(metric: Metric, was: Quantity | None, now: Quantity) -> str:
    """Return how one measured metric changed: "latency ratio 2.31 -> 3.01 (53 ms): +30.30%"."""
    if isinstance(now, Latency):
        assert not isinstance(was, int)
        return f"{metric.title} {_latency_change(was, now)}"
    assert not isinstance(was, Latency)
    if was is None:
        return f"{metric.title} new, {now:,} bytes ({size(now)})"
    return metric.change(was, now)


def _latency_change(was: Latency | None, now: Latency) -> str:
    if was is None or was.reference != now.reference:
        return f"new, ratio {now.ratio:g} ({milliseconds(now.median_ms)})"
    change = percent(was.ratio, now.ratio)
    return f"ratio {was.ratio:g} -> {now.ratio:g} ({milliseconds(now.median_ms)}): {change}"
