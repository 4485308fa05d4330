"""Numbers and names as people read them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from pytest_flops.results.measured import Latency, Measured
from pytest_flops.results.report import Report

UNITS = {
    "flops": "FLOPs",
    "macs": "MACs",
    "params": "params",
    "peak_memory": "bytes of peak memory",
    "cuda_memory": "bytes of CUDA memory",
}


def delta(was: int, now: int) -> str:
    """Return a change as text: "+4 (+10.00%)", "+4 (new)", "-4 (gone)"."""
    return f"{now - was:+,} ({percent(was, now)})"


def changed(metric: str, was: int, now: int) -> str:
    """Return the change of one total: "40 -> 44 FLOPs: +4 (+10.00%)"."""
    return f"{was:,} -> {now:,} {UNITS[metric]}: {delta(was, now)}"


def percent(was: float, now: float) -> str:
    """Return a relative change; one that rounds to nothing still shows its direction."""
    if not was or not now:
        return "gone" if was else "new"
    share = 100 * (now - was) / was
    if now != was and abs(share) < 0.005:
        return f"{'+' if share > 0 else '-'}<0.01%"
    return f"{share:+,.2f}%"


def amount(metric: str, value: int) -> str:
    """Return a total with its unit: "106 FLOPs", "1,536 bytes (1.50 KiB) of peak memory"."""
    unit = UNITS[metric]
    if unit.startswith("bytes"):
        return f"{value:,} bytes{_in_larger_units(value)}{unit.removeprefix('bytes')}"
    return f"{value:,} {unit}"


def figure(metric: str, value: int) -> str:
    """Return a total where its unit has been said: "106", "1,536 (1.50 KiB)"."""
    return f"{value:,}{_in_larger_units(value)}" if UNITS[metric].startswith("bytes") else f"{value:,}"


def size(value: int) -> str:
    """Return a number of bytes as people say it: "1.50 KiB", "12 bytes"."""
    if value < 2**10:
        return f"{value:,} bytes"
    power = min((value.bit_length() - 1) // 10, 4)
    return f"{value / 2 ** (10 * power):,.2f} {('KiB', 'MiB', 'GiB', 'TiB')[power - 1]}"


def _in_larger_units(value: int) -> str:
    return f" ({size(value)})" if value >= 2**10 else ""


def costs(report: Report) -> str:
    """Return the totals of a report in one line."""
    counts = f"{report.flops:,} FLOPs, {report.macs:,} MACs, {report.params:,} params"
    return f"{counts}, {size(report.peak_memory)} of peak memory"


def plural(count: int, noun: str) -> str:
    """Return a count with its noun, as "1 model" or "2 models"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def place_name(path: str) -> str:
    """Return a module path as shown to people."""
    return path or "(model)"


def calls(unsupported: Iterable[tuple[str, int]]) -> str:
    """Return operators with their numbers of calls: "aten::odd (2 calls)"."""
    return ", ".join(f"{op} ({plural(number, 'call')})" for op, number in unsupported)


# Measured numbers -------------------------------------------------------------------------------------------

TITLES = {"latency": "latency", "cuda_memory": "CUDA memory"}


def milliseconds(time_ms: float) -> str:
    """Return a time in all digits that it has: "41.23 ms", "12,340 ms"."""
    return f"{time_ms:,.9g} ms"


def measured_changes(was: Mapping[str, Measured], now: Mapping[str, Measured]) -> Iterator[str]:
    """Yield what is new, changed and gone of the measured baselines, by machine."""
    for machine in sorted(was.keys() | now.keys()):
        if machine not in now:
            yield f"what {machine} measured is dropped: it was with other inputs"
            continue
        old, new = was.get(machine, Measured()), now[machine]
        for metric in TITLES:
            if getattr(new, metric) not in (None, getattr(old, metric)):
                yield f"{measured_change(metric, old, new)} on {machine}"


def measured_change(metric: str, was: Measured, now: Measured) -> str:
    """Return how one measured metric changed: "latency ratio 2.31 -> 3.01 (53 ms): +30.30%"."""
    if metric == "latency":
        assert now.latency is not None
        return f"latency {_latency_change(was.latency, now.latency)}"
    assert now.cuda_memory is not None
    if was.cuda_memory is None:
        return f"CUDA memory new, {now.cuda_memory:,} bytes ({size(now.cuda_memory)})"
    return changed("cuda_memory", was.cuda_memory, now.cuda_memory)


def _latency_change(was: Latency | None, now: Latency) -> str:
    if was is None or was.reference != now.reference:
        return f"new, ratio {now.ratio:g} ({milliseconds(now.median_ms)})"
    change = percent(was.ratio, now.ratio)
    return f"ratio {was.ratio:g} -> {now.ratio:g} ({milliseconds(now.median_ms)}): {change}"
