"""pytest-flops: stop compute regressions of PyTorch models from reaching main.

The names below load on first use, so that importing the package imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_flops.counting.declared import declared_cost
    from pytest_flops.counting.trace import trace
    from pytest_flops.errors import (
        BaselineError,
        BudgetError,
        FlopsError,
        FormulaError,
        MeasurementError,
        TraceError,
    )
    from pytest_flops.formulas import Formula, register_flop_formula
    from pytest_flops.measuring.cuda_memory import measure_cuda_memory
    from pytest_flops.measuring.latency import measure_latency
    from pytest_flops.measuring.propagate import propagate
    from pytest_flops.metrics import Cost
    from pytest_flops.plugin.fixture import Flops
    from pytest_flops.results.measured import Latency, Measurement, Measurements
    from pytest_flops.results.report import ModuleTotal, Node, Report
    from pytest_flops.torch_flops import TorchFLOPsByFX

    __version__: str

__all__ = [
    "BaselineError",
    "BudgetError",
    "Cost",
    "Flops",
    "FlopsError",
    "Formula",
    "FormulaError",
    "Latency",
    "Measurement",
    "MeasurementError",
    "Measurements",
    "ModuleTotal",
    "Node",
    "Report",
    "TorchFLOPsByFX",
    "TraceError",
    "__version__",
    "declared_cost",
    "measure_cuda_memory",
    "measure_latency",
    "propagate",
    "register_flop_formula",
    "trace",
]

_ROOMS = {
    "BaselineError": "errors",
    "BudgetError": "errors",
    "Cost": "metrics",
    "Flops": "plugin.fixture",
    "FlopsError": "errors",
    "Formula": "formulas",
    "FormulaError": "errors",
    "Latency": "results.measured",
    "Measurement": "results.measured",
    "MeasurementError": "errors",
    "Measurements": "results.measured",
    "ModuleTotal": "results.report",
    "Node": "results.report",
    "Report": "results.report",
    "TorchFLOPsByFX": "torch_flops",
    "TraceError": "errors",
    "declared_cost": "counting.declared",
    "measure_cuda_memory": "measuring.cuda_memory",
    "measure_latency": "measuring.latency",
    "propagate": "measuring.propagate",
    "register_flop_formula": "formulas",
    "trace": "counting.trace",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("pytest-flops")
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
