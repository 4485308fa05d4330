"""Limits as people write them: exact, and refused unless the unit fits in full."""

from __future__ import annotations

import math

import pytest

from pytest_flops.errors import BudgetError
from pytest_flops.units import (
    delta,
    parse_bytes,
    parse_count,
    parse_rtol,
    parse_seconds,
    parse_time,
    percent,
    size,
)


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (0, 0),
        (8_300_000_000, 8_300_000_000),
        (8.3e9, 8_300_000_000),
        ("8.3G", 8_300_000_000),
        ("1.5 k", 1500),
        (" 7M ", 7_000_000),
        ("2T", 2_000_000_000_000),
        ("8,228,544,512", 8_228_544_512),
        ("8_228_544_512", 8_228_544_512),
        ("0.29k", 290),
        ("12", 12),
    ],
)
def test_counts(value, count):
    assert parse_count(value, "flops") == count


@pytest.mark.parametrize(
    "value",
    [-1, True, 1.5, math.nan, math.inf, -math.inf, "", "G", "8.3g", "8.3K", "8GiB", "8 GFLOPs", "-1",
     "1e9", "8,3G",     "1.2345k", "0.5", "١", [], "1\n2"],
)  # fmt: skip
def test_no_counts(value):
    with pytest.raises(BudgetError) as caught:
        parse_count(value, "flops")
    assert str(caught.value) == (
        f"flops={value!r} is not a count. Give a whole number of at least 0, "
        f"or text with a decimal unit, such as "
        '"8.3G" (valid units: k, M, G, T).'
    )


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.01, "0.01"), ("0.05", "0.05"), (1e-6, "1e-06"), (1, "1")]
)
def test_tolerances(value, text):
    assert parse_rtol(value, "rtol") == text


@pytest.mark.parametrize("value", [-0.1, True, math.nan, math.inf, "1%", "", None, "1/3"])
def test_no_tolerances(value):
    with pytest.raises(BudgetError) as caught:
        parse_rtol(value, "rtol")
    assert str(caught.value) == (
        f"rtol={value!r} is not a tolerance. Give a fraction of the baseline of at least 0: "
        f"0.01 lets it grow "
        "by 1 %."
    )


@pytest.mark.parametrize(
    ("value", "size"),
    [(0, 0), (400_000_000, 400_000_000), (1.5e9, 1_500_000_000), ("12", 12), ("12,845,056", 12_845_056),
     ("7B", 7), ("1kB", 1000), ("1.5 MB", 1_500_000), ("2GB", 2 * 10**9), ("0.5KiB", 512),
     ("400MiB", 400 * 2**20), (" 1.25 GiB ", 5 * 2**28), ("0.001kB", 1)],
)  # fmt: skip
def test_sizes(value, size):
    assert parse_bytes(value, "peak_memory") == size


@pytest.mark.parametrize(
    "value",
    [-1, True, 1.5, math.nan, math.inf, "", "MiB", "400M", "400mib", "400 KB", "400MiBs", "-1B", "1e9",
     "0.5B", "0.1KiB", "0.0001kB", "1 2B", "١B", b"1B", []],
)  # fmt: skip
def test_no_sizes(value):
    with pytest.raises(BudgetError) as caught:
        parse_bytes(value, "peak_memory")
    assert str(caught.value) == (
        f"peak_memory={value!r} is not a size. Give a whole number of bytes, or text with a unit, such as "
        '"400MiB" (valid units: B, kB, MB, GB, KiB, MiB, GiB), that comes to whole bytes.'
    )


@pytest.mark.parametrize(
    ("value", "nanoseconds"),
    [("30ms", 30_000_000), ("1ns", 1), ("2.5 us", 2500), (" 1.5s ", 1_500_000_000), ("0.001ms", 1000),
     ("1,000ms", 10**9)],
)  # fmt: skip
def test_times(value, nanoseconds):
    assert parse_time(value, "latency") == nanoseconds


@pytest.mark.parametrize(
    "value",
    [30, 0.03, True, math.nan, "", "30", "ms", "-1ms", "0ms", "0.5ns", "1.0001us", "30 Ms", "30msec", "1e3ms",
     "30m", "nan ms", "1ms 2us", None],
)  # fmt: skip
def test_no_times(value):
    with pytest.raises(BudgetError) as caught:
        parse_time(value, "latency")
    assert str(caught.value) == (
        f"latency={value!r} is not a time. Give a number above 0 with its unit, such as "
        '"30ms" (valid units: ns, us, ms, s), that comes to whole nanoseconds.'
    )


@pytest.mark.parametrize(("value", "seconds"), [("60", 60.0), (" 0.5 ", 0.5), (60, 60.0), (1.5, 1.5)])
def test_seconds(value, seconds):
    assert parse_seconds(value, "flops_time_limit") == seconds


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "", "60s", "1e3", True, None])
def test_no_seconds(value):
    with pytest.raises(BudgetError) as caught:
        parse_seconds(value, "flops_time_limit")
    assert str(caught.value) == (
        f"flops_time_limit={value!r} is not valid. Give a number of seconds above 0, such as 60."
    )


# Numbers for people -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("was", "now", "shown"),
    [
        (40, 44, "+10.00%"),
        (44, 40, "-9.09%"),
        (1, 12_346, "+1,234,500.00%"),
        (10**9, 10**9 + 1, "+<0.01%"),
        (10**9, 10**9 - 1, "-<0.01%"),
        (0, 4, "new"),
        (4, 0, "gone"),
        (5, 5, "+0.00%"),
    ],
)
def test_percent(was, now, shown):
    assert percent(was, now) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0 bytes"),
        (1023, "1,023 bytes"),
        (1024, "1.00 KiB"),
        (2**20 - 1, "1,024.00 KiB"),
        (12_845_056, "12.25 MiB"),
        (5 * 2**30, "5.00 GiB"),
        (3 * 2**50, "3,072.00 TiB"),
    ],
)
def test_size(value, shown):
    assert size(value) == shown


def test_delta_has_thousands_separators():
    assert delta(1_000_000, 2_000_000) == "+1,000,000 (+100.00%)"
