"""Quantities as people write and read them.

Limits and tolerances are read exactly: whole units only, no rounding of fractions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from pytest_flops.errors import BudgetError

Unit = Literal["count", "bytes", "time"]
"""What a quantity is counted in: things, bytes, or nanoseconds."""

_COUNTS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BYTES = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_NANOSECONDS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}

_LONGEST = 100  # characters: Python refuses to read thousands of digits
_QUANTITY = re.compile(r"(\d{1,3}(?:[,_]\d{3})+|\d+)(?:\.(\d+))? ?([A-Za-z]*)", re.ASCII)
_SECONDS = re.compile(r"\d{1,9}(?:\.\d+)?", re.ASCII)
_FRACTION = re.compile(r"\d+(?:\.\d+)?(?:e-?\d{1,3})?", re.ASCII)


def parse(unit: Unit, value: object, keyword: str) -> int:
    """Return a limit in this unit; raise `BudgetError` for what is none, naming the keyword."""
    readers = {"count": parse_count, "bytes": parse_bytes, "time": parse_time}
    return readers[unit](value, keyword)


def parse_count(value: object, keyword: str) -> int:
    """Return a count given as a whole number or as text with a decimal unit: `8300`, `8.3e9`, `"8.3G"`.

    Raises `BudgetError` for anything else, naming the keyword.
    """
    count = _whole(value, _COUNTS)
    if count is None:
        raise BudgetError(
            f"{keyword}={value!r} is not a count. Give a whole number of at least 0, or text with a decimal "
            'unit, such as "8.3G" (valid units: k, M, G, T).'
        )
    return count


def parse_bytes(value: object, keyword: str) -> int:
    """Return a size in bytes given as a whole number or as text with a unit: `400_000_000`, `"400MiB"`.

    Raises `BudgetError` for anything else, a part of a byte too, naming the keyword.
    """
    size = _whole(value, _BYTES)
    if size is None:
        raise BudgetError(
            f"{keyword}={value!r} is not a size. Give a whole number of bytes, or text with a unit, such as "
            f'"400MiB" (valid units: {_listed(_BYTES)}), that comes to whole bytes.'
        )
    return size


def parse_time(value: object, keyword: str) -> int:
    """Return a time in nanoseconds given as text with a unit: `"30ms"`.

    Raises `BudgetError` for anything else, a bare number too, naming the keyword.
    """
    time = _from_text(value, _NANOSECONDS) if isinstance(value, str) else None
    if not time:
        raise BudgetError(
            f"{keyword}={value!r} is not a time. Give a number above 0 with its unit, such as "
            f'"30ms" (valid units: {_listed(_NANOSECONDS)}), that comes to whole nanoseconds.'
        )
    return time


def parse_seconds(value: object, keyword: str) -> float:
    """Return a number of seconds above 0, given as a decimal number or as such text."""
    text = str(value).strip()
    if isinstance(value, bool) or not _SECONDS.fullmatch(text) or not float(text) > 0:
        raise BudgetError(f"{keyword}={value!r} is not valid. Give a number of seconds above 0, such as 60.")
    return float(text)


def _whole(value: object, scales: Mapping[str, int]) -> int | None:
    if isinstance(value, str):
        return _from_text(value, scales)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        return None
    return int(value) if isinstance(value, int) or value.is_integer() else None


def _from_text(text: str, scales: Mapping[str, int]) -> int | None:
    match = _QUANTITY.fullmatch(text.strip())
    if match is None or match[3] not in scales or len(text) > _LONGEST:
        return None
    whole, fraction, unit = match.groups(default="")
    digits = int(whole.replace(",", "").replace("_", "") + fraction)
    count, rest = divmod(digits * scales[unit], 10 ** len(fraction))
    return None if rest else count


def _listed(scales: Mapping[str, int]) -> str:
    return ", ".join(unit for unit in scales if unit)


def parse_rtol(value: object, keyword: str) -> str:
    """Return a relative tolerance in decimal digits, so that 0.29 means 29/100; it may be given as text."""
    text = repr(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not _FRACTION.fullmatch(text.strip()):
        raise BudgetError(
            f"{keyword}={value!r} is not a tolerance. Give a fraction of the baseline of at least 0: "
            "0.01 lets it grow by 1 %."
        )
    return text.strip()


# Numbers for people -----------------------------------------------------------------------------------------


def shown(unit: Unit, value: int) -> str:
    """Return a value where its unit has been said: "106", "1,536 (1.50 KiB)", "30 ms"."""
    if unit == "time":
        return milliseconds(value / 1e6)
    return f"{value:,} ({size(value)})" if unit == "bytes" and value >= 2**10 else f"{value:,}"


def size(value: int) -> str:
    """Return a number of bytes as people say it: "1.50 KiB", "12 bytes"."""
    if value < 2**10:
        return f"{value:,} bytes"
    power = min((value.bit_length() - 1) // 10, 4)
    return f"{value / 2 ** (10 * power):,.2f} {('KiB', 'MiB', 'GiB', 'TiB')[power - 1]}"


def milliseconds(time_ms: float) -> str:
    """Return a time in all digits that it has: "41.23 ms", "12,340 ms"."""
    return f"{time_ms:,.9g} ms"


def delta(was: int, now: int) -> str:
    """Return a change as text: "+4 (+10.00%)", "+4 (new)", "-4 (gone)"."""
    return f"{now - was:+,} ({percent(was, now)})"


def percent(was: float, now: float) -> str:
    """Return a relative change; one that rounds to nothing still shows its direction."""
    if not was or not now:
        return "gone" if was else "new"
    share = 100 * (now - was) / was
    if now != was and abs(share) < 0.005:
        return f"{'+' if share > 0 else '-'}<0.01%"
    return f"{share:+,.2f}%"


def plural(count: int, noun: str) -> str:
    """Return a count with its noun, as "1 model" or "2 models"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
