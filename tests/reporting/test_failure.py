"""Why a test failed, to the letter."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_flops.budgets.baseline import snapshot
from pytest_flops.budgets.budget import budget_from
from pytest_flops.budgets.changes import changes
from pytest_flops.budgets.verdict import MeasuredVerdict, compare, judge_measured
from pytest_flops.metrics import Held
from pytest_flops.reporting.failure import failure_text
from pytest_flops.reporting.measurements import measured_failure_text, uncompared
from pytest_flops.reporting.places import moves
from pytest_flops.results.measured import Latency, Measured
from tests.fakes import make_report, many, node, with_costs, with_peaks

ACCEPT = "pytest test_net.py::test_net --flops-update"


def text(now, was=None, *, full=False, strict=False, updating=False, missing=False, **keywords):
    budget = budget_from([((), keywords)])
    verdict = compare(now, snapshot(now), None if missing else snapshot(was or make_report()), budget)
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


def test_growth_gives_limit_fact_place_and_command():
    assert (
        text(with_costs(make_report(), {"add": 12, "body_up": 47}))
        == """\
Net: at most 106 FLOPs (baseline), now 119: +13 (+12.26%), in body.up and 1 more place

module    type or function    node     FLOPs
--------  ------------------  -------  ------------------
body.up   Linear              body_up  40 -> 47 (+17.50%)
body      add                 add      6 -> 12 (+100.00%)

Net (eval): 119 FLOPs, 50 MACs, 50 params, 200 bytes of parameter memory, 1.07 KiB of memory traffic, \
3 ops, 2.00 KiB of peak memory

Accept it: pytest test_net.py::test_net --flops-update"""
    )


def test_params_and_macs_are_limits_of_their_own():
    fewer = replace(
        make_report(), nodes=make_report().nodes[:2] + make_report().nodes[3:], held={"": Held(49)}
    )
    assert text(make_report(), fewer).splitlines()[:3] == [
        "Net: at most 46 FLOPs (baseline), now 106: +60 (+130.43%), in body.down (new Linear)",
        "Net: at most 20 MACs (baseline), now 50: +30 (+150.00%), in body.down (new Linear)",
        "Net: at most 49 params (baseline), now 50: +1 (+2.04%), in (model)",
    ]


def test_growth_of_a_module_alone_names_the_module():
    assert (
        text(with_costs(make_report(), {"body_up": 47, "body_down": 53}))
        == """\
Net body.up: at most 40 FLOPs (baseline), now 47: +7 (+17.50%)

module     type or function    node       FLOPs
---------  ------------------  ---------  ------------------
body.up    Linear              body_up    40 -> 47 (+17.50%)
body.down  Linear              body_down  60 -> 53 (-11.67%)

Net (eval): 106 FLOPs, 50 MACs, 50 params, 200 bytes of parameter memory, 1.07 KiB of memory traffic, \
3 ops, 2.00 KiB of peak memory

Accept it: pytest test_net.py::test_net --flops-update"""
    )


def test_module_called_flops_is_no_total():
    def report(cost):
        nodes = (
            node("flops", "call_module", "flops", "flops", "Linear", cost, 0),
            node("b", "call_module", "b", "b", "Linear", 20 - cost, 0),
        )
        return make_report(nodes=nodes, module_types={"": "Net", "flops": "Linear", "b": "Linear"})

    assert text(report(12), report(10)).startswith(
        "Net flops: at most 10 FLOPs (baseline), now 12: +2 (+20.00%)\n"
    )


def test_tolerance_is_part_of_the_limit():
    first = text(with_costs(make_report(), {"add": 20}), rtol=0.1).splitlines()[0]
    assert first == "Net: at most 116 FLOPs (baseline 106, rtol 0.1), now 120: +14 (+13.21%), in body: add"


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
        "Net: no baseline in net.json; now 106 FLOPs, 50 MACs, 50 params, 200 bytes of parameter memory, "
        "1.07 KiB of memory traffic, 3 ops, 2.00 KiB of peak memory\n\n"
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


def test_unseen_work_is_listed_with_a_way_out_of_its_own():
    found = {"Tensor.data_ptr": 2, "aten::odd": 1, "kernel outside PyTorch, near a.b.mixer": 1}
    assert text(make_report(unsupported=found)) == (
        "Net: every operator needs a FLOP formula, but there is none for aten::odd (1 call)\n"
        "Net: every work needs a count, but PyTorch does not see that of Tensor.data_ptr (2 calls), "
        "kernel outside PyTorch, near a.b.mixer (1 call)\n\n"
        "Give the operator a formula with pytest_flops.register_flop_formula, or count it as 0 with "
        'flops_budget(unsupported="warn").\n'
        "State what it costs where it is called, `with pytest_flops.declared_cost(flops=...):`, or count "
        'it as 0 with flops_budget(unsupported="warn").'
    )


def test_long_lists_of_changes_are_cut_unless_full():
    was, now = many(30), with_costs(many(30), {f"n{i}": 2000 + i for i in range(30)})
    assert "... and 20 more places; -vv shows all." in text(now, was).splitlines()
    assert "more places;" not in text(now, was, full=True)
    assert sum(line.startswith("n") for line in text(now, was, full=True).splitlines()) == 30


def test_new_and_gone_functions_name_their_nodes():
    nodes = tuple(node(f"mul_{i}", "call_function", "mul", "", "Net", 2, 0) for i in range(5))
    now = make_report(nodes=(*make_report().nodes[:3], *nodes))
    rows = [line for line in text(now).splitlines() if " mul " in line or " add " in line]
    assert rows == [
        "(model)   mul                 mul_0 ... mul_4 (5)  0 -> 10 (new)",
        "body      add                                      6 -> 0 (gone)",
    ]


# Peak memory ------------------------------------------------------------------------------------------------

ROOT_LEAF = node("net", "call_module", "", "", "Linear", 0, 0, peak_memory=8)


def test_grown_peak_names_the_step_and_whose_bytes_grew():
    owners = {"body.up": 1024, "body.down": 1024}
    was = make_report(peak_owners=owners)
    now = with_peaks(make_report(peak_owners={"body": 4096} | owners), {"body_down": 4096, "add": 6144})
    assert (
        text(now, was)
        == """\
Net: at most 2,048 bytes (2.00 KiB) of peak memory (baseline), now 6,144 (6.00 KiB): +4,096 (+200.00%), \
at add in body, for body: 0 -> 4,096 bytes alive then

made by    type    bytes alive at the peak
---------  ------  -------------------------
body       Body    0 -> 4,096 (new)

Accept it: pytest test_net.py::test_net --flops-update"""
    )


def test_without_owners_in_the_baseline_a_peak_names_those_of_now():
    now = with_peaks(make_report(peak_owners={"body": 4000, "body.up": 2144}), {"add": 6144})
    lines = text(now).splitlines()
    assert lines[0].endswith("+4,096 (+200.00%), at add in body")
    assert lines[2:6] == [
        "made by    type    bytes alive at the peak",
        "---------  ------  -------------------------",
        "body       Body    4,000",
        "body.up    Linear  2,144",
    ]


def test_layers_whose_bytes_changed_alike_share_a_row():
    types = {"": "Net"} | {f"seq.{i}": "Linear" for i in range(4)}
    was, now = (
        make_report(module_types=types, peak_owners={f"seq.{i}": size for i in range(4)}) for size in (8, 9)
    )
    now = with_peaks(now, {"add": 9999})
    assert "seq.[0-3] x4  Linear  8 -> 9 (+12.50%)" in text(now, was).splitlines()


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


def test_long_list_of_owners_is_cut_unless_full():
    was, now = (make_report(peak_owners={f"n{c}": size for c in "abcdefgh"}) for size in (8, 9))
    now = with_peaks(now, {"add": 9999})
    assert "... and 3 more modules; -vv shows all." in text(now, was).splitlines()
    assert "more modules" not in text(now, was, full=True)


# Places -----------------------------------------------------------------------------------------------------


def test_what_changed_first_is_named_where_it_is_not_what_changed_most():
    nodes = [node(f"n{i}", "call_module", f"n{i}", f"n{i}", "Linear", 10, 5) for i in range(3)]
    types = {"": "Net"} | {f"n{i}": "Linear" for i in range(3)}
    was = make_report(nodes=tuple(nodes), module_types=types)
    first = text(with_costs(was, {"n1": 11, "n2": 30}), was).splitlines()[0]
    assert (
        first == "Net: at most 30 FLOPs (baseline), now 51: +21 (+70.00%), in n2 and 1 more place, from n1 on"
    )


def test_a_new_module_stands_for_all_that_is_inside():
    def report(*blocks):
        paths = [f"seq.{i}.{name}" for i in blocks for name in ("conv", "norm")] + ["fc"]
        nodes = [node(path.replace(".", "_"), "call_module", path, path, "Leaf", 10, 5) for path in paths]
        types = {"": "Net", "seq": "Sequential"} | {f"seq.{i}": "Block" for i in blocks}
        return make_report(nodes=tuple(nodes), module_types=types | dict.fromkeys(paths, "Leaf"))

    now = with_costs(report(0, 1), {"fc": 12})
    lines = text(now, report(0)).splitlines()
    assert lines[0].endswith("+22 (+73.33%), in seq.1 (new Block) and 1 more place"), "it is the first, too"
    assert lines[5].split() == ["seq.1", "Block", "seq_1_conv,", "seq_1_norm", "0", "->", "20", "(new)",
                                "0", "->", "10", "(new)"]  # fmt: skip


def test_modules_that_grew_alike_while_the_total_did_not_share_a_line():
    nodes = [node(f"n{i}", "call_module", f"seq.{i}", f"seq.{i}", "Linear", 10, 5) for i in range(4)]
    nodes.append(node("fc", "call_module", "fc", "fc", "Linear", 100, 5))
    types = {"": "Net", "fc": "Linear"} | {f"seq.{i}": "Linear" for i in range(4)}
    was = make_report(nodes=tuple(nodes), module_types=types)
    first = text(with_costs(was, {f"n{i}": 11 for i in range(4)} | {"fc": 96}), was).splitlines()[0]
    assert first == "Net seq.[0-3] x4, each: at most 10 FLOPs (baseline), now 11: +1 (+10.00%)"


def test_acceptance_says_what_else_it_accepts():
    now, was = with_costs(make_report(), {"add": 7}), snapshot(make_report())
    budget = budget_from([])
    found = failure_text("Net", now, compare(now, snapshot(now), was, budget), budget,
                         accept=ACCEPT, file="net.json", unreached=["decode"])  # fmt: skip
    assert found.splitlines()[-1] == f"Accept it: {ACCEPT} (and what this run did not reach: decode)"


def test_nothing_is_offered_that_would_not_work():
    assert "Accept it" not in text(with_costs(make_report(), {"add": 7}), flops=106)


@pytest.mark.parametrize(
    ("now", "was", "expected"),
    [
        ((("matmul", 1), ("softmax", 2)), (("attention", 1),), "- attention  + matmul, softmax"),
        ((), (("view", 0),), ""),
    ],
)
def test_what_moved_is_named_by_function(now, was, expected):
    def report(steps):
        nodes = tuple(
            node(name, "call_function", name, "", "Net", 5, 0, 9, 4 * ops, ops) for name, ops in steps
        )
        return make_report(nodes=nodes, module_types={"": "Net"})

    assert moves(changes(snapshot(report(now)), snapshot(report(was)))) == expected


# What was measured ------------------------------------------------------------------------------------------

EPYC = "AMD EPYC, AVX2, 1 thread, float32"


def latency(ratio: float, median_ms: float, reference: int = 1) -> Measured:
    return {"latency": Latency(ratio, median_ms, 0.01, 100, reference)}


def measured_text(now, was=None, *, strict=False, update=None, tries=1, **keywords):
    budget = budget_from([((), keywords)])
    verdict = MeasuredVerdict(EPYC, judge_measured(now, was or {}, budget), was or {}, tries)
    return measured_failure_text("Net", verdict, accept=ACCEPT, strict=strict, update=update)


def test_slower_than_the_baseline():
    assert measured_text(latency(3.01, 53.0), latency(2.31, 41.2), latency_rtol=0.2, tries=3) == (
        "Net: at most 1.2x its baseline latency (ratio 2.31, 41.2 ms on AMD EPYC, AVX2, 1 thread, float32, "
        "latency_rtol 0.2), now ratio 3.01 (53 ms): +30.30%, measured 3 times\n"
        "\n"
        "Accept it: pytest test_net.py::test_net --flops-update"
    )


def test_slower_than_a_ceiling():
    assert measured_text(latency(2.0, 41.2), latency="30ms", tries=3) == (
        "Net: at most 30 ms (flops_budget latency), now 41.2 ms on AMD EPYC, AVX2, 1 thread, float32: "
        "+37.33%, measured 3 times\n"
        "\n"
        "Lower the cost or raise the limit in flops_budget; --flops-update lifts no limit."
    )


def test_ceiling_and_baseline_are_both_reported():
    lines = measured_text(
        latency(3.0, 12_340.0), latency(2.0, 40.0), latency="1.5s", latency_rtol=0, tries=3
    ).splitlines()
    assert [line.partition(" on AMD")[0] for line in lines] == [
        "Net: at most 1,500 ms (flops_budget latency), now 12,340 ms",
        "Net: at most 1x its baseline latency (ratio 2, 40 ms",
        "",
        "Lower the cost or raise the limit in flops_budget; --flops-update lifts no limit.",
        "Accept it: pytest test_net.py::test_net --flops-update",
    ]


def test_update_says_that_a_broken_latency_kept_the_baseline():
    found = measured_text(latency(3.0, 53.0), latency="30ms", latency_rtol=0, update="all")
    assert found.splitlines()[2:] == [
        "",
        "Lower the cost or raise the limit in flops_budget; --flops-update lifts no limit.",
        "The baseline was not written.",
    ]


def test_more_cuda_memory():
    was, now = {"cuda_memory": 12_845_056}, {"cuda_memory": 25_690_112}
    assert measured_text(now, was, cuda_memory="16MiB", cuda_memory_rtol=0.05) == (
        "Net: at most 16,777,216 bytes (16.00 MiB) of CUDA memory (flops_budget cuda_memory, on AMD EPYC, "
        "AVX2, 1 thread, float32), now 25,690,112 (24.50 MiB): +8,912,896 (+53.12%)\n"
        "Net: at most 13,487,308 bytes (12.86 MiB) of CUDA memory (baseline 12,845,056 on AMD EPYC, AVX2, "
        "1 thread, float32, cuda_memory_rtol 0.05), now 25,690,112 (24.50 MiB): +12,845,056 (+100.00%)\n"
        "\n"
        "Lower the cost or raise the limit in flops_budget; --flops-update lifts no limit.\n"
        "Accept it: pytest test_net.py::test_net --flops-update"
    )


@pytest.mark.parametrize(
    ("was", "reason"),
    [
        ({}, f"no baseline for {EPYC}"),
        (latency(2.0, 40.0, reference=1), "measured with reference workload 1, this is 2"),
    ],
)
def test_what_is_not_compared_fails_strict_runs(was, reason):
    now = latency(2.0, 40.0, reference=2)
    assert measured_text(now, was, latency_rtol=0.2, strict=True) == (
        f"Net: latency not compared: {reason}\n\nAccept it: pytest test_net.py::test_net --flops-update"
    )
    (finding,) = judge_measured(now, was, budget_from([((), {"latency_rtol": 0})]))
    assert uncompared(finding, EPYC) == f"latency not compared: {reason}"


def test_counts_that_fail_say_that_nothing_was_measured():
    assert text(with_costs(make_report(), {"add": 7}), latency="30ms", cuda_memory_rtol=0).endswith(
        "Not measured, since the counts already fail: latency and CUDA memory.\n"
        "Accept it: pytest test_net.py::test_net --flops-update"
    )
