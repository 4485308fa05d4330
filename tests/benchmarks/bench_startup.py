"""Time pytest on a folder with one empty test, with the plugin there but unused and without it.

    python tests/benchmarks/bench_startup.py [--rounds 15] [--json FILE] [--quick]

The two take turns, each in a process of its own; the table has the medians and the median of the differences
within a round. Python finds compiled bytecode, as it does after the first run of anything that is installed.
The modules are those that only the run with the plugin imports.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from harness import parser, run_pytest, table, write_json

WITHOUT: list[str] = []
WITH = ["-p", "pytest_flops.plugin"]
MODULES = """
import sys
from pathlib import Path

def test_nothing():
    Path("modules").write_text(" ".join(sys.modules))
"""


def run(folder: Path, test: str, options: Sequence[str]) -> float:
    """Run a test and return the milliseconds; no other plugin is there, nor its noise."""
    bytecode = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
    return 1e3 * run_pytest(folder, test, *options, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", **bytecode).cpu


def imported(folder: Path, options: Sequence[str]) -> set[str]:
    """Return the modules that a run imports."""
    run(folder, "test_modules.py", options)
    return set((folder / "modules").read_text().split())


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=15, metavar="N", help="pairs of runs (default: 15)")
    chosen = options.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "test_empty.py").write_text("def test_nothing():\n    pass\n")
        pairs = [
            [run(folder, "test_empty.py", options) for options in (WITHOUT, WITH)]
            for _ in range(1 + (1 if chosen.quick else chosen.rounds))
        ][1:]  # the first compiles
        (folder / "test_modules.py").write_text(MODULES)
        modules = sorted(imported(folder, WITH) - imported(folder, WITHOUT))
    found = {
        "without": statistics.median(without for without, _ in pairs),
        "with": statistics.median(with_plugin for _, with_plugin in pairs),
        "difference": statistics.median(with_plugin - without for without, with_plugin in pairs),
    }
    table([found], "Milliseconds of the processor for one empty test (to reach: a difference of at most 20)")
    print(f"\nModules that the plugin brings in: {', '.join(modules)}")
    write_json(chosen.json, {**found, "modules": modules})


if __name__ == "__main__":
    sys.exit(main())
