"""What only running shows, as data: how long a model or a step of it takes, and how much memory.

No torch here: the numbers are stored, compared and printed without it. The wing `measuring` takes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pytest_flops.results.columns import MeasuredRow, measurement_table
from pytest_flops.results.report import Node


@dataclass(frozen=True, slots=True)
class Latency:
    """How long one forward pass takes, by itself and as a ratio to a fixed workload run in turn with it."""

    ratio: float
    """The median over the pairs of (a run of the model / the runs of the reference around it), which budgets
    compare."""
    median_ms: float
    """The median time of one forward pass, without the time that it waited for a core (see `clocks`)."""
    spread: float
    """The interquartile range of the ratios as a fraction of their median."""
    samples: int
    """The number of pairs."""
    reference: int
    """The version of the reference workload: ratios to different ones do not compare."""


Quantity = int | Latency
"""A value of a metric: a count, a number of bytes, or a latency."""

Measured = Mapping[str, Quantity]
"""What was measured of one model on one machine, by metric."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one step took: a node of the trace with its time and the memory allocated around it.

    All is None for inputs, outputs and ops that no Python function called: nothing was measured there.
    """

    node: Node
    """The node, as `trace` found it."""
    time_ms: float | None
    """Wall time on the CPU, device time on CUDA."""
    memory_before_bytes: int | None
    """Bytes allocated before the step: on CUDA all of the device's, on the CPU what the run allocated itself,
    and None if a profiler runs already."""
    memory_after_bytes: int | None
    """Bytes allocated after the step."""
    memory_peak_bytes: int | None
    """The most bytes allocated in between."""

    @property
    def memory_delta_bytes(self) -> int | None:
        """What the step left allocated; negative where it freed more."""
        if self.memory_after_bytes is None or self.memory_before_bytes is None:
            return None
        return self.memory_after_bytes - self.memory_before_bytes

    @property
    def row(self) -> MeasuredRow:
        """The values under `columns.MEASURED_COLUMNS`."""
        node, before, after = self.node, self.memory_before_bytes, self.memory_after_bytes
        return (
            *(node.name, node.op, node.target, node.module_type, node.flops),
            *(self.time_ms, before, after, self.memory_delta_bytes),
        )


class Measurements(tuple[Measurement, ...]):
    """What each step of a forward pass took, in the order in which they ran."""

    __slots__ = ()

    @property
    def time_ms(self) -> float:
        """The sum of the steps' times."""
        return math.fsum(measured.time_ms or 0.0 for measured in self)

    @property
    def peak_memory_bytes(self) -> int | None:
        """The most memory allocated during any step; None where none was read."""
        return max((m.memory_peak_bytes for m in self if m.memory_peak_bytes is not None), default=None)

    def table(self) -> str:
        """Return a row for each node, with the columns of torch_flops, and the totals."""
        flops = sum(measured.node.flops for measured in self)
        totals = [f"{flops:,} FLOPs", f"{self.time_ms:.3f} ms"]
        if self.peak_memory_bytes is not None:
            totals.append(f"peak memory {self.peak_memory_bytes:,} B")
        return f"{measurement_table([measured.row for measured in self])}\n\nTotal: {', '.join(totals)}"
