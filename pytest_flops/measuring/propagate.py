"""`propagate`: real tensors through the real model, and the time and memory that each step took.

The steps are those that `trace` counts, by the same names. A step's work runs by itself while it is measured:
no mode counts or records, and PyTorch takes the same fast paths as ever. What is left of the recording
costs about a microsecond per step, outside the measured time.

Memory is what PyTorch's allocator says: CUDA's in the same run, the CPU's in one more, under the profiler.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

# Private, for want of a public way to let a leaf run without the mode that recorded its call.
from pytest_flops.counting.recorder import Step
from pytest_flops.counting.subject import Subject
from pytest_flops.errors import MeasurementError
from pytest_flops.measuring.probes import Scale, Timer, probes_for
from pytest_flops.measuring.ready import Ready, first_line, is_device_failure, is_out_of_memory
from pytest_flops.measuring.stopwatch import Stopwatch, recorded_pass, visible_positions
from pytest_flops.results.measured import Measurement, Measurements
from pytest_flops.results.report import Node


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
    return measurements_of(ready, *probes_for(ready.device), warmup=warmup)


def measurements_of(ready: Ready, timer: Timer, scale: Scale | None, *, warmup: int = 1) -> Measurements:
    """Return what each step of a model that is ready takes, as `timer` and `scale` read it."""
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


def _readings(ready: Ready, stopwatch: Stopwatch) -> dict[int, tuple[Any, Any]]:
    """Return what was read around the steps of the counted run, by their positions there."""
    counted = ready.run.recorder
    positions = visible_positions(counted)
    _require_same_steps(ready.subject, [counted.steps[position] for position in positions], stopwatch.steps)
    return {positions[i]: readings for i, readings in stopwatch.readings.items()}


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
