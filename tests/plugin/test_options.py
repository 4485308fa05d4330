"""Options through the command line and through the ini file, and manners towards pytest and other plugins."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from pytest_flops.metrics import COUNTED
from tests.runs import load_torch

load_torch()

BLOCK = "def test_net(flops): flops(Block({}), x())\n"


@pytest.mark.parametrize("how", ["option", "ini"])
@pytest.mark.parametrize(
    ("name", "value", "was", "now", "with_it", "without"),
    [
        ("flops_update", "all", 100, 101, "passed", "failed"),
        ("flops_strict", "true", 100, 99, "failed", "passed"),
        ("flops_rtol", "0.01", 100, 101, "passed", "failed"),
    ],
)
def test_every_option_can_stand_in_the_ini_file(
    pytester, run_inside, how, name, value, was, now, with_it, without
):
    run_inside(BLOCK.format(was), "--flops-update")
    run_inside(BLOCK.format(now)).assert_outcomes(**{without: 1})
    option = f"--{name.replace('_', '-')}"
    if how == "ini":
        pytester.makeini(f"[pytest]\n{name} = {value}")
    args = [option if value == "true" else f"{option}={value}"] if how == "option" else []
    run_inside(None, *args).assert_outcomes(**{with_it: 1})


def test_command_line_overrules_the_ini_file(pytester, run_inside):
    run_inside(BLOCK.format(100), "--flops-update")
    pytester.makeini("[pytest]\nflops_rtol = 0.01")
    run_inside(BLOCK.format(101), "--flops-rtol=0").assert_outcomes(failed=1)


@pytest.mark.parametrize(
    ("ini", "message"),
    [
        ("flops_update = old", "ERROR: flops_update = old: not valid. Give new, changed or all."),
        ("flops_no_cuda = no", "ERROR: flops_no_cuda = no: not valid. Give error or skip."),
        (
            "flops_time_limit = 1m",
            "ERROR: flops_time_limit='1m' is not valid. Give a number of seconds above 0, such as 60.",
        ),
        (
            "flops_rtol = 1%",
            "ERROR: flops_rtol='1%' is not a tolerance. Give a fraction of the baseline of at least 0: "
            "0.01 lets it grow by 1 %.",
        ),
    ],
)
def test_wrong_ini_values(pytester, run_inside, ini, message):
    pytester.makeini(f"[pytest]\n{ini}")
    result = run_inside(BLOCK.format(1))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert message in result.errlines


def test_help_and_markers(pytester):
    text = str(pytester.runpytest_inprocess("--help").stdout)
    for word in (
        "--flops-update",
        "--flops-strict",
        "--flops-prune",
        "--flops-rtol=FRACTION",
        "--flops-time-limit=SECONDS",
        "--flops-no-cuda=error|skip",
    ):
        assert word in text
    for name in (
        "flops_update (string):",
        "flops_strict (bool):",
        "flops_prune (bool):",
        "flops_rtol (string):",
        "flops_time_limit (string):",
        "flops_no_cuda (string):",
    ):
        assert name in text
    assert "@pytest.mark.flops_budget(flops=None, " in str(pytester.runpytest_inprocess("--markers").stdout)


def test_strict_markers_know_ours(run_inside):
    body = f"@pytest.mark.flops_budget(baseline=False, flops='1k')\n{BLOCK.format(2)}"
    run_inside(body, "--strict-markers", "--strict-config").assert_outcomes(passed=1)


def test_without_the_plugin_the_fixture_is_unknown_and_nothing_else_breaks(run_inside):
    result = run_inside(f"{BLOCK.format(2)}\ndef test_other(): pass", "-p", "no:flops")
    result.assert_outcomes(passed=1, errors=1)


@pytest.mark.parametrize("option", ["--collect-only", "--setup-plan"])
def test_runs_that_run_nothing_write_and_say_nothing(pytester, run_inside, option):
    result = run_inside(BLOCK.format(2), option, "--flops-update")
    assert result.ret == 0
    result.stdout.no_fnmatch_line("flops:*")
    assert not list(pytester.path.rglob("flops_baselines"))


def test_totals_reach_junit(pytester, run_inside):
    run_inside(
        "def test_net(flops): flops.named('b')(Block(2), x())", "--flops-update", "--junit-xml=out.xml"
    )
    properties = ElementTree.parse(Path("out.xml")).findall(".//testcase/properties/property")
    assert [(found.get("name"), found.get("value")) for found in properties] == [
        ("flops:b:flops", "48"),
        ("flops:b:macs", "24"),
        ("flops:b:params", "17"),
        ("flops:b:parameter_memory", "68"),
        ("flops:b:memory_traffic", "148"),  # 6 and 4 numbers around 8 weights, 4 and 6 around 9
        ("flops:b:ops", "2"),
        ("flops:b:peak_memory", "40"),
    ]


def test_attempts_of_a_rerun_test_share_nothing(pytester, run_inside):
    body = """
attempts = []

def test_net(flops):
    attempts.append(1)
    flops(Block(2), x())
    if len(attempts) == 1:
        flops.named("only the first time")(Block(3), x())
        assert False
"""
    result = run_inside(body, "--reruns=1", "--flops-update", "--junit-xml=out.xml")
    result.stdout.fnmatch_lines(["flops: 1 model in 1 test within budget", "*1 passed, 1 rerun*"])
    (saved,) = pytester.path.rglob("test_net.json")
    assert "first time" not in saved.read_text()
    *_, last = ElementTree.parse(Path("out.xml")).findall(".//testcase")
    names = [found.get("name") for found in last.findall("properties/property")]
    assert names == [f"flops:Block:{metric.name}" for metric in COUNTED]


def test_last_failed_reruns_the_broken_budget(pytester, net):
    pytester.makepyfile(test_it=f"from net import *\n{BLOCK.format(2)}\ndef test_other(): pass")
    quick = ("-p", "no:hypothesispytest")
    pytester.runpytest_inprocess(*quick).assert_outcomes(failed=1, passed=1)
    pytester.runpytest_inprocess(*quick, "--lf", "--flops-update").assert_outcomes(passed=1)
    pytester.runpytest_inprocess(*quick).assert_outcomes(passed=2)


def test_what_a_failed_attempt_measured_does_not_count_for_the_next(run_inside):
    body = """
attempts = []

@pytest.mark.flops_budget(baseline=False, flops="1k")
def test_net(request):
    attempts.append(1)
    if len(attempts) == 1:
        request.getfixturevalue("flops")(Block(2), x())
        assert False
"""
    result = run_inside(body, "--reruns=1")
    result.stdout.fnmatch_lines(["*measured nothing*"])
