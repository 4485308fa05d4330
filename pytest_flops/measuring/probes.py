"""What is read around the steps of a run: clocks and allocators.

CUDA's allocator keeps an account that can be read at any time. The CPU's keeps none, but it tells PyTorch's
profiler of every piece that it gives out or takes back, and the profiler puts that on one time line with the
steps that are marked for it. It slows a run down, so on the CPU time and memory take a run each.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from itertools import accumulate
from time import perf_counter_ns
from typing import Any, NamedTuple, Protocol

import torch
from torch.autograd.profiler import profile, record_function


class Memory(NamedTuple):
    """Bytes allocated before and after a step, and the most in between."""

    before: int
    after: int
    peak: int


class Probe(Protocol):
    """Reads a device before and after steps; what a reading is, only the probe knows.

    `with` is around a run: when it is left, the device has done all work and the readings tell what it was.
    """

    def __enter__(self) -> object: ...

    def __exit__(self, *error: Any) -> None: ...

    def before(self) -> Any:
        """Read before a step."""

    def after(self) -> Any:
        """Read after a step."""


class Timer(Probe, Protocol):
    """Tells the time between two readings."""

    def elapsed_ms(self, before: Any, after: Any) -> float:
        """Return the time between two readings, in ms."""


class Scale(Probe, Protocol):
    """Tells what was allocated at two readings and between them."""

    def memory(self, before: Any, after: Any) -> Memory | None:
        """Return what was allocated around a step; None where that is not known."""


def probes_for(device: torch.device) -> tuple[Timer, Scale | None]:
    """Return what reads time and memory on a device: on CUDA the same probe, in the same run.

    Nothing reads memory on the CPU while a profiler runs: there can be only one, and another would end it.
    """
    if device.type == "cuda":
        probe = CudaProbe(device)
        return probe, probe
    # Private, for want of a public way to ask.
    is_profiled = torch.autograd.profiler._is_profiler_enabled
    return CpuTimer(), None if is_profiled else CpuScale()


class CpuTimer:
    """Wall time."""

    def __enter__(self) -> None: ...

    def __exit__(self, *error: Any) -> None: ...

    def before(self) -> int:
        """Return the time in ns."""
        return perf_counter_ns()

    after = before

    def elapsed_ms(self, before: int, after: int) -> float:
        """Return the time between two readings, in ms."""
        return (after - before) / 1e6


class CpuScale:
    """PyTorch's profiler, which the CPU's allocator reports to.

    Bytes count from the start of the run: a step that lets go of what was there before leaves less than 0.
    """

    def __init__(self) -> None:
        self._profiler = profile(profile_memory=True)
        self._open: list[tuple[str, record_function]] = []
        self._marks = 0
        self._memory: dict[str, Memory] = {}

    def __enter__(self) -> None:
        # Kineto, below the profiler, says on stderr that it starts and stops, unless its first start finds:
        given = os.environ.get("KINETO_LOG_LEVEL")
        os.environ["KINETO_LOG_LEVEL"] = given or "99"
        try:
            self._profiler.__enter__()  # type: ignore[no-untyped-call]
        finally:
            if given is None:
                del os.environ["KINETO_LOG_LEVEL"]

    def __exit__(self, *error: Any) -> None:
        self._profiler.__exit__(*error)  # type: ignore[no-untyped-call]
        result = self._profiler.kineto_results  # the events that it documents do not say when inside an op
        if error[0] is None and result is not None:
            self._memory = memory_by_mark(result.events())

    def before(self) -> None:
        """Mark the start of a step for the profiler."""
        self._open.append((name := f"{_MARK}{self._marks}", mark := record_function(name)))
        self._marks += 1
        mark.__enter__()  # type: ignore[no-untyped-call]

    def after(self) -> str:
        """Mark the end of a step, and return its name."""
        name, mark = self._open.pop()
        mark.__exit__(None, None, None)
        return name

    def memory(self, before: None, after: str) -> Memory | None:
        """Return what was allocated around a marked step."""
        return self._memory.get(after)  # None where the model ran a profiler of its own, which ended this one


_MARK = "pytest-flops: step "


def memory_by_mark(events: Iterable[Any]) -> dict[str, Memory]:
    """Return what was allocated around each marked step, from all that the profiler saw."""
    marks: dict[str, tuple[int, int]] = {}
    changes: list[tuple[int, int]] = []
    for event in events:
        if event.name().startswith(_MARK):
            marks[event.name()] = event.start_ns(), event.end_ns()
        elif event.name() == "[memory]" and event.device_type().name == "CPU":
            changes.append((event.start_ns(), event.nbytes()))
    changes.sort()
    times = [time for time, _ in changes]
    totals = [0, *accumulate(nbytes for _, nbytes in changes)]
    found = {}
    for name, (start, end) in marks.items():
        first, last = bisect_left(times, start), bisect_right(times, end)
        found[name] = Memory(totals[first], totals[last], max(totals[first : last + 1]))
    return found


class CudaReading(NamedTuple):
    """An event on a device's stream, and what its allocator says."""

    event: torch.cuda.Event
    allocated: int
    peak: int


class CudaProbe:
    """CUDA events on the current stream of one device, and its caching allocator."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> None:
        torch.cuda.synchronize(self.device)

    def __exit__(self, *error: Any) -> None:
        torch.cuda.synchronize(self.device)

    def before(self) -> CudaReading:
        """Let the peak start anew; return the event and what is allocated."""
        torch.cuda.reset_peak_memory_stats(self.device)
        allocated = torch.cuda.memory_allocated(self.device)
        return CudaReading(self._event(), allocated, allocated)

    def after(self) -> CudaReading:
        """Return the event, what is allocated, and the most since the step began."""
        event = self._event()
        allocated = torch.cuda.memory_allocated(self.device)
        return CudaReading(event, allocated, torch.cuda.max_memory_allocated(self.device))

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    def elapsed_ms(self, before: CudaReading, after: CudaReading) -> float:
        """Return the time between two events, in ms."""
        return float(before.event.elapsed_time(after.event))

    def memory(self, before: CudaReading, after: CudaReading) -> Memory:
        """Return what was allocated around a step."""
        return Memory(before.allocated, after.allocated, after.peak)
