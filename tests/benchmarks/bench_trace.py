"""Time `trace()` against a bare forward pass of the same model on the meta device.

    python tests/benchmarks/bench_trace.py [--rounds 9] [--json FILE] [MODEL ...]

The three are run in turn, one intra-op thread, and each round gives a ratio, so that a machine whose speed
drifts does not matter; the table has the median of the ratios. "cold" starts with an empty memo, as the first
trace of a process does; "warm" has seen the model before.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
from pathlib import Path

import timm
import torch
from tabulate import tabulate
from torch.utils.benchmark import Timer

from pytest_flops import trace
from pytest_flops.shapes import forget

MODELS = [
    "resnet50",
    "vit_base_patch16_224",
    "swin_tiny_patch4_window7_224",
    "convnext_tiny",
    "efficientnet_b0",
    "mobilenetv3_large_100",
]
STATEMENTS = {"bare": "model(x)", "cold": "forget(); trace(model, x)", "warm": "trace(model, x)"}


def measure(name: str, rounds: int) -> dict[str, float]:
    """Return milliseconds of each statement and ratios to the bare forward pass: medians over the rounds."""
    with torch.device("meta"):
        model, x = timm.create_model(name).eval(), torch.randn(1, 3, 224, 224)
    names = {"model": model, "x": x, "trace": trace, "forget": forget}
    timers = {key: Timer(stmt, globals=names, num_threads=1) for key, stmt in STATEMENTS.items()}
    times: dict[str, list[float]] = {key: [] for key in timers}
    with torch.no_grad():
        for _ in range(rounds + 1):
            gc.collect()
            for key, timer in timers.items():
                times[key].append(timer.timeit(1).median * 1e3)
    medians = {f"{key} ms": statistics.median(values[1:]) for key, values in times.items()}
    ratios = {
        f"{key}/bare": statistics.median(
            a / b for a, b in zip(times[key][1:], times["bare"][1:], strict=True)
        )
        for key in ("cold", "warm")
    }
    return {"ops": len(trace(model, x).nodes), **medians, **ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time trace() against a bare forward on meta.")
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = {name: measure(name, options.rounds) for name in options.models}
    rows = [{"model": name, **figures} for name, figures in found.items()]
    for key in ("cold/bare", "warm/bare"):
        found.setdefault("geometric mean", {})[key] = statistics.geometric_mean(row[key] for row in rows)
    rows.append({"model": "geometric mean", **found["geometric mean"]})
    print(f"torch {torch.__version__}, timm {timm.__version__}, {options.rounds} rounds, one thread")
    print(tabulate(rows, headers="keys", floatfmt=".2f"))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
