"""A suite that uses no budget pays nothing for the plugin: no torch, and next to no time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import pytest_flops

PACKAGE = Path(pytest_flops.__file__).parent
TORCH_ROOMS = {"counting", "formulas", "measuring", "torch_flops"}
ROOMS = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path.relative_to(PACKAGE).with_suffix("").parts[0] not in TORCH_ROOMS
)
HEAVY = ("torch", "tabulate", "numpy")


def heavy_after(statement: str) -> str:
    code = f"{statement}\nimport sys\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_no_room_of_the_plugin_imports_anything_heavy():
    assert heavy_after("\n".join(f"import {room}" for room in ROOMS)) == "[]"


def test_the_check_above_can_fail():
    assert heavy_after("import tabulate") == "['tabulate']"


@pytest.mark.parametrize("args", [(), ("-n1",), ("--flops-update",)])
def test_a_run_without_budgets_imports_no_torch(pytester, args):
    pytester.makepyfile("import sys\ndef test_it(): assert 'torch' not in sys.modules")
    pytester.runpytest_subprocess(*args).assert_outcomes(passed=1)


def test_a_collected_budget_imports_no_torch(pytester):
    pytester.makepyfile(
        "import pytest, sys\n"
        "@pytest.mark.flops_budget(flops='1G', rtol=0.1, latency='1ms', cuda_memory='1GB')\n"
        "def test_net(flops): pass\n"
        "def test_it(): assert not {'torch', 'tabulate'} & set(sys.modules)"
    )
    pytester.runpytest_subprocess("-k", "test_it").assert_outcomes(passed=1, deselected=1)


UNUSED_ROOMS = {"pytest_flops"} | {
    f"pytest_flops.{room}"
    for room in (
        *("budgets", "budgets.budget", "budgets.paths", "errors", "metrics", "units"),
        *("plugin", "plugin.ledger", "plugin.options"),
    )
}


def test_an_unused_plugin_imports_nothing_but_a_few_small_rooms(pytester, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile("import sys\ndef test_it(): print('modules', *sorted(sys.modules))")

    def imported(*args: str) -> set[str]:
        lines = pytester.runpytest_subprocess("-s", *args).outlines
        return next({*line.split()[1:]} for line in lines if "modules " in line)

    assert imported("-p", "pytest_flops.plugin") - imported() == UNUSED_ROOMS
