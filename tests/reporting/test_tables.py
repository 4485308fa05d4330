"""The texts, to the letter."""

from __future__ import annotations

import pytest

from pytest_flops.budgets.baseline import snapshot
from pytest_flops.budgets.budget import budget_from
from pytest_flops.budgets.verdict import compare
from pytest_flops.reporting.tables import node_digest, node_table
from pytest_flops.reporting.wording import amount, delta, figure, percent, size
from tests.fakes import make_report, many, with_costs, with_peaks


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


def test_digest_keeps_changed_and_largest_nodes_in_order():
    report = with_costs(many(40), {"n3": 7})
    verdict = compare(report, snapshot(many(40)), budget_from([]))
    lines = node_digest(report, verdict).splitlines()
    shown = [line.split()[0] for line in lines if line.startswith("n") and line.split()[0] != "node_name"]
    assert shown == ["n3", *(f"n{i}" for i in range(17, 40))]
    assert "... and 16 smaller nodes; -vv shows all." in lines
    assert node_digest(many(24), verdict) == many(24).table()


def test_nodes_show_their_peaks_only_where_the_peak_is_what_failed():
    now = with_peaks(many(40), {"n2": 5000})
    verdict = compare(now, snapshot(many(40)), budget_from([]))
    lines = node_digest(now, verdict).splitlines()
    assert lines[1].split()[-3:] == ["flops", "macs", "peak_memory"]
    assert [line.split()[-1] for line in lines if line.startswith("n2 ")] == ["5,000"]
    assert "peak_memory" not in now.table()
    assert "peak_memory" in node_table(now, peaks=True)
