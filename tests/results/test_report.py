"""Totals derive from nodes: inclusive by module, and functional work by place."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_flops.results.report import ModuleTotal, Node, base_name, enclosing
from tests.fakes import make_report


def test_totals_are_sums_over_the_nodes():
    report = make_report()
    assert (report.flops, report.macs) == (106, 50)


def test_peak_memory_is_the_highest_of_the_nodes_and_parameters_come_on_top():
    report = make_report(parameter_memory=200)
    assert (report.peak_memory, report.peak_memory_with_parameters) == (2048, 2248)
    assert make_report(nodes=()).peak_memory == 0


def test_modules_are_inclusive_and_the_root_is_the_total():
    assert make_report().modules == {
        "": ModuleTotal("Net", 106, 50, 2048),
        "body": ModuleTotal("Body", 106, 50, 2048),
        "body.up": ModuleTotal("Linear", 40, 20, 1600),
        "body.down": ModuleTotal("Linear", 60, 30, 2048),
        "body.drop": ModuleTotal("Dropout", 0, 0),
    }


def test_module_that_runs_twice_counts_twice():
    report = make_report()
    again = replace(report.nodes[1], name="body_up_1")
    assert replace(report, nodes=(*report.nodes, again)).modules["body.up"].flops == 80


def test_functions_add_up_by_place_and_name():
    nodes = (
        Node("add", "call_function", "add", "", "Net", 3, 0),
        Node("add_1", "call_method", "add", "", "Net", 4, 0),
        Node("add_2", "call_function", "add", "body", "Body", 5, 0),
        Node("view", "call_method", "view", "", "Net", 0, 0),
        Node("body_up", "call_module", "body.up", "body.up", "Linear", 40, 20),
    )
    assert make_report(nodes=nodes).functions == {("", "add"): 7, ("body", "add"): 5}


@pytest.mark.parametrize(
    ("path", "around"), [("", [""]), ("a", ["a", ""]), ("a.b.c", ["a.b.c", "a.b", "a", ""])]
)
def test_enclosing(path, around):
    assert list(enclosing(path)) == around


@pytest.mark.parametrize(
    ("name", "base"),
    [("add", "add"), ("add_12", "add"), ("conv2d_1", "conv2d"), ("_1", "_1"), ("to_x", "to_x")],
)
def test_base_name(name, base):
    assert base_name(name) == base
