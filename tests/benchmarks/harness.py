"""What the benchmarks share: the options that all have, the table and the JSON, and the memory of a process.

Only Linux is supported: memory is read from `/proc`.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

HERE = Path(__file__).parent


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    made.add_argument("--quick", action="store_true", help="measure just enough to see that the script works")
    return made


def table(rows: Sequence[Mapping[str, Any]], title: str, digits: int = 2) -> None:
    """Print rows under a title."""
    print(f"\n{title}")
    print(tabulate(rows, headers="keys", floatfmt=f",.{digits}f", intfmt=",", missingval="-"))


def write_json(file: Path | None, figures: Mapping[str, Any]) -> None:
    """Write what was measured and on what, if a file was asked for."""
    if file is not None:
        content = {"machine": machine(), **figures}
        file.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def machine() -> dict[str, Any]:
    """Return what the figures depend on beside the code."""
    import torch

    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {**versions, "cores": os.cpu_count(), "processor": platform.processor() or platform.machine()}


def resident_mib() -> float:
    """Return the memory that this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak_mib() -> float:
    """Return the most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


class Done(NamedTuple):
    """What a run of pytest took, in seconds of the clock and of the processor, and what it printed."""

    wall: float
    cpu: float
    code: int
    output: str


def run_pytest(folder: Path, *arguments: str, **environment: str) -> Done:
    """Run pytest in a folder, in a process of its own, with one thread and none of the project's settings."""
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": "", **environment}
    # A benchmark that a worker of pytest-xdist tests is no worker itself.
    given = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-W", "ignore", "--rootdir=.", *arguments]
    start, cpu = time.perf_counter(), children_cpu()
    done = subprocess.run(command, cwd=folder, env={**given, **own}, capture_output=True, text=True)
    return Done(time.perf_counter() - start, children_cpu() - cpu, done.returncode, done.stdout + done.stderr)


def children_cpu() -> float:
    """Return the processor's seconds of all processes started so far that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def peak_growth_mib(function: Callable[..., Any], *args: Any) -> float:
    """Call a function; return by how much the memory of this process exceeded at most what it was."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = resident_mib()
    function(*args)
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**10 - before
