"""`propagate`: real tensors through the real model, and the time and memory that each step took.

The steps are those that `trace` counts, by the same names. A step's work runs by itself while it is measured:
no mode counts or records, and PyTorch takes the same fast paths as ever. What is left of the recording
costs about a microsecond per step, outside the measured time.

Memory is what PyTorch's allocator says: CUDA's in the same run, the CPU's in one more, under the profiler.
"""

from __future__ import annotations

import math
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

# Private, for want of a public way to let a leaf run without the mode that recorded its call.
from torch.overrides import _get_current_function_mode_stack

from pytest_flops.counting.live_memory import LiveMemory
from pytest_flops.counting.recorder import Recorder, Step, recording
from pytest_flops.counting.shapes import Sink
from pytest_flops.counting.subject import Subject
from pytest_flops.errors import MeasurementError
from pytest_flops.measuring.probes import Probe, Timer, probes_for
from pytest_flops.measuring.ready import Ready, first_line, is_device_failure, is_out_of_memory
from pytest_flops.reporting.tables import MeasuredRow, measurement_table
from pytest_flops.results.report import Node


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one step took: a node of the trace with its time and the memory allocated around it.

    `time_ms` is wall time on the CPU and device time on CUDA. The memory is what was allocated before and
    after the step, and the peak in between: on CUDA all of the device's, on the CPU what the run allocated
    itself, and None if a profiler runs already. All four are None for inputs, outputs and ops that no Python
    function called: nothing was measured there.
    """

    node: Node
    time_ms: float | None
    memory_before_bytes: int | None
    memory_after_bytes: int | None
    memory_peak_bytes: int | None

    @property
    def memory_delta_bytes(self) -> int | None:
        """What the step left allocated; negative where it freed more."""
        if self.memory_after_bytes is None or self.memory_before_bytes is None:
            return None
        return self.memory_after_bytes - self.memory_before_bytes

    @property
    def row(self) -> MeasuredRow:
        """The values under `table.MEASURED_COLUMNS`."""
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


def propagate(
    model: Callable[..., Any],
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    warmup: int = 1,
) -> Measurements:
    """Run a model on real tensors, on its own device, and return what each step took.

    The arguments are those of `trace`; inputs are copied to the model's device. The model runs in eval mode
    and without gradients, `warmup` times unmeasured, then once measured, on the CPU twice: for its time and
    for its memory. It is left as it was found. On CUDA this resets the device's peak memory statistics.

    Raises `MeasurementError` where the model is on meta or on several devices, runs out of memory or takes
    other steps than on shapes alone; `TraceError` for what cannot be counted; and whatever the model raises.
    """
    ready = Ready.of(model, args, kwargs)
    timer, scale = probes_for(ready.device)
    with ready.contents_kept():
        for _ in range(warmup):
            recorded_pass(ready, timer)
        timed = recorded_pass(ready, timer)
        weighed = timed
        if scale is not None and ready.device.type == "cpu":  # CUDA has read both at once
            weighed = recorded_pass(ready, scale)
    times, memory = _readings(ready, timed), _readings(ready, weighed)
    found = []
    for position, node in ready.run.recorder.nodes_by_step().items():
        is_read = position in times
        elapsed = _elapsed_ms(node, timer, times[position]) if is_read else None
        allocated = scale.memory(*memory[position]) if is_read and scale else None
        found.append(Measurement(node, elapsed, *(allocated or (None, None, None))))
    return Measurements(found)


# One pass ---------------------------------------------------------------------------------------------------


class _Open:
    """Which step is open, and nothing else: a run that measures does not count."""

    sink: Sink | None = None
    answered = 0
    memory = LiveMemory()

    def read(self, tensor: Any, name: str) -> None:
        """Values may leave PyTorch while time is taken."""


class Stopwatch(Recorder):
    """Record the steps of one forward pass with a reading before and after each."""

    def __init__(self, root_type: str, probe: Probe) -> None:
        super().__init__(root_type)
        self.probe = probe
        self.readings: dict[int, tuple[Any, Any]] = {}

    def run_step(
        self, step: Step, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        position = len(self.steps)
        self.steps.append(step)
        self.meter.sink = step
        with self._aside():
            before = self.probe.before()
            try:
                return run(*args, **kwargs)
            finally:
                self.readings[position] = before, self.probe.after()
                self.meter.sink = None

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Take this mode off the stack for the work of a leaf: PyTorch's fast paths refuse under a mode."""
        stack = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
        if not stack or stack[-1] is not self:  # a function's own call: PyTorch has taken it off already
            yield
            return
        self.__exit__(None, None, None)
        try:
            yield
        finally:
            self.__enter__()


def recorded_pass(ready: Ready, probe: Probe) -> Stopwatch:
    """Run the model once and let a probe read before and after each step.

    Raises `MeasurementError` where it runs out of memory, naming the node.
    """
    args, kwargs = ready.fresh_inputs()
    stopwatch = Stopwatch(ready.run.recorder.root_type, probe)
    for name in ready.inputs.named(ready.subject.signature):
        stopwatch.mark("placeholder", name)
    try:
        with _recorded(ready, stopwatch), probe:
            ready.subject.run(args, kwargs)
    except (MemoryError, RuntimeError) as err:
        if not is_out_of_memory(err):
            raise
        place = _place(ready.run.recorder, stopwatch)
        raise MeasurementError(
            f"{ready.subject.name} ran out of memory on {ready.device}, {place}: {first_line(err)}"
        ) from err
    stopwatch.mark("output", "output")
    return stopwatch


@contextmanager
def _recorded(ready: Ready, stopwatch: Stopwatch) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(ready.surroundings())
        if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(recording(stopwatch, _Open(), ready.subject.modules))
        yield


@contextmanager
def failures_explained(ready: Ready) -> Iterator[None]:
    """Raise a `MeasurementError` for what allocators and devices raise while a model is measured.

    Where memory ran out, the model runs once more with its steps recorded, to name the node.
    """
    name, device = ready.subject.name, ready.device
    try:
        yield
    except (MemoryError, RuntimeError) as err:
        if is_out_of_memory(err):
            traceback.clear_frames(err.__traceback__)  # they hold the tensors that filled the memory
            with ready.contents_kept():
                recorded_pass(ready, probes_for(ready.device)[0])
            raise MeasurementError(f"{name} ran out of memory on {device}: {first_line(err)}") from err
        if is_device_failure(err):
            raise MeasurementError(
                f"{device} failed while {name} was measured: {first_line(err)}. Check it and run again."
            ) from err
        raise


# Matching with the trace ------------------------------------------------------------------------------------


def _readings(ready: Ready, stopwatch: Stopwatch) -> dict[int, tuple[Any, Any]]:
    """Return what was read around the steps of the counted run, by their positions there."""
    counted = ready.run.recorder
    positions = _visible(counted)
    _require_same_steps(ready.subject, [counted.steps[position] for position in positions], stopwatch.steps)
    return {positions[i]: readings for i, readings in stopwatch.readings.items()}


def _visible(recorder: Recorder) -> list[int]:
    """Return the positions of the steps that a run sees which does not count ATen ops."""
    return [position for position, step in enumerate(recorder.steps) if not step.is_stray]


def _elapsed_ms(node: Node, timer: Timer, readings: tuple[Any, Any]) -> float:
    elapsed = timer.elapsed_ms(*readings)
    if not (math.isfinite(elapsed) and elapsed >= 0):
        raise MeasurementError(
            f"The clock says that node {node.name} took {elapsed} ms: nothing was measured."
        )
    return elapsed


def _require_same_steps(subject: Subject, counted: Sequence[Step], timed: Sequence[Step]) -> None:
    """Refuse to match steps by position where the two runs did not take the same ones."""
    for i in range(max(len(counted), len(timed))):
        there = _shown(counted[i]) if i < len(counted) else "the end"
        here = _shown(timed[i]) if i < len(timed) else "the end"
        if there != here:
            raise MeasurementError(
                f"{subject.name} takes other steps when it is measured than when it is counted: step {i} is "
                f"{here}, where {there} was counted. Its forward pass depends on values, on the device or on "
                "chance."
            )


def _shown(step: Step) -> str:
    where = f" in module {step.module!r}" if step.module and step.op != "call_module" else ""
    return step.op if step.name == step.op else f"{step.op} {step.name}{where}"


def _place(counted: Recorder, timed: Recorder) -> str:
    """Return the node at which a timed run stopped, by the name that it has in the trace."""
    last = len(timed.steps) - 1
    step, positions = timed.steps[last], _visible(counted)
    node = counted.nodes_by_step().get(positions[last]) if last < len(positions) else None
    where = f" in module {step.module!r}" if step.module and step.op != "call_module" else ""
    return f"at node {node.name if node else step.name} ({step.target}){where}"
