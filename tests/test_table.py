"""The texts, to the letter."""

from __future__ import annotations

from dataclasses import replace

import pytest
from conftest import make_report, with_costs, with_peaks

from pytest_flops.baseline import snapshot
from pytest_flops.budget import budget_from
from pytest_flops.failure import failure_text
from pytest_flops.report import Node
from pytest_flops.table import node_digest, node_table
from pytest_flops.verdict import compare
from pytest_flops.wording import amount, delta, figure, percent, size

ACCEPT = "pytest test_net.py::test_net --flops-update"


def text(now, was=None, *, full=False, strict=False, updating=False, missing=False, **keywords):
    budget = budget_from([((), keywords)])
    verdict = compare(now, None if missing else snapshot(was or make_report()), budget)
    return failure_text(
        "Net",
        now,
        verdict,
        budget,
        accept=ACCEPT,
        file="net.json",
        strict=strict,
        updating=updating,
        full=full,
    )


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


def test_bytes_come_exact_and_in_a_unit_for_people():
    assert amount("peak_memory", 12_845_056) == "12,845,056 bytes (12.25 MiB) of peak memory"
    assert amount("peak_memory", 400) == "400 bytes of peak memory"
    assert figure("peak_memory", 12_845_056) == "12,845,056 (12.25 MiB)"
    assert (amount("flops", 4096), figure("flops", 4096)) == ("4,096 FLOPs", "4,096")


def test_delta_has_thousands_separators():
    assert delta(1_000_000, 2_000_000) == "+1,000,000 (+100.00%)"


def test_node_table_reads_like_torch_fx():
    assert (
        make_report().table()
        == """\
===========  =============  =======================  =====================  =======  ======
node_name    node_op        op_target                nn_module_stack[-1]      flops    macs
===========  =============  =======================  =====================  =======  ======
x            placeholder    x                        Net                          0       0
body_up      call_module    body.up                  Linear                      40      20
body_down    call_module    body.down                Linear                      60      30
add          call_function  <built-in function add>  Body                         6       0
output       output         output                   Net                          0       0
===========  =============  =======================  =====================  =======  ======

Net (eval): 106 FLOPs, 50 MACs, 50 params, 2.00 KiB of peak memory"""
    )


def test_node_table_says_what_to_doubt():
    report = make_report(
        executed="real", reason="nonzero has no shape", unsupported={"aten::odd": 2, "aten::x": 1}
    )
    assert report.table().splitlines()[-3:] == [
        "Net (eval): 106 FLOPs, 50 MACs, 50 params, 2.00 KiB of peak memory",
        "Ran on real tensors: nonzero has no shape",
        "Too low: no formula for aten::odd (2 calls), aten::x (1 call)",
    ]


def many(count: int):
    nodes = [
        Node(f"n{i}", "call_module", f"n{i}", f"n{i}", "Linear", 1000 + 10 * i, 1 + i) for i in range(count)
    ]
    return make_report(
        nodes=tuple(nodes), module_types={"": "Net"} | {f"n{i}": "Linear" for i in range(count)}
    )


def test_digest_keeps_changed_and_largest_nodes_in_order():
    report = with_costs(many(40), {"n3": 7})
    verdict = compare(report, snapshot(many(40)), budget_from([]))
    lines = node_digest(report, verdict).splitlines()
    shown = [line.split()[0] for line in lines if line.startswith("n") and line.split()[0] != "node_name"]
    assert shown == ["n3", *(f"n{i}" for i in range(17, 40))]
    assert "... and 16 smaller nodes; -vv shows all." in lines
    assert node_digest(many(24), verdict) == many(24).table()


def test_growth_gives_limit_fact_place_and_command():
    assert (
        text(with_costs(make_report(), {"add": 12, "body_up": 47}))
        == """\
Net: at most 106 FLOPs (baseline), now 119: +13 (+12.26%), in body.up and 1 more module

module    type      baseline    now  change
--------  ------  ----------  -----  -------------------------
body.up   Linear          40     47  +7 (+17.50%)
body      Body           106    119  +13 (+12.26%), +6 its own

function    in    nodes      baseline    now  change
----------  ----  -------  ----------  -----  -------------
add         body  add               6     12  +6 (+100.00%)

Accept it: pytest test_net.py::test_net --flops-update"""
    )


def test_params_and_macs_are_limits_of_their_own():
    fewer = replace(make_report(), nodes=make_report().nodes[:2] + make_report().nodes[3:], params=49)
    assert text(make_report(), fewer).splitlines()[:3] == [
        "Net: at most 46 FLOPs (baseline), now 106: +60 (+130.43%), in body.down",
        "Net: at most 20 MACs (baseline), now 50: +30 (+150.00%)",
        "Net: at most 49 params (baseline), now 50: +1 (+2.04%)",
    ]


def test_growth_of_a_module_alone_names_the_module():
    assert (
        text(with_costs(make_report(), {"body_up": 47, "body_down": 53}))
        == """\
Net body.up: at most 40 FLOPs (baseline), now 47: +7 (+17.50%)

module     type      baseline    now  change
---------  ------  ----------  -----  ------------
body.down  Linear          60     53  -7 (-11.67%)
body.up    Linear          40     47  +7 (+17.50%)

Accept it: pytest test_net.py::test_net --flops-update"""
    )


def test_module_called_flops_is_no_total():
    def report(cost):
        nodes = (
            Node("flops", "call_module", "flops", "flops", "Linear", cost, 0),
            Node("b", "call_module", "b", "b", "Linear", 20 - cost, 0),
        )
        return make_report(nodes=nodes, module_types={"": "Net", "flops": "Linear", "b": "Linear"})

    assert text(report(12), report(10)).startswith(
        "Net flops: at most 10 FLOPs (baseline), now 12: +2 (+20.00%)\n"
    )


def test_tolerance_is_part_of_the_limit():
    first = text(with_costs(make_report(), {"add": 20}), rtol=0.1).splitlines()[0]
    assert first == "Net: at most 116 FLOPs (baseline 106, rtol 0.1), now 120: +14 (+13.21%), in body"


def test_strict_limits_downward_too():
    assert text(with_costs(make_report(), {"body_up": 30}), strict=True).splitlines()[0] == (
        "Net: at least 106 FLOPs (baseline, strict), now 96: -10 (-9.43%), in body.up"
    )
    assert text(with_costs(make_report(), {"body_up": 20}), strict=True, rtol=0.1).splitlines()[0] == (
        "Net: at least 96 FLOPs (baseline 106, rtol 0.1, strict), now 86: -20 (-18.87%), in body.up"
    )


def test_ceilings_say_where_they_stand_and_that_no_update_lifts_them():
    assert (
        text(make_report(), flops=100, modules={"body.*": 59})
        == """\
Net: at most 100 FLOPs (flops_budget flops), now 106: +6 (+6.00%)
Net body.down: at most 59 FLOPs (flops_budget modules "body.*"), now 60: +1 (+1.69%)

Lower the cost or raise the limit in flops_budget; --flops-update lifts no limit."""
    )


def test_update_says_that_a_broken_ceiling_kept_the_baseline():
    assert text(with_costs(make_report(), {"add": 7}), macs=49, updating=True).endswith(
        "Lower the cost or raise the limit in flops_budget; --flops-update lifts no limit.\n"
        "The baseline was not written."
    )


@pytest.mark.parametrize(
    ("glob", "hint"),
    [
        ("body.upp", "near it: body.up, body.drop, body"),
        ("zzz", "it has: body, body.up, body.down, body.drop"),
    ],
)
def test_glob_that_matches_nothing(glob, hint):
    assert text(make_report(), modules={glob: 1}) == (
        f'Net: "{glob}" in flops_budget(modules=...) matches no module; {hint}'
    )


def test_glob_on_a_model_without_modules():
    alone = make_report(nodes=(), module_types={"": "Net"})
    assert text(alone, alone, modules={"x": 1}).endswith("matches no module; it has none")


def test_missing_baseline():
    assert text(make_report(), missing=True) == (
        "Net: no baseline in net.json; now 106 FLOPs, 50 MACs, 50 params, 2.00 KiB of peak memory\n\n"
        "Accept it: pytest test_net.py::test_net --flops-update"
    )


def test_other_inputs():
    assert (
        text(make_report(inputs=("x: float32[4, 3]",)))
        == """\
Net: not comparable with its baseline, which has other inputs
  baseline: x: float32[2, 3]
  now:      x: float32[4, 3]

Accept it: pytest test_net.py::test_net --flops-update"""
    )


def test_changed_counter_is_named():
    now = with_costs(make_report(formulas=2, torch="2.16.0"), {"add": 7})
    assert text(now).endswith(
        "The counter changed since the baseline (formulas 1 -> 2, torch 2.15.0 -> 2.16.0): "
        "the model may be the "
        "same.\n\nAccept it: pytest test_net.py::test_net --flops-update"
    )


def test_unsupported_operators_are_listed_with_the_way_out():
    assert text(make_report(unsupported={"aten::odd": 2})) == (
        "Net: every operator needs a FLOP formula, but there is none for aten::odd (2 calls)\n\n"
        "Give the operator a formula with pytest_flops.register_flop_formula, or count it as 0 with "
        'flops_budget(unsupported="warn").'
    )


def test_long_lists_of_changes_are_cut_unless_full():
    was, now = many(30), with_costs(many(30), {f"n{i}": 2000 + i for i in range(30)})
    assert "... and 20 more modules; -vv shows all." in text(now, was).splitlines()
    assert "more modules;" not in text(now, was, full=True)
    assert sum(line.startswith("n") for line in text(now, was, full=True).splitlines()) == 30


def test_new_and_gone_functions_name_their_nodes():
    nodes = tuple(Node(f"mul_{i}", "call_function", "mul", "", "Net", 2, 0) for i in range(5))
    now = make_report(nodes=(*make_report().nodes[:3], *nodes))
    rows = [line for line in text(now).splitlines() if line.startswith(("mul", "add"))]
    assert rows == [
        "mul         (model)  mul_0 ... mul_4 (5)           0     10  +10 (new)",
        "add         body                                   6      0  -6 (gone)",
    ]


# Peak memory ------------------------------------------------------------------------------------------------

ROOT_LEAF = Node("net", "call_module", "", "", "Linear", 0, 0, peak_memory=8)


def test_grown_peak_names_the_step_and_ranks_the_modules():
    first, rest = text(with_peaks(make_report(), {"body_down": 4096, "add": 6144})).split("\n", 1)
    assert first == (
        "Net: at most 2,048 bytes (2.00 KiB) of peak memory (baseline), now 6,144 (6.00 KiB): "
        "+4,096 (+200.00%), at add in body"
    )
    assert (
        rest
        == """
module     type    peak at      bytes alive
---------  ------  ---------  -------------  --------
body       Body    add                6,144  6.00 KiB
body.down  Linear  body_down          4,096  4.00 KiB
body.up    Linear  body_up            1,600  1.56 KiB

Accept it: pytest test_net.py::test_net --flops-update"""
    )


def test_peak_over_its_ceiling_names_a_leaf_by_its_path():
    assert text(make_report(), peak_memory="1.5KiB").splitlines()[0] == (
        "Net: at most 1,536 bytes (1.50 KiB) of peak memory (flops_budget peak_memory), "
        "now 2,048 (2.00 KiB): +512 (+33.33%), at body.down"
    )


def test_peak_of_a_model_that_is_one_leaf():
    alone = make_report(nodes=(ROOT_LEAF,), module_types={"": "Linear"})
    assert text(alone, alone, peak_memory=7).startswith(
        "Net: at most 7 bytes of peak memory (flops_budget peak_memory), now 8: +1 (+14.29%), at (model)\n"
    )


def test_nodes_show_their_peaks_only_where_the_peak_is_what_failed():
    now = with_peaks(many(40), {"n2": 5000})
    verdict = compare(now, snapshot(many(40)), budget_from([]))
    lines = node_digest(now, verdict).splitlines()
    assert lines[1].split()[-3:] == ["flops", "macs", "peak_memory"]
    assert [line.split()[-1] for line in lines if line.startswith("n2 ")] == ["5,000"]
    assert "peak_memory" not in now.table()
    assert "peak_memory" in node_table(now, peaks=True)


def test_long_list_of_peaks_is_cut_unless_full():
    now = with_peaks(many(30), {f"n{i}": 100 + i for i in range(30)})
    lines = text(now, many(30)).splitlines()
    assert [line.split()[0] for line in lines if line.startswith("n")] == [f"n{i}" for i in range(29, 19, -1)]
    assert "... and 20 more modules; -vv shows all." in lines
    assert "more modules" not in text(now, many(30), full=True)
