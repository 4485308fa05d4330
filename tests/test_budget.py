"""What a marker may say."""

from __future__ import annotations

import pytest

from pytest_flops.budget import Budget, budget_from
from pytest_flops.errors import BudgetError

VALID = "Valid: flops, macs, params, peak_memory, modules, rtol, train, backward, unsupported, baseline."


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
        ({"train": 1}, "train=1 is not True or False."),
        ({"baseline": None}, "baseline=None is not True or False."),
        ({"unsupported": "ignore"}, "unsupported='ignore' is not valid. Give \"error\" or \"warn\"."),
        (
            {"modules": ["layer4"]},
            "modules=['layer4'] is not a mapping. Give FLOPs ceilings by module path or glob: "
            'modules={"layer4": "2G", "layer*.0": "900M"}.',
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
    assert merged == Budget(limits={"flops": 1, "macs": 3}, modules={"a": 4}, rtol="0.5")


def test_a_ceiling_on_peak_memory_is_in_bytes():
    assert budget(peak_memory="1.5KiB").limits == {"peak_memory": 1536}


def test_none_lifts_a_farther_limit():
    assert budget_from([marker(flops=None), marker(flops=2, params=3)]).limits == {"params": 3}
    assert budget_from([marker(peak_memory=None), marker(peak_memory="1kB")]).limits == {}


def test_an_overruled_marker_must_still_be_right():
    with pytest.raises(BudgetError, match="macs='x'"):
        budget_from([marker(macs=1), marker(macs="x")])


def test_tolerance_of_the_run_holds_where_no_marker_says_otherwise():
    assert budget_from([marker()], rtol="0.1").rtol == "0.1"
    assert budget_from([marker(rtol=0)], rtol="0.1").rtol == "0"
