"""Clocks: wall time without waiting for a core, and the time of a CUDA device."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import perf_counter_ns
from typing import Protocol

import torch

SCHEDSTAT = Path("/proc/thread-self/schedstat")
"""Where Linux says, as the second number, for how many ns this thread has waited for a core."""


class Clock(Protocol):
    """Tells how much time has been spent, from any origin."""

    def now_ns(self) -> float:
        """Return the time spent, in ns."""


class WallClock:
    """Wall time, less the time in which this thread was ready to run and waited for a core.

    Linux counts that per thread. Where it is not known, or where others do the work for this thread, all wall
    time counts.
    """

    def __init__(
        self, *, alone: bool, wall_ns: Callable[[], int] = perf_counter_ns, schedstat: Path = SCHEDSTAT
    ) -> None:
        self._wall_ns = wall_ns
        self._schedstat: int | None = None
        if alone:
            with suppress(OSError):
                self._schedstat = os.open(schedstat, os.O_RDONLY)

    def __del__(self) -> None:
        if self._schedstat is not None:
            os.close(self._schedstat)

    def now_ns(self) -> float:
        """Return the time spent, in ns, less what was spent waiting for a core."""
        while True:
            waited = self._waited_ns()
            now = self._wall_ns() - waited
            if self._waited_ns() == waited:  # else the core was taken away between the two readings
                return now

    def _waited_ns(self) -> int:
        if self._schedstat is None:
            return 0
        return int(os.pread(self._schedstat, 96, 0).split()[1])


class CudaClock:
    """Wall time at which a CUDA device has done all work that it was given."""

    def __init__(self, device: torch.device, *, wall_ns: Callable[[], int] = perf_counter_ns) -> None:
        self.device = device
        self._wall_ns = wall_ns

    def now_ns(self) -> float:
        """Return the time in ns, once the device has done its work."""
        torch.cuda.synchronize(self.device)
        return self._wall_ns()


def clock_for(device: torch.device) -> Clock:
    """Return the clock by which work on a device is timed."""
    return CudaClock(device) if device.type == "cuda" else WallClock(alone=torch.get_num_threads() == 1)
