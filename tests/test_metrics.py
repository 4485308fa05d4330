"""The list of metrics, and costs that add up."""

from __future__ import annotations

from pytest_flops.metrics import ADDITIVE, COUNTED, MEASURED, METRICS, Cost, Held


def test_costs_add_and_scale_field_by_field():
    assert Cost(3, 2) + Cost(5) == Cost(8, 2)
    assert Cost(3, 2) + 4 == 4 + Cost(3, 2) == Cost(7, 2)
    assert Cost(3, 2) * 5 == Cost(15, 10)
    assert sum([Cost(3, 2), Cost(5, 1)]) == Cost.total([Cost(3, 2), Cost(5, 1)]) == Cost(8, 3)
    assert Cost.total([]) == Cost(0, 0, 0, 0)
    assert Cost(1, 2, 3, 4) + Cost(10, 20, 30, 40) == Cost(11, 22, 33, 44)
    assert Cost(1, 2, 3, 4) * 3 == Cost(3, 6, 9, 12)
    assert Cost(1, 2, 3, 4).arithmetic == Cost(1, 2)


def test_holdings_add_field_by_field():
    assert Held.total([Held(3, 12), Held(5, 10)]) == Held(8, 22)
    assert Held.total([]) == Held(0, 0)


def test_every_field_of_a_cost_is_a_metric_that_sums_up():
    assert tuple(metric.name for metric in COUNTED if metric.source == "sum") == Cost._fields
    assert tuple(metric.name for metric in COUNTED if metric.source == "held") == Held._fields
    assert {metric.name for metric in ADDITIVE} == {*Cost._fields, *Held._fields}


def test_metrics_are_counted_or_measured():
    assert (*COUNTED, *MEASURED) == tuple(METRICS.values())
    assert [metric.name for metric in MEASURED] == ["latency", "cuda_memory"]


def test_bytes_come_exact_and_in_a_unit_for_people():
    peak, flops = METRICS["peak_memory"], METRICS["flops"]
    assert peak.amount(12_845_056) == "12,845,056 bytes (12.25 MiB) of peak memory"
    assert peak.amount(400) == "400 bytes of peak memory"
    assert peak.figure(12_845_056) == "12,845,056 (12.25 MiB)"
    assert peak.brief(12_845_056) == "12.25 MiB of peak memory"
    assert METRICS["ops"].change(4, 5) == "4 -> 5 ops: +1 (+25.00%)"
    assert METRICS["memory_traffic"].change(472, 608) == (
        "472 -> 608 bytes of memory traffic: +136 (+28.81%)"
    )
    assert (flops.amount(4096), flops.figure(4096)) == ("4,096 FLOPs", "4,096")
