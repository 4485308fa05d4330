"""Budget every model of timm in one pytest run: what that takes beside building them.

    python tests/benchmarks/bench_zoo.py [--every N] [--match GLOB] [--runs RUN ...] [--json FILE] [--quick]

A temporary folder gets one test per model (`suites/zoo.py`), and pytest runs there in processes of its own:
without the plugin, which is the cost of building the models on meta; with `--flops-update`, which writes the
baselines; against these baselines; and the same on several workers. A model that cannot be traced, or has an
operator without a formula, fails its test, and the script ends with 1.

The columns are seconds: of the whole run by the clock and by the processor, and by the processor of its tests
the construction of the models, `trace`, and what else `flops(model, image)` does (load the baseline,
compare). `budgets` is all of `flops(...)` as a share of the construction. Memory is the resident memory of
the largest process. `alive` is how many models had not been freed at the end of any one test, at most: a
model that is part of a reference cycle waits for Python's collector.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from harness import HERE, parser, run_pytest, table, write_json
from stopwatch import laps

RUNS = {"plain": ["-p", "no:flops"], "update": ["--flops-update"], "compare": [], "workers": []}
"""What pytest is run with; in this order, since `update` writes what the next two read."""

SMALL = ["resnet18", "vit_tiny_patch16_224", "mobilenetv3_small_050"]


def measure(folder: Path, run: str, *options: str) -> dict[str, Any]:
    """Run the suite once; return its figures, its output if it failed, and what each test took."""
    done = run_pytest(folder, "-p", "stopwatch", "--stopwatch", run, *options)
    by_worker = laps(folder / run)
    rows = [row for worker in by_worker.values() for row in worker]
    construction, budget, trace = (
        sum(row.get(key, 0.0) for row in rows) for key in ("construction", "budget", "trace")
    )
    figures = {
        "run": run,
        "models": len(rows),
        "wall": done.wall,
        "cpu": done.cpu,
        "construction": construction,
        "trace": trace,
        "comparison": budget - trace,
        "budgets": budget / construction,
        "peak MiB": max(row["peak_mib"] for row in rows),
        "alive": max(row["alive"] for row in rows),
    }
    return {"figures": figures, "failure": done.output if done.code else "", "tests": by_worker}


def growth(tests: dict[str, list[dict[str, Any]]], points: int = 8) -> list[dict[str, Any]]:
    """Return the resident memory of the first worker after a growing number of models."""
    rows = next(iter(tests.values()))
    counts = sorted({max(1, round(len(rows) * i / points)) for i in range(1, points + 1)})
    return [{"models": count, "MiB": rows[count - 1]["rss_mib"]} for count in counts]


def dearest(tests: dict[str, list[dict[str, Any]]], count: int = 10) -> list[dict[str, Any]]:
    """Return the tests whose budgets took longest."""
    rows = [row for worker in tests.values() for row in worker if "budget" in row]
    rows.sort(key=lambda row: -row["budget"])
    return [
        {"test": row["name"], "construction": row["construction"], "budget": row["budget"]}
        for row in rows[:count]
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and return 1 if a model could not be budgeted."""
    options = parser(__doc__)
    options.add_argument("--every", type=int, default=1, metavar="N", help="take every N-th model")
    options.add_argument("--match", default="", metavar="GLOB", help="only models of such names")
    options.add_argument("--runs", nargs="+", default=list(RUNS), choices=RUNS, help="default: all four")
    options.add_argument("--workers", type=int, default=2, metavar="N", help="pytest-xdist workers")
    chosen = options.parse_args(arguments)
    names = SMALL if chosen.quick else of_timm(chosen.match)[:: chosen.every]
    workers = ["-n", "1" if chosen.quick else str(chosen.workers)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shutil.copy(HERE / "suites" / "zoo.py", folder / "test_zoo.py")
        (folder / "names.json").write_text(json.dumps(names))
        found = {
            run: measure(folder, run, *RUNS[run], *(workers if run == "workers" else []))
            for run in RUNS
            if run in chosen.runs
        }
    report(found)
    write_json(chosen.json, {"models": len(names), "runs": found})
    return int(any(run["failure"] for run in found.values()))


def of_timm(match: str) -> list[str]:
    """Return the names of timm's models that match."""
    import timm  # 4 s of the processor

    return list(timm.list_models(match))


def report(found: dict[str, dict[str, Any]]) -> None:
    """Print what was measured."""
    table([run["figures"] for run in found.values()], f"timm {version('timm')}, one test per model")
    for name, run in found.items():
        table(growth(run["tests"]), f"Memory after so many models, run '{name}'", 0)
        table(dearest(run["tests"]), f"The dearest budgets, in seconds, run '{name}'", 3)
        if run["failure"]:
            print(f"\nThe run '{name}' failed:\n{run['failure']}")


if __name__ == "__main__":
    sys.exit(main())
