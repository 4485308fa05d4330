"""Measured budgets in real runs of pytest: the model is real, the clock is a script that the test writes."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest
import torch

from tests.runs import QUICK, load_torch

load_torch()

# Patched for the whole run, since CUDA is asked for before any fixture; but where workers run the tests, not
# in the process that waits for them, which does without torch.
SCRIPTED = """
import json
from pathlib import Path

import pytest

from pytest_flops.errors import MeasurementError
from pytest_flops.results.measured import Latency


def latency_of(ready, **options):
    script = json.loads(Path("script.json").read_text())
    answer = script["latency"]
    with open("asked.txt", "a") as asked:
        print(options, file=asked)
    if isinstance(answer, str):
        raise MeasurementError(answer)
    return Latency(answer, 10 * answer, 0.01, 100, script["reference"])


def cuda_memory_of(ready):
    return json.loads(Path("script.json").read_text())["cuda_memory"]


def fingerprint(prepared, **options):
    return json.loads(Path("script.json").read_text())["machine"]


def pytest_configure(config):
    config.patches = patches = pytest.MonkeyPatch()
    if not config.getoption("numprocesses", 0):
        patches.setattr("pytest_flops.measuring.latency.latency_of", latency_of)
        patches.setattr("pytest_flops.measuring.cuda_memory.cuda_memory_of", cuda_memory_of)
        patches.setattr("pytest_flops.measuring.machine.fingerprint", fingerprint)
        patches.setattr("torch.cuda.is_available", lambda: True)


def pytest_unconfigure(config):
    config.patches.undo()
"""
ROW = "  test_it.py::test_net Net:"
GATED = """
@pytest.mark.flops_budget(latency_rtol=0.2)
def test_net(flops):
    flops(Net(), x())
"""


@pytest.fixture
def script(pytester):
    """Let the measurers of an inner run answer what the test says."""
    pytester.makeconftest(SCRIPTED)

    def write(latency=2.0, cuda_memory=4096, machine="EPYC", reference=1):
        answers = {
            "latency": latency,
            "cuda_memory": cuda_memory,
            "machine": machine,
            "reference": reference,
        }
        (pytester.path / "script.json").write_text(json.dumps(answers))
        (pytester.path / "asked.txt").write_text("")

    write()
    return write


@pytest.fixture
def asked(pytester):
    """Return how often a latency was measured since the script was written."""
    return lambda: len((pytester.path / "asked.txt").read_text().splitlines())


def path(pytester):
    return pytester.path / "flops_baselines" / "test_it" / "test_net.json"


def measured(pytester, model="Net"):
    return json.loads(path(pytester).read_text())["models"][model].get("measured")


def ratios(pytester):
    return {machine: entry["latency"]["ratio"] for machine, entry in measured(pytester).items()}


# The workflow -----------------------------------------------------------------------------------------------


def test_workflow_create_pass_slow_down_fail_accept_pass(pytester, run_inside, script, asked):
    missing = run_inside(GATED)
    missing.assert_outcomes(failed=1)
    assert "Not measured, since the counts already fail: latency." in missing.outlines
    assert asked() == 0

    created = run_inside(None, "--flops-update")
    created.assert_outcomes(passed=1)
    assert f"{ROW} new, 192 FLOPs; latency new, ratio 2 (20 ms) on EPYC" in created.outlines
    assert measured(pytester) == {
        "EPYC": {"latency": {"median_ms": 20.0, "ratio": 2.0, "reference": 1, "samples": 100, "spread": 0.01}}
    }

    script(latency=2.4)
    run_inside(None).assert_outcomes(passed=1)
    assert asked() == 1

    script(latency=3.0)
    slower = run_inside(None)
    slower.assert_outcomes(failed=1)
    assert (
        "Net: at most 1.2x its baseline latency (ratio 2, 20 ms on EPYC, latency_rtol 0.2), "
        "now ratio 3 (30 ms): +50.00%, measured 3 times"
    ) in slower.outlines
    assert "Accept it: pytest test_it.py::test_net --flops-update" in slower.outlines
    assert asked() == 3
    assert ratios(pytester) == {"EPYC": 2.0}

    accepted = run_inside(None, "--flops-update")
    accepted.assert_outcomes(passed=1)
    assert f"{ROW} latency ratio 2 -> 3 (30 ms): +50.00% on EPYC" in accepted.outlines
    assert ratios(pytester) == {"EPYC": 3.0}

    passing = run_inside(None)
    passing.assert_outcomes(passed=1)
    assert [line for line in passing.outlines if line.startswith("flops:")] == [
        "flops: 1 model in 1 test within budget"
    ]


def test_faster_is_an_improvement_that_no_strict_run_fails_on(pytester, run_inside, script):
    run_inside(GATED, "--flops-update")
    script(latency=1.5)
    for args in ((), ("--flops-strict",)):
        result = run_inside(None, *args)
        result.assert_outcomes(passed=1)
        assert "flops: improved: lock it in with --flops-update" in result.outlines
        assert f"{ROW} latency ratio 2 -> 1.5 (15 ms): -25.00% on EPYC" in result.outlines
    run_inside(None, "--flops-update")
    assert ratios(pytester) == {"EPYC": 1.5}


def test_ceiling_holds_whatever_the_baseline_and_the_update(pytester, run_inside, script):
    body = GATED.replace("latency_rtol=0.2", "latency='19.9ms', latency_rtol=0.2")
    for args in ((), ("--flops-update",)):
        run_inside(GATED, "--flops-update")
        result = run_inside(body, *args)
        result.assert_outcomes(failed=1)
        assert (
            "Net: at most 19.9 ms (flops_budget latency), now 20 ms on EPYC: +0.50%, measured 3 times"
        ) in result.outlines


def test_a_ceiling_alone_compares_and_stores_nothing(pytester, run_inside, script):
    body = GATED.replace("latency_rtol=0.2", "latency='20ms'")
    run_inside(body, "--flops-update").assert_outcomes(passed=1)
    assert measured(pytester) is None
    result = run_inside(None, "--flops-strict")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*not compared*")


def test_a_ceiling_needs_no_baseline(pytester, run_inside, script):
    run_inside(GATED.replace("latency_rtol=0.2", "latency='20ms', baseline=False")).assert_outcomes(passed=1)
    assert not path(pytester).exists()


# Machines ---------------------------------------------------------------------------------------------------


def test_machines_stand_side_by_side(pytester, run_inside, script):
    run_inside(GATED, "--flops-update")
    before = path(pytester).read_bytes()
    script(latency=5.0, machine="Xeon")
    result = run_inside(None)
    result.assert_outcomes(passed=1)
    assert "flops: not compared: write a baseline with --flops-update" in result.outlines
    assert f"{ROW} latency not compared: no baseline for Xeon" in result.outlines

    strict = run_inside(None, "--flops-strict")
    strict.assert_outcomes(failed=1)
    assert "Net: latency not compared: no baseline for Xeon" in strict.outlines
    assert path(pytester).read_bytes() == before

    run_inside(None, "--flops-update=changed")
    assert path(pytester).read_bytes() == before
    run_inside(None, "--flops-update=new", "--flops-strict").assert_outcomes(passed=1)
    assert ratios(pytester) == {"EPYC": 2.0, "Xeon": 5.0}
    script(latency=9.0, machine="Xeon")
    run_inside(None, "--flops-update")
    assert ratios(pytester) == {"EPYC": 2.0, "Xeon": 9.0}


def test_another_reference_workload_does_not_compare(pytester, run_inside, script):
    run_inside(GATED, "--flops-update")
    script(latency=9.0, reference=2)
    result = run_inside(None)
    result.assert_outcomes(passed=1)
    row = "latency not compared: measured with reference workload 1, this is 2"
    assert f"{ROW} {row}" in result.outlines
    strict = run_inside(None, "--flops-strict")
    strict.assert_outcomes(failed=1)
    assert f"Net: {row}" in strict.outlines
    run_inside(None, "--flops-update").assert_outcomes(passed=1)
    assert measured(pytester)["EPYC"]["latency"]["reference"] == 2


# The file ---------------------------------------------------------------------------------------------------


def test_noise_within_the_tolerance_rewrites_nothing(pytester, run_inside, script):
    run_inside(GATED, "--flops-update")
    before = path(pytester).read_bytes()
    script(latency=2.3)
    result = run_inside(None, "--flops-update")
    assert "flops: updated baselines" not in result.outlines
    assert path(pytester).read_bytes() == before


def test_counting_keeps_what_was_measured(pytester, run_inside, script):
    run_inside(GATED, "--flops-update")
    wider = "def test_net(flops): flops(Net((4, 6)), x())"
    run_inside(wider, "--flops-update").assert_outcomes(passed=1)
    assert ratios(pytester) == {"EPYC": 2.0}
    run_inside("@pytest.mark.flops_budget(latency_rtol=0.2)\n" + wider).assert_outcomes(passed=1)


def test_other_inputs_drop_what_was_measured_with_the_old_ones(pytester, run_inside, script):
    run_inside(GATED, "--flops-update")
    script(latency=7.0, machine="Xeon")
    run_inside(None, "--flops-update")
    script(latency=8.0, machine="Xeon")
    result = run_inside(GATED.replace("x()", "x(3)"), "--flops-update")
    (row,) = (line for line in result.outlines if line.startswith(ROW))
    assert "; what EPYC measured is dropped: it was with other inputs; latency " in row
    assert ratios(pytester) == {"Xeon": 8.0}


def test_a_count_that_fails_is_not_measured_and_one_that_is_accepted_is(pytester, run_inside, script, asked):
    run_inside(GATED, "--flops-update")
    script(latency=2.2)
    grown = GATED.replace("Net()", "Net(shift=True)")
    assert "Not measured, since the counts already fail: latency." in run_inside(grown).outlines
    assert asked() == 0
    run_inside(None, "--flops-update").assert_outcomes(passed=1)
    assert asked() == 1
    assert ratios(pytester) == {"EPYC": 2.0}


def test_counting_never_measures(run_inside, script, asked):
    run_inside("def test_net(flops): flops(Net(), x())", "--flops-update").assert_outcomes(passed=1)
    body = "@pytest.mark.flops_budget(latency='1s')\ndef test_net(flops): flops.count(Net(), x())"
    run_inside(body).assert_outcomes(failed=1)
    assert asked() == 0


# CUDA memory ------------------------------------------------------------------------------------------------

CUDA = GATED.replace("latency_rtol=0.2", "cuda_memory='8KiB', cuda_memory_rtol=0.05")


def test_cuda_memory_has_a_baseline_and_a_ceiling(pytester, run_inside, script):
    created = run_inside(CUDA, "--flops-update")
    assert f"{ROW} new, 192 FLOPs; CUDA memory new, 4,096 bytes (4.00 KiB) on EPYC" in created.outlines
    assert measured(pytester) == {"EPYC": {"cuda_memory": 4096}}
    script(cuda_memory=8193)
    result = run_inside(None)
    result.assert_outcomes(failed=1)
    for line in (
        "Net: at most 8,192 bytes (8.00 KiB) of CUDA memory (flops_budget cuda_memory, on EPYC), "
        "now 8,193 (8.00 KiB): +1 (+0.01%)",
        "Net: at most 4,300 bytes (4.20 KiB) of CUDA memory (baseline 4,096 on EPYC, cuda_memory_rtol 0.05), "
        "now 8,193 (8.00 KiB): +4,097 (+100.02%)",
    ):
        assert line in result.outlines


def test_latency_and_cuda_memory_of_one_machine_come_one_after_the_other(pytester, run_inside, script):
    run_inside(CUDA, "--flops-update")
    run_inside(GATED, "--flops-update")
    assert {*measured(pytester)["EPYC"]} == {"cuda_memory", "latency"}


@pytest.mark.parametrize("how", ["option", "ini"])
def test_runs_on_the_cpu_alone_skip_cuda_budgets_and_say_why(pytester, run_inside, monkeypatch, how):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    pytester.makeini(f"[pytest]\nflops_no_cuda = {'skip' if how == 'ini' else 'error'}")
    args = ["--flops-no-cuda=skip"] if how == "option" else []
    result = run_inside(CUDA + "\ndef test_other(): pass", "-rs", *args)
    result.assert_outcomes(skipped=1, passed=1)
    result.stdout.fnmatch_lines(["SKIPPED * test_it.py:*: no CUDA on this machine (flops_no_cuda = skip)"])


def test_a_cuda_budget_without_cuda_is_an_error(run_inside, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = run_inside(CUDA)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        [
            "flops_budget(cuda_memory=...): there is no CUDA on this machine, so nothing would be measured. "
            "In runs on the CPU alone, skip such tests with --flops-no-cuda=skip or flops_no_cuda = skip in "
            "the ini file."
        ]
    )


def test_a_model_on_the_cpu_fails_its_cuda_budget(run_inside, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    result = run_inside(CUDA.replace("cuda_memory_rtol", "baseline=False, cuda_memory_rtol"))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["Net is on cpu: a cuda_memory budget needs a model on a CUDA device. *"])


# Options, reports, processes --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["option", "ini"])
def test_time_limit_reaches_the_measurement(pytester, run_inside, script, how):
    if how == "ini":
        pytester.makeini("[pytest]\nflops_time_limit = 7.5")
    body = GATED.replace("latency_rtol=0.2", "latency='1s', baseline=False, latency_threads=2, train=True")
    run_inside(body, *(["--flops-time-limit=7.5"] if how == "option" else [])).assert_outcomes(passed=1)
    asked = (pytester.path / "asked.txt").read_text()
    assert asked == "{'threads': 2, 'time_limit': 7.5}\n"


def test_what_cannot_be_measured_fails_with_its_text_alone(run_inside, script):
    script(latency="Net is too slow for its time limit of 60 s.")
    result = run_inside(GATED, "--flops-update")
    result.assert_outcomes(failed=1)
    assert "Net is too slow for its time limit of 60 s." in result.outlines
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*measuring.py*")


@pytest.mark.parametrize("latency", [2.0, 9.0])
def test_measured_numbers_reach_junit_also_of_a_failure(run_inside, script, latency):
    body = GATED.replace("latency_rtol=0.2", "latency='30ms', cuda_memory=5000, baseline=False")
    script(latency=latency)
    run_inside(body, "--junit-xml=out.xml")
    found = {entry.get("name"): entry.get("value") for entry in ElementTree.parse("out.xml").iter("property")}
    assert found["flops:Net:latency_ms"] == str(10 * latency)
    assert found["flops:Net:latency_ratio"] == str(latency)
    assert found["flops:Net:cuda_memory"] == "4096"


def test_a_rerun_measures_anew(run_inside, script, asked):
    body = GATED.replace("latency_rtol=0.2", "latency='30ms', baseline=False")
    script(latency=9.0)
    result = run_inside(body, "--reruns=1", "--junit-xml=out.xml")
    result.stdout.fnmatch_lines(["*1 failed, 1 rerun*"])
    assert asked() == 6
    *_, last = ElementTree.parse("out.xml").iter("testcase")
    assert [entry.get("name") for entry in last.iter("property")].count("flops:Net:latency_ms") == 1


def test_workers_measure_and_report(pytester, run_inside, script):
    run_inside(GATED, "--flops-update")
    script(latency=3.0, machine="Xeon")
    result = pytester.runpytest_subprocess(*QUICK, "-n1")
    result.assert_outcomes(passed=1)
    assert f"{ROW} latency not compared: no baseline for Xeon" in result.outlines


@pytest.mark.usefixtures("quick_latency")
def test_a_real_latency_of_a_real_model(pytester, run_inside):
    body = """
@pytest.mark.flops_budget(latency_rtol=1000, latency="60s")
def test_net(flops):
    flops(Net(), x())
"""
    run_inside(body, "--flops-update").assert_outcomes(passed=1)
    ((machine, entry),) = measured(pytester).items()
    assert ", 1 thread, float32" in machine
    assert entry["latency"]["ratio"] > 0
    result = run_inside(None, "--flops-strict")
    result.assert_outcomes(passed=1)
    assert "flops: 1 model in 1 test within budget" in result.outlines
    quicker = json.loads(path(pytester).read_text())
    quicker["models"]["Net"]["measured"][machine]["latency"]["ratio"] /= 1e9
    path(pytester).write_text(json.dumps(quicker))
    slower = run_inside(None)
    slower.assert_outcomes(failed=1)
    slower.stdout.fnmatch_lines(["Net: at most 1001x its baseline latency (ratio *, measured 3 times"])
