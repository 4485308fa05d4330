"""The texts, to the letter."""

from __future__ import annotations

from pytest_flops.budgets.baseline import snapshot
from pytest_flops.budgets.budget import budget_from
from pytest_flops.budgets.verdict import compare
from pytest_flops.reporting.tables import node_digest
from tests.fakes import make_report, many, with_peaks


def test_node_table_reads_like_torch_fx():
    assert (
        make_report().table()
        == """\
===========  =============  =======================  =====================  =======  ======  ================  =====
node_name    node_op        op_target                nn_module_stack[-1]      flops    macs    memory_traffic    ops
===========  =============  =======================  =====================  =======  ======  ================  =====
x            placeholder    x                        Net                          0       0                 0      0
body_up      call_module    body.up                  Linear                      40      20               400      1
body_down    call_module    body.down                Linear                      60      30               600      1
add          call_function  <built-in function add>  Body                         6       0                96      1
output       output         output                   Net                          0       0                 0      0
===========  =============  =======================  =====================  =======  ======  ================  =====

Net (eval): 106 FLOPs, 50 MACs, 50 params, 200 bytes of parameter memory, 1.07 KiB of memory traffic, \
3 ops, 2.00 KiB of peak memory"""  # noqa: E501
    )


def test_node_table_says_what_to_doubt():
    report = make_report(
        executed="real", reason="nonzero has no shape", unsupported={"aten::odd": 2, "aten::x": 1}
    )
    assert report.table().splitlines()[-3:] == [
        "Net (eval): 106 FLOPs, 50 MACs, 50 params, 200 bytes of parameter memory, "
        "1.07 KiB of memory traffic, 3 ops, 2.00 KiB of peak memory",
        "Ran on real tensors: nonzero has no shape",
        "Too low: no formula for aten::odd (2 calls), aten::x (1 call)",
    ]


def test_digest_keeps_the_largest_nodes_in_order():
    report = many(40)
    verdict = compare(report, snapshot(report), None, budget_from([]))
    lines = node_digest(report, verdict).splitlines()
    shown = [line.split()[0] for line in lines if line.startswith("n") and line.split()[0] != "node_name"]
    assert shown == [f"n{i}" for i in range(16, 40)]
    assert "... and 16 smaller nodes; -vv shows all." in lines
    assert node_digest(many(24), verdict) == many(24).table()


def test_nodes_show_their_peaks_only_where_the_peak_is_what_failed():
    now = with_peaks(many(40), {"n2": 5000})
    verdict = compare(now, snapshot(now), snapshot(many(40)), budget_from([]))
    lines = node_digest(now, verdict).splitlines()
    assert lines[1].split()[-3:] == ["memory_traffic", "ops", "peak_memory"]
    assert [line.split()[-1] for line in lines if line.startswith("n2 ")] == ["5,000"]
    assert "peak_memory" not in now.table()
    assert "peak_memory" in now.table(peaks=True)
