"""Show how latency budgets behave on a busy machine: false alarms, slow-downs caught, and what a check costs.

    python tests/benchmarks/bench_latency.py --json latency.json [--loads 0 1 2] [--quick]

The model is timm's ResNet-18 on one image and one thread; the gate is that of a budget. A load is
a number of processes that come and go at random, every time with other work: Python, matrix products, memory.
As in a repository, a baseline is taken under some load and a check compares with it under another: each check
picks one of the `--baselines` that were taken under each of the loads 0, 1 and 2.

A slowed model runs some of its convolutions twice. How much slower that makes it, is measured by the CPU time
of the quickest runs in turn: the column "true ratio".

With `--json` what is measured is added to what the file holds, after every check, so that the run can be made
in parts: `--loads 0`, then `--loads 1`, then `--loads 2`. The table is about all that the file holds.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from tabulate import tabulate
from torch import Tensor, nn

from pytest_flops import Latency, trace
from pytest_flops.budgets.budget import budget_from
from pytest_flops.counting.trace import Mode, Prepared, traced
from pytest_flops.measuring.machine import fingerprint
from pytest_flops.measuring.reference import REFERENCE_VERSION
from pytest_flops.plugin.measure import measure

LOADS = (0, 1, 2)
_ORDER = tuple(f"layer{stage}.1.conv{place}" for place in (1, 2) for stage in (1, 2, 3, 4))
TWICE = {1.0: (), 1.2: _ORDER[:4], 1.3: _ORDER[:6], 1.5: (*_ORDER, "layer1.0.conv1", "layer1.0.conv2")}
"""The layers that a model slowed by about this factor runs twice: each has 6.35 % of the FLOPs."""


class Twice(nn.Module):
    """A layer that does its work twice."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))


def slowed(factor: float) -> nn.Module:
    """Return a ResNet-18 that takes about this many times as long as the original."""
    model = timm.create_model("resnet18").eval()
    for path in TWICE[factor]:
        model.set_submodule(path, Twice(model.get_submodule(path)))
    return model


# Load -------------------------------------------------------------------------------------------------------


def be_busy(seed: int, ready: Any) -> None:
    """Work and pause in turn, 0.2 to 2 s each, until the parent is gone."""
    torch.set_num_threads(1)
    chance = random.Random(seed)
    matrix, vector = torch.full((384, 384), 0.1), torch.ones(2**23)
    result = torch.empty_like(vector)
    kinds: list[Callable[[], Any]] = [
        partial(sum, range(100_000)),
        partial(torch.mm, matrix, matrix),
        partial(torch.add, vector, 1.0, out=result),
    ]
    parent = os.getppid()
    ready.set()
    while os.getppid() == parent:
        work, until = chance.choice(kinds), time.perf_counter() + chance.uniform(0.2, 2)
        while time.perf_counter() < until:
            work()
        time.sleep(chance.uniform(0.2, 2))


@contextmanager
def load(processes: int, seed: int) -> Iterator[None]:
    """Keep the machine busy with a number of processes until the end of the block."""
    context = multiprocessing.get_context("spawn")
    started = []
    try:
        for index in range(processes):
            ready = context.Event()
            started.append(context.Process(target=be_busy, args=(1000 * seed + index, ready), daemon=True))
            started[-1].start()
            ready.wait()
        yield
    finally:
        for process in started:
            process.terminate()
            process.join()


# Measuring --------------------------------------------------------------------------------------------------


class Results:
    """What was measured, kept in a file as it comes."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        held = json.loads(path.read_text()) if path is not None and path.exists() else {}
        self.machine: str = held.get("machine", "")
        self.true: dict[str, float] = held.get("true", {})
        self.baselines: dict[str, list[float]] = held.get("baselines", {})
        self.checks: list[dict[str, Any]] = held.get("checks", [])

    def save(self) -> None:
        if self.path is not None:
            held = {key: value for key, value in vars(self).items() if key != "path"}
            self.path.write_text(json.dumps(held, indent=1, sort_keys=True) + "\n")

    def require_machine(self, machine: str) -> None:
        """Refuse to add what was measured here to what was measured elsewhere."""
        if self.machine and self.machine != machine:
            raise SystemExit(
                f"{self.path} is of {self.machine}, this machine is {machine}: name another file."
            )
        self.machine = machine


def true_ratio(slow: nn.Module, model: nn.Module, x: Tensor, rounds: int) -> float:
    """Return how many times the CPU time of a model a slowed one takes, by the quickest runs of each."""
    times: dict[nn.Module, list[int]] = {slow: [], model: []}
    with torch.inference_mode():
        for _ in range(rounds):
            for each, taken in times.items():
                started = time.thread_time_ns()
                each(x)
                taken.append(time.thread_time_ns() - started)
    return min(times[slow]) / min(times[model])


def gate(model: nn.Module, x: Tensor, rtol: float, baseline: float | None, update: str | None) -> Any:
    """Measure and judge as a budget with `latency_rtol` does; return the verdict."""
    found = traced(Prepared.of(model, (x,)), Mode())
    machine = fingerprint(found.prepared)
    was = (
        {} if baseline is None else {machine: {"latency": Latency(baseline, 1.0, 0.0, 1, REFERENCE_VERSION)}}
    )
    return measure(found, budget_from([((), {"latency_rtol": rtol})]), was, update=update)


def baseline_ratio(model: nn.Module, x: Tensor, rtol: float) -> float:
    """Return the ratio that `--flops-update` would write."""
    return float(gate(model, x, rtol, None, "all").now["latency"].ratio)


def check(model: nn.Module, x: Tensor, baseline: float, rtol: float) -> dict[str, Any]:
    """Run the gate of a budget once; return what it said and what it cost."""
    started = time.perf_counter()
    verdict = gate(model, x, rtol, baseline, None)
    (finding,) = verdict.findings
    return {
        "slower": finding.grew,
        "ratio": verdict.now["latency"].ratio,
        "tries": verdict.tries,
        "baseline": baseline,
        "seconds": time.perf_counter() - started,
    }


def measure_all(options: argparse.Namespace, results: Results) -> None:
    torch.set_num_threads(1)
    models, x = {factor: slowed(factor) for factor in TWICE}, torch.randn(1, 3, 224, 224)
    results.require_machine(fingerprint(Prepared.of(models[1.0], x)))
    for factor in options.slowdowns:
        results.true.setdefault(str(factor), true_ratio(models[factor], models[1.0], x, options.rounds))
    for count in LOADS:
        missing = options.baselines - len(results.baselines.setdefault(str(count), []))
        with load(count if missing > 0 else 0, options.seed):
            measured = [baseline_ratio(models[1.0], x, options.rtol) for _ in range(missing)]
            results.baselines[str(count)] += measured
    results.save()
    for count in options.loads:
        measure_under(count, models, x, options, results)


def measure_under(
    count: int, models: dict[float, nn.Module], x: Tensor, options: argparse.Namespace, results: Results
) -> None:
    """Make the checks that are still missing under one load, those of different models in turn."""
    wanted = dict.fromkeys(options.slowdowns, options.curve)
    wanted |= {1.0: options.checks, max(options.slowdowns): options.detections}
    held = [check["slowdown"] for check in results.checks if check["load"] == count]
    missing = [factor for factor, number in wanted.items() for _ in range(number - held.count(factor))]
    chance = random.Random(f"{options.seed} {count} {len(held)}")
    chance.shuffle(missing)
    with load(count, options.seed + 1 + len(held)):
        for factor in missing:
            place = chance.choice(LOADS)
            baseline = chance.choice(results.baselines[str(place)])
            found = check(models[factor], x, baseline, options.rtol)
            results.checks.append({"load": count, "slowdown": factor, "baseline load": place, **found})
            results.save()


# Telling ----------------------------------------------------------------------------------------------------


def table(results: Results) -> str:
    """Return a row for each slow-down and load, and for each slow-down under all loads."""
    rows = []
    for factor in sorted({check["slowdown"] for check in results.checks}):
        own = [check for check in results.checks if check["slowdown"] == factor]
        loads = sorted({check["load"] for check in own})
        rows += [row(factor, str(count), [c for c in own if c["load"] == count], results) for count in loads]
        rows.append(row(factor, "all", own, results))
    return tabulate(rows, headers="keys", floatfmt=".3f")


def row(factor: float, loads: str, checks: list[dict[str, Any]], results: Results) -> dict[str, Any]:
    ratios = sorted(check["ratio"] / check["baseline"] for check in checks)
    seconds = sorted(check["seconds"] for check in checks)
    slower = sum(check["slower"] for check in checks)
    return {
        "slow-down": factor,
        "true ratio": results.true.get(str(factor), 1.0),
        "busy": loads,
        "checks": len(checks),
        "slower": slower,
        "share": f"{slower / len(checks):.1%}",
        "again": sum(check["tries"] > 1 for check in checks),
        "ratio: median": statistics.median(ratios),
        "least": ratios[0],
        "most": ratios[-1],
        "median s": statistics.median(seconds),
        "95 % s": seconds[math.ceil(0.95 * len(seconds)) - 1],
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="False alarms and detections of latency budgets.")
    parser.add_argument("--loads", type=int, nargs="+", default=LOADS, help="numbers of busy processes")
    parser.add_argument("--checks", type=int, default=67, help="of the unchanged model, under each load")
    parser.add_argument(
        "--detections", type=int, default=34, help="of the model slowed most, under each load"
    )
    parser.add_argument("--curve", type=int, default=17, help="of the others, under each load")
    parser.add_argument("--slowdowns", type=float, nargs="+", default=[1.2, 1.3, 1.5], choices=TWICE)
    parser.add_argument("--baselines", type=int, default=5, help="taken under each load")
    parser.add_argument("--rounds", type=int, default=40, help="runs of each model for the true ratio")
    parser.add_argument("--rtol", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="add the results to this file")
    parser.add_argument("--quick", action="store_true", help="a few checks of everything")
    options = parser.parse_args()
    if options.quick:
        options.checks, options.detections, options.curve, options.baselines, options.rounds = 3, 2, 1, 1, 10
    return options


def main() -> None:
    options = arguments()
    results = Results(options.json)
    measure_all(options, results)
    print(f"{results.machine}; torch {torch.__version__}, timm {timm.__version__}, rtol {options.rtol}")
    for factor in options.slowdowns:
        flops = work(factor) / work(1.0)
        print(
            f"slowed by {factor}: {flops:.3f} times the FLOPs, {results.true[str(factor)]:.3f} the CPU time"
        )
    print(table(results))


def work(factor: float) -> int:
    """Return the FLOPs of a slowed model."""
    with torch.device("meta"):
        return trace(slowed(factor), torch.empty(1, 3, 224, 224)).flops


if __name__ == "__main__":
    main()
