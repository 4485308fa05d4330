"""The benchmarks still run: with --quick each writes the figures that it is there for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent

pytestmark = pytest.mark.slow


@pytest.fixture
def quick(tmp_path: Path) -> Any:
    """Run a script with --quick and return what it wrote as JSON."""

    def run(script: str) -> Any:
        file = tmp_path / "figures.json"
        command = [sys.executable, str(HERE / f"{script}.py"), "--quick", "--json", str(file)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        figures = json.loads(file.read_text())
        assert figures["machine"]["torch"]
        return figures

    return run


def test_bench_trace(quick: Any) -> None:
    counters = quick("bench_trace")["counters"]
    assert counters.keys() == {"floor", "trace, cold", "trace, warm", "FlopCounterMode"}
    ratios = {name: by_model["resnet18"]["ratio"] for name, by_model in counters.items()}
    assert all(ratio > 0 for ratio in ratios.values())
    assert counters["trace, cold"]["resnet18"]["count"] == counters["trace, warm"]["resnet18"]["count"] > 0
    assert counters["FlopCounterMode"]["resnet18"]["MiB"] > 0


def test_bench_zoo(quick: Any) -> None:
    runs = quick("bench_zoo")["runs"]
    assert runs.keys() == {"plain", "update", "compare", "workers"}
    for name, run in runs.items():
        assert run["figures"]["models"] == 3
        assert run["figures"]["construction"] > 0
        assert (run["figures"]["trace"] > 0) == (name != "plain")
    assert [*runs["compare"]["tests"], *runs["workers"]["tests"]] == ["main", "gw0"]


def test_bench_giants(quick: Any) -> None:
    figures = quick("bench_giants")
    assert [row["layers"] for row in figures["layers"]] == [1, 2]
    assert [row["tokens"] for row in figures["tokens"]] == [128, 1024]
    assert figures["models"][0]["G params"] == pytest.approx(8.03, abs=0.01)  # as published
    assert figures["models"][0]["warm"] > 0


def test_bench_masks(quick: Any) -> None:
    figures = quick("bench_masks")
    assert len(figures["masks"]) == 2 * 2 * 3
    assert all(row["seconds"] > 0 and row["to ones"] > 0 and row["MiB"] < 500 for row in figures["masks"])
    assert [row["MiB"] < 500 for row in figures["lists"]] == [True]


def test_bench_collection(quick: Any) -> None:
    rows = {(row["tests"], row["run"]): row for row in quick("bench_collection")["rows"]}
    runs = ("plain", "update", "compare", "plain workers", "workers", "notes")
    assert rows.keys() == {(20, run) for run in runs}
    assert rows[20, "compare"]["trace"] > 0
    assert rows[20, "compare"]["inside"] > 0
    assert rows[20, "plain"]["trace"] == 0


def test_bench_startup(quick: Any) -> None:
    figures = quick("bench_startup")
    assert figures["without"] > 0
    assert "pytest_flops.plugin" in figures["modules"]


def test_bench_first(quick: Any) -> None:
    rows = quick("bench_first")["models"]
    assert [row["model"] for row in rows] == ["MLP", "CNN", "LSTM", "encoder"]
    for row in rows:
        assert row["first trace, s"] > 0
        assert row["modules"] == ""
