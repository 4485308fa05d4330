"""What people at a terminal see while a model is measured, and nobody else does."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.runs import NET, QUICK, load_torch

pty = pytest.importorskip("pty")
load_torch()

SCRIPTED = """
import pytest
from pytest_flops.measuring import latency
from pytest_flops.measuring import machine
from pytest_flops.results.measured import Latency


@pytest.fixture(autouse=True)
def scripted(monkeypatch):
    monkeypatch.setattr(latency, "latency_of", lambda *args, **options: Latency(2.0, 20.0, 0.01, 9, 1))
    monkeypatch.setattr(machine, "fingerprint", lambda *args, **options: "EPYC")
"""
TESTS = """
from net import *

def test_before(): print("captured")

@pytest.mark.flops_budget(latency="1s", baseline=False)
def test_net(flops):
    print("captured")
    flops(Net(), x())

@pytest.mark.flops_budget(latency="1ms", baseline=False)
def test_slow(flops):
    print("kept")
    flops.named("slow")(Net(), x())
    print("never reached")

def test_after(): pass
"""


@pytest.fixture
def at_terminal(pytester):
    """Run pytest at a terminal, and return its lines as they stand there in the end."""
    pytester.makeconftest(SCRIPTED)
    pytester.makepyfile(net=NET)

    def run(body: str, *args: str) -> list[str]:
        pytester.makepyfile(test_it=body)
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "pytest", *QUICK, *args]
        with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=os.environ | {"COLUMNS": "100"}):
            os.close(theirs)
            shown = b"".join(iter(lambda: read(ours), b""))
        os.close(ours)
        return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", shown.decode()).replace("\r\n", "\n").split("\n")

    return run


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux says so where other systems say that nothing is left
        return b""


def between(lines: list[str], start: str) -> list[str]:
    """Return the lines from the one that starts so to the first empty one."""
    first = next(index for index, line in enumerate(lines) if line.startswith(start))
    return [re.sub(r"\d\.\d s", "0.0 s", line.rstrip()) for line in lines[first : lines.index("", first)]]


AGAIN = "latency ... 0.0 s, latency again (2) ... 0.0 s, latency again (3) ... 0.0 s"


def test_a_line_per_model_stands_between_the_dots(at_terminal):
    lines = at_terminal(TESTS)
    assert between(lines, "test_it.py") == [
        "test_it.py .",
        "flops: measuring Net: latency ... 0.0 s",
        "test_it.py .",
        f"flops: measuring slow: {AGAIN}",
        "test_it.py F.".ljust(93) + "[100%]",
    ]
    assert lines.count("kept") == 1
    assert "captured" not in lines


def test_verbose_runs_name_the_test_again(at_terminal):
    assert between(at_terminal(TESTS, "-v"), "test_it.py::test_before")[1:4] == [
        "test_it.py::test_net",
        "flops: measuring Net: latency ... 0.0 s",
        "test_it.py::test_net PASSED".ljust(93) + "[ 50%]",
    ]


@pytest.mark.parametrize("how", ["-q", "-n1"])
def test_nothing_is_shown_in_quiet_runs_and_by_workers(at_terminal, how):
    assert not [line for line in at_terminal(TESTS, how) if "measuring" in line]


@pytest.mark.parametrize("args", [("-s",), ("-p", "no:terminal"), ("-p", "no:capture")])
def test_nothing_is_shown_where_there_is_no_terminal(pytester, run_inside, args):
    pytester.makeconftest(SCRIPTED)
    result = run_inside(TESTS, *args)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.no_fnmatch_line("*measuring*")
