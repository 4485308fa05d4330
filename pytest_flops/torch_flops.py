"""`TorchFLOPsByFX`: a drop-in for the class of that name in torch_flops, with the integers that it prints.

The rows are those of the `torch.fx` graph, as there, and each carries the FLOPs that `trace` counts. Where
torch_flops counts an operation in another way, the tables of quirks at the end of this file say how: nowhere
else do its rules live.
Where torch.fx cannot trace the model, or froze a branch that this input does not take, the rows are the steps
of the concrete run: torch_flops refuses such models, so there are no integers of its own to reproduce and the
quirks stay out.

What torch_flops does not recognise counts as 0 in its totals; here it is counted, by our convention. That is
the one difference on purpose, beside these:

- `F.interpolate`: torch_flops multiplies the sizes asked for, or takes the scale to the power of the batch
  size. Here it is what the arithmetic is.
- Norm modules without affine parameters other than LayerNorm, keyword arguments of operators, models without
  parameters or not on CUDA: torch_flops fails; here they count like all others.
- `ignore_ops` blanks only the FLOPs of a row, so that the total time stays a number.
- The model keeps its training flag; torch_flops leaves it in eval mode.
"""

from __future__ import annotations

import csv
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, fx, nn
from torch.overrides import handle_torch_function

from pytest_flops.counting.preserve import Untouched
from pytest_flops.counting.trace import trace
from pytest_flops.errors import FlopsError, MeasurementError, TraceError
from pytest_flops.measuring.propagate import propagate
from pytest_flops.results.columns import MEASURED_COLUMNS, measurement_table
from pytest_flops.results.measured import Measurement
from pytest_flops.results.report import Report, base_name

MemoryFunction = Literal["memory_allocated", "max_memory_allocated"]
Row = list[str | int | float | None]

COLUMNS = tuple(column.header for column in MEASURED_COLUMNS)
IGNORED = "ignored"


class TorchFLOPsByFX:
    """Count and measure a model by its torch.fx graph, with the interface and the numbers of torch_flops.

    `mem_func_name` says which memory `propagate` reads after each node: what is allocated
    ("memory_allocated") or the peak while it ran ("max_memory_allocated"), on the CPU and on CUDA.
    `ignore_ops` names operations that count nothing: functions ("add"), methods ("softmax"), module classes
    ("Linear").
    """

    def __init__(
        self,
        model: nn.Module,
        mem_func_name: MemoryFunction = "max_memory_allocated",
        ignore_ops: str | Sequence[str] = (),
    ) -> None:
        if mem_func_name not in ("memory_allocated", "max_memory_allocated"):
            raise FlopsError(
                f"mem_func_name={mem_func_name!r}: choose 'memory_allocated' or 'max_memory_allocated'."
            )
        self.model = model
        self.mem_func_name = mem_func_name
        self.ignore_ops = (ignore_ops,) if isinstance(ignore_ops, str) else tuple(ignore_ops)
        self.result_header = list(COLUMNS)
        self.result_table: list[Row] = []
        self._graph_model: fx.GraphModule | None = None
        self._unsupported = 0

    @property
    def graph_model(self) -> fx.GraphModule:
        """The model as a torch.fx graph, built on first access.

        Raises `TraceError` where torch.fx cannot trace it: counting works all the same.
        """
        if self._graph_model is None:
            try:
                self._graph_model = _graph_model(self.model)
            except Exception as err:
                raise TraceError(
                    f"torch.fx cannot trace {type(self.model).__name__}, so it has no graph_model "
                    f"({type(err).__name__}: {_first_line(err)}). propagate counts it all the same."
                ) from err
        return self._graph_model

    def propagate(self, *args: Any, **kwargs: Any) -> None:
        """Run the model on these inputs, counted and measured; the other methods tell what came of it."""
        report = trace(self.model, args, kwargs)
        rows = self._graph_rows(report, args, kwargs)
        if rows is None:
            rows = [_Row.of(measured) for measured in propagate(self.model, args, kwargs)]
        self._unsupported = sum(report.unsupported.values())
        self.result_table = [row.cells(self.mem_func_name, self.ignore_ops) for row in rows]

    def _graph_rows(
        self, report: Report, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> list[_Row] | None:
        """Return a row per node of the graph; None where there is no graph that does what the model does."""
        try:
            runner = _GraphRunner(self.graph_model)
            inputs = _in_order(self.model, args, kwargs)
            counted = trace(runner, inputs)
        except Exception:  # the model itself ran: what failed is the graph, or what fx froze into it
            return None
        if (counted.flops, counted.macs) != (report.flops, report.macs):
            return None
        measured = {m.node.name: m for m in propagate(runner, inputs)}
        return [
            _Row.of_graph(node, measured.get(node.name), runner.quirks.get(node.name))
            for node in self.graph_model.graph.nodes
        ]

    def print_result_table(self, show: bool = True) -> list[Row]:
        """Print the table of nodes; return its rows.

        Raises `MeasurementError` before `propagate`.
        """
        self._require_rows()
        if show:
            print(measurement_table(self.result_table))
        return self.result_table

    def print_total_flops(self, show: bool = True) -> int:
        """Print and return the total FLOPs."""
        counted = [flops for flops in self._column("flops") if isinstance(flops, int)]
        total = sum(counted)
        others = len(self.result_table) - len(counted) + self._unsupported
        if show:
            note = f" ({others} operations are ignored or not recognized)" if others else ""
            print(f"total_flops = {total:,}{note}")
        return total

    def print_total_time(self, show: bool = True) -> float:
        """Print and return the sum of the nodes' times, in milliseconds."""
        total = math.fsum(time for time in self._column("time(ms)") if isinstance(time, float))
        if show:
            print(f"total_time = {total:.3f} ms")
        return total

    def print_max_memory(self, show: bool = True) -> int | None:
        """Print and return the largest memory after a node, in bytes; None where it was not measured."""
        known = [memory for memory in self._column("mem_after_op") if isinstance(memory, int)]
        most = max(known, default=None)
        if show:
            print(f"max_memory = {'not measured' if most is None else f'{most:,} Bytes'}")
        return most

    def save_result_to_csv(self, file_path: str | Path, mode: str = "a") -> None:
        """Write the columns, the rows and an empty line to a file, after what it holds unless mode is "w"."""
        with open(file_path, mode, newline="") as file:
            writer = csv.writer(file)
            writer.writerow(self.result_header)
            writer.writerows(self.result_table)
            file.write("\n")

    def _require_rows(self) -> None:
        if not self.result_table:
            raise MeasurementError("Nothing was measured yet: call propagate(...) first.")

    def _column(self, name: str) -> list[str | int | float | None]:
        self._require_rows()
        index = COLUMNS.index(name)
        return [row[index] for row in self.result_table]


# Rows -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """One row of the table, before `ignore_ops` and `mem_func_name` have their say.

    `operation` is the name of the function or method that it calls, "" for all else.
    """

    name: str
    op: str
    target: str
    operation: str
    module_type: str
    flops: int
    measured: Measurement | None

    @classmethod
    def of(cls, measured: Measurement) -> _Row:
        """Return the row of a step of the concrete run."""
        node = measured.node
        operation = base_name(node.name) if node.op in ("call_function", "call_method") else ""
        module_type = node.module_type if node.module else ""
        return cls(node.name, node.op, node.target, operation, module_type, node.flops, measured)

    @classmethod
    def of_graph(cls, node: fx.Node, measured: Measurement | None, quirk: int | None) -> _Row:
        """Return the row of a node of the graph, which was not measured where it ran no tensor operation."""
        operation = _operation(node.target) if node.op in ("call_function", "call_method") else ""
        stack = list(node.meta.get("nn_module_stack", {}).values())
        module_type = stack[-1][1].__name__ if stack else ""
        flops = measured.node.flops if measured is not None else 0
        flops = flops if quirk is None else quirk
        return cls(node.name, node.op, _shown(node.target), operation, module_type, flops, measured)

    def cells(self, mem_func_name: MemoryFunction, ignore_ops: Sequence[str]) -> Row:
        """Return the values under `COLUMNS`; memory is None where nothing keeps account of it."""
        flops: int | str = 0 if self.operation in ignore_ops else self.flops
        if self.module_type in ignore_ops:
            flops = IGNORED
        time = (self.measured.time_ms if self.measured is not None else None) or 0.0
        memory = _memory(self.measured, mem_func_name)
        return [self.name, self.op, self.target, self.module_type, flops, time, *memory]


def _memory(measured: Measurement | None, mem_func_name: MemoryFunction) -> Sequence[int | None]:
    if measured is None or measured.memory_before_bytes is None:
        return None, None, None
    before = measured.memory_before_bytes
    peak = mem_func_name == "max_memory_allocated"
    after = measured.memory_peak_bytes if peak else measured.memory_after_bytes
    return before, after, None if after is None else after - before


def _operation(target: Any) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", "")


def _shown(target: Any) -> str:
    """Return a target as torch_flops prints it, without the address that changes from run to run."""
    text = str(target)
    for address in (" of type object", " at 0x"):
        if address in text:
            return f"{text.partition(address)[0]}>"
    return text


# Running the graph ------------------------------------------------------------------------------------------


def _graph_model(model: nn.Module) -> fx.GraphModule:
    with Untouched(model.modules()):
        return fx.symbolic_trace(model.eval())


def _in_order(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the inputs as the graph takes them: one for each parameter of `forward`, in its order."""
    bound = inspect.signature(model.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    return *bound.args, *bound.kwargs.values()


class _GraphRunner(nn.Module):
    """A model that runs a graph node by node, so that a trace has one step per node, by the node's name."""

    def __init__(self, graph_model: fx.GraphModule) -> None:
        super().__init__()
        self.graph_model = graph_model
        self.quirks = _Notes()

    def forward(self, *inputs_of_the_graph: Any) -> Any:
        return _Interpreter(self.graph_model, self.quirks).run(*inputs_of_the_graph)


class _Notes(dict[str, int]):
    """FLOPs by node name. A plain dict would be put back when the trace leaves the runner as it found it."""


class _Interpreter(fx.Interpreter):
    def __init__(self, graph_model: fx.GraphModule, quirks: dict[str, int]) -> None:
        super().__init__(graph_model)
        self.quirks = quirks
        self.node = ""

    def run_node(self, n: fx.Node) -> Any:
        self.node = n.name
        return super().run_node(n)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = self._step(super().call_module, target, args, kwargs)
        module = self.fetch_attr(target)
        return self._noting(MODULE_QUIRKS.get(type(module).__name__), result, module, *args, **kwargs)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = self._step(super().call_function, target, args, kwargs)
        return self._noting(FUNCTION_QUIRKS.get(_operation(target)), result, *args, **kwargs)

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        shape = _shape(args[0])  # before the call, which may change it
        result = self._step(super().call_method, target, args, kwargs)
        return self._noting(METHOD_QUIRKS.get(target), result, shape)

    def _step(self, run: Callable[..., Any], *args: Any) -> Any:
        """Run a node's work as one call of a function of its name, as a recorder sees it."""
        return handle_torch_function(_Named(self.node), (), run, *args)

    def _noting(self, quirk: Callable[..., int | None] | None, result: Any, *args: Any, **kwargs: Any) -> Any:
        flops = quirk(result, *args, **kwargs) if quirk is not None else None
        if flops is not None:
            self.quirks[self.node] = flops
        return result


class _Named:
    """A function by the name of a node, which runs what it is given."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __call__(self, run: Callable[..., Any], *args: Any) -> Any:
        return run(*args)


# What torch_flops counts in another way ---------------------------------------------------------------------


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _size(result: Tensor) -> int:
    return math.prod(result.shape)


def _times(flops: int) -> Callable[..., int]:
    """A fixed number per element of the result."""
    return lambda result, *_, **__: flops * _size(result)


def _arithmetic(result: Any, *_: Any, **__: Any) -> int | None:
    """One per element, whatever the operands; and one where Python calculates with plain numbers.

    This is where the last 2 of the 35,164,979,282 of a ViT-B/16 come from: its patch embedding compares the
    height and the width of the image with what it was built for.
    """
    if isinstance(result, Tensor):
        return _size(result)
    return 1 if isinstance(result, (int, float)) else None


def _pool(taken_off: int) -> Callable[..., int | None]:
    """A kernel size given as one int counts once, not once per dimension: 2 comparisons in a 3×3 max-pool."""

    def quirk(result: Tensor, module: Any, *_: Any, **__: Any) -> int | None:
        kernel = module.kernel_size
        return (kernel - taken_off) * _size(result) if isinstance(kernel, int) else None

    return quirk


def _adaptive_pool(taken_off: int) -> Callable[..., int | None]:
    """All windows count as one size: in ÷ out, and where that leaves a remainder, remainder + 1."""

    def quirk(result: Any, module: Any, x: Tensor, **_: Any) -> int | None:
        if not isinstance(result, Tensor):
            return None
        sides = zip(x.shape[2:], result.shape[2:], strict=True)
        window = math.prod(i % o + 1 if i % o else i // o for i, o in sides)
        return (window - taken_off) * _size(result)

    return quirk


def _convolution(result: Tensor, x: Tensor, weight: Tensor, *_: Any, **kwargs: Any) -> int:
    """A functional convolution has a bias only if it comes by keyword, and else one less per group."""
    window = 2 * math.prod(weight.shape[1:])
    groups = kwargs.get("groups") or 1
    return (window - (kwargs.get("bias") is None) * groups) * _size(result)


def _sum(result: Tensor, shape: tuple[int, ...]) -> int:
    """Results and terms change places: terms · (results − 1). Only a sum over everything has n − 1."""
    results = [size for size in result.shape if size != 1]
    if not results:
        return math.prod(shape) - 1
    terms = [size for size in shape if size != 1]
    for size in results:
        terms.remove(size)
    return math.prod(terms) * (math.prod(results) - 1)


Quirks = Mapping[str, Callable[..., int | None]]

MODULE_QUIRKS: Quirks = {
    **dict.fromkeys(("AvgPool1d", "AvgPool2d", "AvgPool3d"), _pool(0)),
    **dict.fromkeys(("MaxPool1d", "MaxPool2d", "MaxPool3d"), _pool(1)),
    **dict.fromkeys(("AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "AdaptiveAvgPool3d"), _adaptive_pool(0)),
    **dict.fromkeys(("AdaptiveMaxPool1d", "AdaptiveMaxPool2d", "AdaptiveMaxPool3d"), _adaptive_pool(1)),
    "LayerNorm": _times(4),  # as if it always had weight and bias
    "LeakyReLU": _times(4),
}
FUNCTION_QUIRKS: Quirks = {
    **dict.fromkeys(("add", "sub", "mul", "truediv", "eq"), _arithmetic),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    "floordiv": lambda *_, **__: 0,
    "leaky_relu": _times(4),
}
METHOD_QUIRKS: Quirks = {
    "div": _times(1),
    "pow": lambda *_, **__: 0,
    "sum": _sum,
}
"""The rules of torch_flops 0.4.1 that differ from ours, by module class, function and method name.

Each takes the result and what the operation was given (for a method only the shape of its tensor) and returns
FLOPs, or None where the two agree. What is not listed counts the same.
"""


def _first_line(err: BaseException) -> str:
    return (str(err).strip() or type(err).__name__).splitlines()[0]
