"""Time the first trace of a process against importing torch.

    python tests/benchmarks/bench_first.py [--rounds 5] [--json FILE] [--quick]

Each model is traced in processes of its own, as a user waits for it who runs one test. The first trace
includes the import of our own rooms. Ratios are to importing torch in that process, by the processor's
seconds. The modules are those of PyTorch's compiler and of sympy that the trace brought in: there should be
none.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from harness import parser, table, write_json

MODELS = {
    "MLP": ("nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))", "torch.randn(2, 8)"),
    "CNN": (
        "nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), "
        "nn.Conv2d(8, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))",
        "torch.randn(1, 3, 32, 32)",
    ),
    "LSTM": ("nn.LSTM(8, 16, 2)", "torch.randn(5, 2, 8)"),
    "encoder": (
        "nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2)",
        "torch.randn(2, 7, 16)",
    ),
}
SCRIPT = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
start = time.process_time()
import torch
torch_s = time.process_time() - start
from torch import nn
model, x = {model}, {x}
before = set(sys.modules)
start = time.process_time()
from pytest_flops import trace
trace(model, (x,))
first_s = time.process_time() - start
start = time.process_time()
trace(model, (x,))
second_s = time.process_time() - start
brought = set(sys.modules) - before
heavy = sorted(name for name in brought if name.split(".")[0] == "sympy" or name in {compiler})
print(json.dumps(dict(torch_s=torch_s, first_s=first_s, second_s=second_s, heavy=heavy)))
"""
COMPILER = {"torch._dynamo", "torch._inductor", "torch.fx.experimental.symbolic_shapes"}


def run(model: str, x: str) -> dict[str, Any]:
    """Trace a model twice in a process of its own, on one thread."""
    script = SCRIPT.format(model=model, x=x, compiler=COMPILER)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def row(name: str, rounds: int) -> dict[str, Any]:
    """Return the medians of one model over so many processes."""
    found = [run(*MODELS[name]) for _ in range(rounds)]
    return {
        "model": name,
        "import torch, s": statistics.median(each["torch_s"] for each in found),
        "first trace, s": statistics.median(each["first_s"] for each in found),
        "ratio": statistics.median(each["first_s"] / each["torch_s"] for each in found),
        "second trace, ms": 1e3 * statistics.median(each["second_s"] for each in found),
        "modules": ", ".join(sorted({module for each in found for module in each["heavy"]})),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=5, metavar="N", help="processes a model (default: 5)")
    chosen = options.parse_args(arguments)
    rows = [row(name, 1 if chosen.quick else chosen.rounds) for name in MODELS]
    table(rows, "The first trace of a process (to reach: at most 0.10 of importing torch)", digits=3)
    write_json(chosen.json, {"models": rows})


if __name__ == "__main__":
    sys.exit(main())
