"""Totals derive from nodes: inclusive by module, and functional work by place."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from pytest_flops.metrics import Cost, Held
from pytest_flops.results.report import ModuleTotal, base_name, enclosing
from tests.fakes import leaf_report, make_report, node


def test_totals_are_sums_over_the_nodes():
    report = make_report()
    assert (report.flops, report.macs) == (106, 50)


def test_peak_memory_is_the_highest_of_the_nodes_and_parameters_come_on_top():
    report = make_report(parameter_memory=200)
    assert (report.peak_memory, report.peak_memory_with_parameters) == (2048, 2248)
    assert make_report(nodes=()).peak_memory == 0


def test_modules_are_inclusive_and_the_root_is_the_total():
    assert make_report().modules == {
        "": ModuleTotal("Net", Cost(106, 50, 1096, 3), 2048, Held(50, 200)),
        "body": ModuleTotal("Body", Cost(106, 50, 1096, 3), 2048),
        "body.up": ModuleTotal("Linear", Cost(40, 20, 400, 1), 1600),
        "body.down": ModuleTotal("Linear", Cost(60, 30, 600, 1), 2048),
        "body.drop": ModuleTotal("Dropout", Cost(0, 0)),
    }


def test_what_modules_hold_adds_up_to_the_model():
    held = {"": Held(1, 4), "body": Held(2, 8), "body.up": Held(20, 40)}
    found = replace(make_report(), held=held)
    assert (found.params, found.parameter_memory) == (23, 52)
    assert [total.held for total in found.modules.values()][:3] == [Held(23, 52), Held(22, 48), Held(20, 40)]
    assert found.modules["body"].params == 22


def test_intensity_is_flops_per_byte():
    assert make_report().intensity == 106 / 1096
    assert make_report(nodes=()).intensity == 0.0


def test_module_that_runs_twice_counts_twice():
    report = make_report()
    again = replace(report.nodes[1], name="body_up_1")
    assert replace(report, nodes=(*report.nodes, again)).modules["body.up"].flops == 80


def test_functions_add_up_by_place_and_name():
    nodes = (
        node("add", "call_function", "add", "", "Net", 3, 0),
        node("add_1", "call_method", "add", "", "Net", 4, 0),
        node("add_2", "call_function", "add", "body", "Body", 5, 0),
        node("view", "call_method", "view", "", "Net", 0, 0),
        node("body_up", "call_module", "body.up", "body.up", "Linear", 40, 20),
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


# What people see --------------------------------------------------------------------------------------------


def test_repr_is_one_line():
    assert repr(make_report()) == (
        "<Report of Net (eval): 106 FLOPs, 50 MACs, 50 params, 200 bytes of parameter memory, "
        "1.07 KiB of memory traffic, 3 ops, 2.00 KiB of peak memory>"
    )


def test_printed_it_is_a_table_by_module():
    assert (
        str(make_report())
        == """\
module     type      flops    macs    memory_traffic    ops    share
---------  ------  -------  ------  ----------------  -----  -------
(model)    Net         106      50             1,096      3   100.0%
body       Body        106      50             1,096      3   100.0%
body.up    Linear       40      20               400      1    37.7%
body.down  Linear       60      30               600      1    56.6%

Net (eval): 106 FLOPs, 50 MACs, 50 params, 200 bytes of parameter memory, 1.07 KiB of memory traffic, \
3 ops, 2.00 KiB of peak memory"""
    )


def test_a_deep_model_is_printed_as_deep_as_20_rows_go():
    nodes = tuple(node(f"a{i}_b", "call_module", f"a{i}.b", f"a{i}.b", "Linear", 2 + i, 1) for i in range(11))
    types = {"": "Net"} | {path: "Linear" for i in range(11) for path in (f"a{i}", f"a{i}.b")}
    lines = str(make_report(nodes=nodes, module_types=types)).splitlines()
    assert [line.split()[0] for line in lines[2:-2]] == ["(model)", *(f"a{i}" for i in range(11))]
    flat = {"": "Net"} | {f"a{i}.b": "Linear" for i in range(30)}
    many = tuple(node(f"a{i}_b", "call_module", f"a{i}.b", f"a{i}.b", "Linear", 2 + i, 1) for i in range(30))
    assert "a3" not in str(make_report(nodes=many, module_types=flat)), "30 rows are too many, and one is not"


def test_a_report_as_plain_values():
    report = make_report(unsupported={"aten::odd": 2}, parameter_memory=200)
    found = json.loads(json.dumps(report.to_dict()))
    assert found["totals"] == {
        "flops": 106,
        "macs": 50,
        "params": 50,
        "parameter_memory": 200,
        "memory_traffic": 1096,
        "ops": 3,
        "peak_memory": 2048,
    }
    assert (found["parameter_memory"], found["peak_memory_with_parameters"]) == (200, 2248)
    assert found["modules"]["body.up"] == {
        "type": "Linear",
        "peak_memory": 1600,
        "flops": 40,
        "macs": 20,
        "memory_traffic": 400,
        "ops": 1,
        "params": 0,
        "parameter_memory": 0,
    }
    assert found["nodes"][1] == {
        "name": "body_up",
        "op": "call_module",
        "target": "body.up",
        "module": "body.up",
        "module_type": "Linear",
        "peak_memory": 1600,
        "flops": 40,
        "macs": 20,
        "memory_traffic": 400,
        "ops": 1,
        "backward_flops": 0,
        "backward_macs": 0,
        "backward_memory_traffic": 0,
        "backward_ops": 0,
    }
    inside = json.loads(json.dumps(leaf_report(up=20).to_dict()))["nodes"][0]
    assert inside["parts"][1] == {
        "module": "encoder.up",
        "peak_memory": 0,
        "flops": 20,
        "macs": 0,
        "memory_traffic": 0,
        "ops": 0,
    }
    assert found["backward"] == {"flops": 0, "macs": 0, "memory_traffic": 0, "ops": 0}
    assert found["unsupported"] == {"aten::odd": 2}
    fields = {field.name for field in dataclasses.fields(report)} - {"held", "module_types"}
    assert fields <= found.keys(), "everything is there"


class Tags(HTMLParser):
    """The tags of a page, which must be closed in order."""

    def __init__(self, page):
        super().__init__()
        self.open, self.text = [], ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_a_notebook_shows_the_module_tree():
    text = Tags(make_report()._repr_html_()).text
    assert "Net (eval): 106 FLOPs" in text
    assert "down Linear 60 FLOPs (56.6%)" in text
    assert "drop" not in text, "it costs nothing"


def test_names_are_no_html():
    page = make_report(model="<b>Net", nodes=())._repr_html_()
    assert "&lt;b&gt;Net" in page
    assert "<b>" not in page
