"""Numbers and names as people read them."""

from __future__ import annotations

from collections.abc import Iterable

from pytest_flops.report import Report

UNITS = {"flops": "FLOPs", "macs": "MACs", "params": "params", "peak_memory": "bytes of peak memory"}


def delta(was: int, now: int) -> str:
    """Return a change as text: "+4 (+10.00%)", "+4 (new)", "-4 (gone)"."""
    return f"{now - was:+,} ({percent(was, now)})"


def percent(was: int, now: int) -> str:
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
