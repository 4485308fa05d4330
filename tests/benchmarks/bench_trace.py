"""Compare what `trace()` takes with a bare forward pass on meta, and with other FLOP counters.

    python tests/benchmarks/bench_trace.py [MODEL ...] [--counters NAME ...] [--json FILE] [--quick]

Install the other counters with `pip install -e .[bench]`; one that is missing, or raises on a model, is a
"-", and the reason stands below the tables.

Each counter has a process of its own with one thread, a fork, and takes turns there with a bare forward pass
of the same model on meta: the table has the median of the ratios of each round. The seconds are the
processor's, and the garbage collector waits meanwhile. A counter that cannot take a model on meta gets it on
the CPU, with weights, and is marked "cpu". "cold" starts with an empty memo, as the first trace of a process
does; "warm" has seen the model before. The floor is the user's own Python code: see `counters.Replay`.

Memory is the growth of the peak resident memory of a fresh fork of the process that builds the model and
counts it once: weights, where a counter needs them, are part of it.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from counters import COUNTERS, figures
from harness import parser, table, write_json

MODELS = [
    "resnet50",
    "vit_base_patch16_224",
    "swin_tiny_patch4_window7_224",
    "convnext_tiny",
    "efficientnet_b0",
    "mobilenetv3_large_100",
]
NAMES = ["floor", *COUNTERS]
OURS = {"trace, cold": 0.45, "trace, warm": 0.2}
"""What they are to stay under, as a ratio to the bare forward pass."""
PEERS = [name for name in NAMES if name not in (*OURS, "floor", "bare forward", "bare forward (real)")]

Found = dict[str, dict[str, dict[str, Any]]]


def measure(name: str, rounds: int, models: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return what a counter takes for each model."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as process:
        try:
            return process.submit(figures, name, rounds, models).result()
        except Exception as err:  # also where the process died
            reason = f"{type(err).__name__}: {err}".splitlines()[0]
            return {model: {"reason": reason} for model in models}


def pivot(found: Found, figure: str, *, mean: bool = False) -> list[dict[str, Any]]:
    """Return a row for each counter and a column for each model."""
    rows = []
    for name, by_model in found.items():
        values = {short(model): taken.get(figure) for model, taken in by_model.items()}
        if any(value is not None for value in values.values()):
            where = "/".join(sorted({taken["on"] for taken in by_model.values() if "on" in taken}))
            rows.append({"counter": name, "on": where, **values})
            if mean and None not in values.values():
                rows[-1]["geometric mean"] = statistics.geometric_mean(values.values())
    return rows


def short(model: str) -> str:
    """Return the first two words of a model's name."""
    return "_".join(model.split("_")[:2])


def verdicts(found: Found) -> list[str]:
    """Return what was reached: the geometric means, and where a peer is faster."""
    lines = []
    for name, limit in OURS.items():
        if name in found:
            mean = statistics.geometric_mean(taken["ratio"] for taken in found[name].values())
            faster = [
                f"{peer} on {model}"
                for peer in PEERS
                for model, taken in found.get(peer, {}).items()
                if taken.get("ratio", float("inf")) <= found[name][model]["ratio"]
            ]
            beaten = f"slower than {', '.join(faster)}" if faster else "faster than every peer on every model"
            lines.append(f"{name}: {mean:.2f} of a bare forward pass (to reach: {limit}), {beaten}")
    return lines


def report(found: Found) -> None:
    """Print what was measured."""
    table(pivot(found, "ms"), "Milliseconds of the processor")
    table(pivot(found, "ratio", mean=True), "Ratio to a bare forward pass on meta")
    table(pivot(found, "MiB"), "Peak memory: MiB for building the model and counting it once", 0)
    table(pivot(found, "count"), "What each counts: FLOPs, or MACs (fvcore, ptflops, thop, torchinfo)")
    print()
    for name, by_model in found.items():
        for model, taken in by_model.items():
            if taken.get("reason"):
                where = "on meta" if "on" in taken else "at all"
                print(f"{name} does not take {model} {where}: {taken['reason']}")
    print(*verdicts(found), sep="\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("models", nargs="*", default=MODELS, metavar="MODEL", help="names of timm models")
    options.add_argument(
        "--rounds", type=int, default=9, metavar="N", help="measurements of each (default: 9)"
    )
    options.add_argument(
        "--counters", nargs="+", default=NAMES, choices=NAMES, metavar="NAME", help=f"of {', '.join(NAMES)}"
    )
    chosen = options.parse_args(arguments)
    if chosen.quick:
        chosen.models, chosen.rounds = ["resnet18"], 1
        chosen.counters = ["floor", *OURS, "FlopCounterMode"]
    found: Found = {}
    for name in chosen.counters:
        print(f"{name} ...", file=sys.stderr)
        found[name] = measure(name, chosen.rounds, chosen.models)
    report(found)
    write_json(chosen.json, {"counters": found, "rounds": chosen.rounds})


if __name__ == "__main__":
    sys.exit(main())
