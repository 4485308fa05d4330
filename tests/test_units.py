"""Limits as people write them: exact, and refused unless the unit fits in full."""

from __future__ import annotations

import math

import pytest

from pytest_flops.errors import BudgetError
from pytest_flops.units import parse_bytes, parse_count, parse_rtol


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
        f"0.01 lets a count grow "
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
