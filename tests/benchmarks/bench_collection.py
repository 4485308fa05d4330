"""Run thousands of budget tests of a trivial model: what a test costs beyond its trace, and the summary.

    python tests/benchmarks/bench_collection.py [--tests N ...] [--workers N] [--json FILE] [--quick]

A temporary folder gets one file of parametrised tests that all budget the same `nn.Linear`
(`suites/linear.py`), and pytest runs there in processes of its own, for each number of tests:

- `plain`: without the plugin; `flops(...)` does nothing;
- `update`: with `--flops-update`, which writes a baseline for each test;
- `compare`: against these baselines, as CI does;
- `notes`: with a smaller model than the baselines hold, so that each test gives the summary a line;
- `workers`: as `compare`, on several workers; `plain workers` is the same without the plugin.

`wall` and `cpu` are seconds of the whole run, by the clock and by the processor. Per test, in milliseconds of
the processor: `trace`; `overhead`, what the run takes beyond `plain` and the traces; `inside`, the part of it
that is spent in `flops(...)`; and `outside`, the rest: fixture, hooks, collection, summary. If the summary
were quadratic, `outside` would grow with the number of tests.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import HERE, parser, run_pytest, table, write_json
from stopwatch import laps


def measure(folder: Path, run: str, *options: str) -> dict[str, float]:
    """Run the suite once; return its seconds: of the process, of the budgets, and of the traces in them."""
    for old in folder.glob("laps.*"):
        old.unlink()
    done = run_pytest(folder, "-p", "stopwatch", "--stopwatch", "laps", *options)
    if done.code:
        raise SystemExit(f"The run '{run}' failed:\n{done.output[-4000:]}")
    rows = [row for worker in laps(folder / "laps").values() for row in worker]
    return {
        "wall": done.wall,
        "cpu": done.cpu,
        "budget": sum(row["budget"] for row in rows),
        "trace": sum(row.get("trace", 0.0) for row in rows),
    }


def per_test(run: dict[str, float], plain: dict[str, float], tests: int) -> dict[str, float]:
    """Return a row of the table."""
    ms = 1e3 / tests
    overhead = ms * (run["cpu"] - plain["cpu"] - run["trace"])
    inside = ms * (run["budget"] - run["trace"])
    return {
        "wall": run["wall"],
        "cpu": run["cpu"],
        "trace": ms * run["trace"],
        "overhead": overhead,
        "inside": inside,
        "outside": overhead - inside,
    }


def measure_all(tests: int, workers: int) -> list[dict[str, Any]]:
    """Return the rows for one number of tests."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shutil.copy(HERE / "suites" / "linear.py", folder / "test_linear.py")
        shape = folder / "shape.json"
        shape.write_text(json.dumps({"tests": tests, "outputs": 5}))
        found = {
            "plain": measure(folder, "plain", "-p", "no:flops"),
            "update": measure(folder, "update", "--flops-update"),
            "compare": measure(folder, "compare"),
        }
        if workers:
            split = ("-n", str(workers))
            found["plain workers"] = measure(folder, "plain workers", "-p", "no:flops", *split)
            found["workers"] = measure(folder, "workers", *split)
        shape.write_text(json.dumps({"tests": tests, "outputs": 4}))
        found["notes"] = measure(folder, "notes", "-v")
    return [
        {
            "tests": tests,
            "run": name,
            **per_test(run, found["plain workers" if "workers" in name else "plain"], tests),
        }
        for name, run in found.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument(
        "--tests", type=int, nargs="+", default=[2500, 5000, 10_000], metavar="N", help="numbers of tests"
    )
    options.add_argument("--workers", type=int, default=2, metavar="N", help="pytest-xdist workers; 0: none")
    chosen = options.parse_args(arguments)
    counts, workers = ([20], 1) if chosen.quick else (chosen.tests, chosen.workers)
    rows = [row for count in counts for row in measure_all(count, workers)]
    table(rows, "nn.Linear, one budget per test: seconds of the run, milliseconds per test")
    write_json(chosen.json, {"rows": rows})


if __name__ == "__main__":
    sys.exit(main())
