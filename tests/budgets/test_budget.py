"""What a marker may say."""

from __future__ import annotations

import pytest

from pytest_flops.budgets.budget import Budget, budget_from
from pytest_flops.errors import BudgetError

VALID = (
    "Valid: flops, macs, params, parameter_memory, memory_traffic, ops, peak_memory, modules, rtol, train, "
    "backward, unsupported, baseline, latency, latency_rtol, latency_threads, cuda_memory, cuda_memory_rtol."
)
COUNTED = ("flops", "macs", "params", "parameter_memory", "memory_traffic", "ops", "peak_memory")


def marker(**keywords):
    return ((), keywords)


def budget(**keywords) -> Budget:
    return budget_from([marker(**keywords)])


# Reading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"flop": 1}, f"flops_budget does not know 'flop'. {VALID}"),
        (
            {"peak_memory": "400M"},
            "peak_memory='400M' is not a size. Give a whole number of bytes, or text with a unit, such as "
            '"400MiB" (valid units: B, kB, MB, GB, KiB, MiB, GiB), that comes to whole bytes.',
        ),
        (
            {"latency": 30},
            "latency=30 is not a time. Give a number above 0 with its unit, such as "
            '"30ms" (valid units: ns, us, ms, s), that comes to whole nanoseconds.',
        ),
        (
            {"latency_rtol": "20%"},
            "latency_rtol='20%' is not a tolerance. Give a fraction of the baseline of at least 0: "
            "0.01 lets it grow by 1 %.",
        ),
        (
            {"cuda_memory": "400M"},
            "cuda_memory='400M' is not a size. Give a whole number of bytes, or text with a unit, such as "
            '"400MiB" (valid units: B, kB, MB, GB, KiB, MiB, GiB), that comes to whole bytes.',
        ),
        (
            {"cuda_memory_rtol": True},
            "cuda_memory_rtol=True is not a tolerance. Give a fraction of the baseline of at least 0: "
            "0.01 lets it grow by 1 %.",
        ),
        (
            {"latency": "30ms", "backward": True},
            "flops_budget(latency=..., backward=True): what is measured is the forward pass alone. "
            "Give it a test of its own, without backward.",
        ),
        ({"train": 1}, "train=1 is not True or False."),
        ({"baseline": None}, "baseline=None is not True or False."),
        ({"unsupported": "ignore"}, "unsupported='ignore' is not valid. Give \"error\" or \"warn\"."),
        (
            {"modules": ["layer4"]},
            "modules=['layer4'] is not a mapping. Give ceilings by module path or glob, of FLOPs or by "
            'metric: modules={"layer4": "2G", "layer*.0": {"flops": "900M", "memory_traffic": "20MB"}}.',
        ),
        (
            {"modules": {4: "2G"}},
            "modules={4: '2G'} is not a mapping. Give ceilings by module path or glob, of FLOPs or by "
            'metric: modules={"layer4": "2G", "layer*.0": {"flops": "900M", "memory_traffic": "20MB"}}.',
        ),
        (
            {"modules": {"layer4": {"flop": 2}}},
            "modules['layer4'] does not know 'flop'. Valid: flops, macs, params, parameter_memory, "
            "memory_traffic, ops, peak_memory.",
        ),
        (
            {"modules": {"layer4": {}}},
            "modules['layer4']={} has no ceiling. Give it one, such as "
            '{"flops": "900M", "memory_traffic": "20MB"}.',
        ),
        (
            {"modules": {"layer4": {"memory_traffic": "2M"}}},
            "modules['layer4']['memory_traffic']='2M' is not a size. Give a whole number of bytes, or text "
            'with a unit, such as "400MiB" (valid units: B, kB, MB, GB, KiB, MiB, GiB), '
            "that comes to whole bytes.",
        ),
        (
            {"modules": {"layer4": {"ops": -1}}},
            "modules['layer4']['ops']=-1 is not a count. Give a whole number of at least 0, or text with a "
            'decimal unit, such as "8.3G" (valid units: k, M, G, T).',
        ),
        (
            {"memory_traffic": "38M"},
            "memory_traffic='38M' is not a size. Give a whole number of bytes, or text with a unit, such as "
            '"400MiB" (valid units: B, kB, MB, GB, KiB, MiB, GiB), that comes to whole bytes.',
        ),
        (
            {"ops": "70B"},
            "ops='70B' is not a count. Give a whole number of at least 0, or text with a decimal "
            'unit, such as "8.3G" (valid units: k, M, G, T).',
        ),
        (
            {"rtol": "1%"},
            "rtol='1%' is not a tolerance. Give a fraction of the baseline of at least 0: "
            "0.01 lets it grow by 1 %.",
        ),
        (
            {"rtol": {"memory_traffic": -0.1}},
            "rtol['memory_traffic']=-0.1 is not a tolerance. Give a fraction of the baseline of at least 0: "
            "0.01 lets it grow by 1 %.",
        ),
        (
            {"rtol": {"latency": 0.1}},
            "rtol does not know 'latency'. Valid: flops, macs, params, parameter_memory, memory_traffic, "
            "ops, peak_memory.",
        ),
        (
            {"modules": {"layer4": "2 GB"}},
            "modules['layer4']='2 GB' is not a count. Give a whole number of at least 0, "
            "or text with a decimal "
            'unit, such as "8.3G" (valid units: k, M, G, T).',
        ),
    ],
)  # fmt: skip
def test_wrong_markers_say_what_is_valid(keywords, message):
    with pytest.raises(BudgetError) as caught:
        budget(**keywords)
    assert str(caught.value) == message


def test_marker_takes_keywords_only():
    with pytest.raises(BudgetError) as caught:
        budget_from([(("8.3G",), {})])
    assert str(caught.value) == f"flops_budget takes keywords only, not '8.3G', as in flops=\"8.3G\". {VALID}"


def test_closest_marker_decides_for_each_keyword():
    merged = budget_from(
        [marker(flops=1, rtol=0.5), marker(flops=2, macs=3, modules={"a": 4}), marker(macs=5)]
    )
    assert merged == Budget(
        limits={"flops": 1, "macs": 3}, modules={"a": {"flops": 4}}, rtol=dict.fromkeys(COUNTED, "0.5")
    )


def test_a_ceiling_on_peak_memory_is_in_bytes():
    assert budget(peak_memory="1.5KiB").limits == {"peak_memory": 1536}


def test_every_counted_metric_has_a_ceiling():
    found = budget(memory_traffic="38MB", ops=70, parameter_memory="100MiB")
    assert found.limits == {"memory_traffic": 38_000_000, "ops": 70, "parameter_memory": 104_857_600}


def test_a_module_has_ceilings_by_metric_and_a_bare_one_is_on_flops():
    found = budget(modules={"a": "2G", "b.*": {"flops": "1k", "memory_traffic": "20MB", "ops": 3}})
    assert found.modules == {
        "a": {"flops": 2_000_000_000},
        "b.*": {"flops": 1000, "memory_traffic": 20_000_000, "ops": 3},
    }


def test_none_lifts_a_farther_limit():
    assert budget_from([marker(flops=None), marker(flops=2, params=3)]).limits == {"params": 3}
    assert budget_from([marker(peak_memory=None), marker(peak_memory="1kB")]).limits == {}


def test_an_overruled_marker_must_still_be_right():
    with pytest.raises(BudgetError, match="macs='x'"):
        budget_from([marker(macs=1), marker(macs="x")])


def test_tolerance_of_the_run_holds_where_no_marker_says_otherwise():
    assert budget_from([marker()], rtol="0.1").rtol == dict.fromkeys(COUNTED, "0.1")
    assert budget_from([marker(rtol=0)], rtol="0.1").rtol == dict.fromkeys(COUNTED, "0")


def test_a_tolerance_by_metric_leaves_the_others_to_the_run():
    by_metric = {"memory_traffic": 0.02, "ops": 0}
    expected = {"memory_traffic": "0.02", "ops": "0"}
    assert budget(rtol=by_metric).rtol == dict.fromkeys(COUNTED, "0") | expected
    assert budget_from([marker(rtol=by_metric)], rtol="0.1").rtol == dict.fromkeys(COUNTED, "0.1") | expected


def test_the_closest_tolerance_decides_whole():
    found = budget_from([marker(rtol={"ops": 0.5}), marker(rtol={"flops": 0.2}), marker(rtol=0.3)])
    assert found.rtol == dict.fromkeys(COUNTED, "0") | {"ops": "0.5"}


# Measured metrics -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [0, -1, True, 1.0, "1", None])
def test_threads_are_a_whole_number(threads):
    with pytest.raises(BudgetError) as caught:
        budget(latency_threads=threads)
    assert str(caught.value) == (
        f"latency_threads={threads!r} is not valid. Give a whole number of threads from 1 to 1,024."
    )


@pytest.mark.parametrize(
    ("keywords", "measured", "reason"),
    [
        ({}, (), "counting measures nothing"),
        ({"flops": 1, "latency_threads": 4}, (), "threads ask for nothing by themselves"),
        ({"latency": "30ms"}, ("latency",), "a ceiling"),
        ({"latency_rtol": 0.2}, ("latency",), "a tolerance over the baseline"),
        ({"cuda_memory": "1GiB", "latency_rtol": 0.2}, ("latency", "cuda_memory"), "both"),
        ({"cuda_memory_rtol": 0}, ("cuda_memory",), "no tolerance at all is one"),
        ({"latency_rtol": 0.2, "baseline": False, "flops": 1}, (), "only the ceilings decide"),
        ({"latency": "30ms", "baseline": False}, ("latency",), "a ceiling is enough"),
        ({"latency": None, "latency_rtol": None}, (), "None asks for nothing"),
    ],
)
def test_what_is_measured_is_what_is_asked_for(keywords, measured, reason):
    assert tuple(metric.name for metric in budget(**keywords).measured) == measured, reason


def test_measured_limits_are_in_nanoseconds_and_bytes():
    found = budget(latency="30ms", latency_rtol=0.2, latency_threads=2, cuda_memory="1.5KiB")
    assert found.limits == {"latency": 30_000_000, "cuda_memory": 1536}
    assert (found.measured_rtol, found.latency_threads) == ({"latency": "0.2"}, 2)


def test_a_tolerance_without_a_baseline_compares_nothing():
    with pytest.raises(BudgetError, match="has no ceiling: nothing would be compared"):
        budget(baseline=False, latency_rtol=0.2)
