"""The texts, to the letter."""

from __future__ import annotations

from dataclasses import replace

from pytest_flops.budgets.baseline import snapshot
from pytest_flops.budgets.budget import budget_from
from pytest_flops.budgets.verdict import compare
from pytest_flops.reporting.tables import node_digest
from tests.fakes import leaf_report, make_report, many, with_costs, with_peaks


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
    verdict = compare(report, snapshot(report), snapshot(many(40)), budget_from([]))
    lines = node_digest(report, verdict).splitlines()
    shown = [line.split()[0] for line in lines if line.startswith("n") and line.split()[0] != "node_name"]
    assert shown == ["n3", *(f"n{i}" for i in range(17, 40))]
    assert "... and 16 smaller nodes; -vv shows all." in lines
    assert node_digest(many(24), verdict) == many(24).table()


def test_digest_keeps_the_leaf_inside_which_a_module_changed():
    now, was = leaf_report(up=21), leaf_report(up=20)
    now, was = (replace(report, nodes=(*many(30).nodes, *report.nodes)) for report in (now, was))
    verdict = compare(now, snapshot(now), snapshot(was), budget_from([]))
    assert "\nencoder " in node_digest(now, verdict)


def test_nodes_show_their_peaks_only_where_the_peak_is_what_failed():
    now = with_peaks(many(40), {"n2": 5000})
    verdict = compare(now, snapshot(now), snapshot(many(40)), budget_from([]))
    lines = node_digest(now, verdict).splitlines()
    assert lines[1].split()[-3:] == ["flops", "macs", "peak_memory"]
    assert [line.split()[-1] for line in lines if line.startswith("n2 ")] == ["5,000"]
    assert "peak_memory" not in now.table()
    assert "peak_memory" in now.table(peaks=True)
