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

# By name, since the process that waits for workers does without torch.
SCRIPTED = """
import pytest
from pytest_flops.results.measured import Latency


@pytest.fixture(autouse=True)
def scripted(monkeypatch):
    rooms, measured = "pytest_flops.measuring", Latency(2.0, 20.0, 0.01, 9, 1)
    monkeypatch.setattr(f"{rooms}.latency.latency_of", lambda *args, **options: measured)
    monkeypatch.setattr(f"{rooms}.machine.fingerprint", lambda *args, **options: "EPYC")
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


DRIVER = """
import sys
import pytest

for options in sys.argv[1:]:
    pytest.main(options.split())
    print("the end of", options, flush=True)
"""
RUNS = {"plain": [], "verbose": ["-v"], "quiet": ["-q"], "workers": ["-n1"]}


@pytest.fixture(scope="session")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Run pytest at a terminal, in one process as often as there are ways; return the lines of each run."""
    folder = tmp_path_factory.mktemp("terminal")
    for name, text in {"conftest": SCRIPTED, "net": NET, "test_it": TESTS}.items():
        (folder / f"{name}.py").write_text(text)
    ours, theirs = pty.openpty()
    runs = {name: " ".join([*QUICK, *options]) for name, options in RUNS.items()}
    command, env = [sys.executable, "-c", DRIVER, *runs.values()], os.environ | {"COLUMNS": "100"}
    with subprocess.Popen(command, cwd=folder, stdout=theirs, stderr=theirs, env=env):
        os.close(theirs)
        text = b"".join(iter(lambda: read(ours), b"")).decode()
    os.close(ours)
    found = {}
    for name, options in runs.items():
        run, _, text = text.partition(f"the end of {options}\r\n")
        found[name] = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", run).replace("\r\n", "\n").split("\n")
    return found


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


def test_a_line_per_model_stands_between_the_dots(shown):
    lines = shown["plain"]
    assert between(lines, "test_it.py") == [
        "test_it.py .",
        "flops: measuring Net: latency ... 0.0 s",
        "test_it.py .",
        f"flops: measuring slow: {AGAIN}",
        "test_it.py F.".ljust(93) + "[100%]",
    ]
    assert lines.count("kept") == 1
    assert "captured" not in lines


def test_verbose_runs_name_the_test_again(shown):
    assert between(shown["verbose"], "test_it.py::test_before")[1:4] == [
        "test_it.py::test_net",
        "flops: measuring Net: latency ... 0.0 s",
        "test_it.py::test_net PASSED".ljust(93) + "[ 50%]",
    ]


@pytest.mark.parametrize("how", ["quiet", "workers"])
def test_nothing_is_shown_in_quiet_runs_and_by_workers(shown, how):
    assert any("1 failed, 3 passed" in line for line in shown[how])
    assert not [line for line in shown[how] if "measuring" in line]


@pytest.mark.parametrize("args", [("-s",), ("-p", "no:terminal"), ("-p", "no:capture")])
def test_nothing_is_shown_where_there_is_no_terminal(pytester, run_inside, args):
    pytester.makeconftest(SCRIPTED)
    result = run_inside(TESTS, *args)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.no_fnmatch_line("*measuring*")
