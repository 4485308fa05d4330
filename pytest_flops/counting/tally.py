"""What a step adds up while it is open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from pytest_flops.counting.live_memory import LiveMemory


class Meter(Protocol):
    """What a recorder shows the open step to: `ShapeMode`, which counts its ATen ops in `answered`."""

    sink: Sink | None
    answered: int
    memory: LiveMemory

    def read(self, tensor: Any, name: str) -> None:
        """Take note that the values of a tensor leave PyTorch."""


class Sink(Protocol):
    """Whatever costs are added to: a step of the forward pass, or a tally."""

    flops: int
    macs: int
    peak_memory: int
    unsupported: dict[str, int] | None


class Tally:
    """A sink that stands alone: the cost of one op while it is being found out."""

    __slots__ = ("flops", "macs", "peak_memory", "unsupported")

    def __init__(self) -> None:
        self.flops = 0
        self.macs = 0
        self.peak_memory = 0
        self.unsupported: dict[str, int] | None = None


def _report_unsupported(sink: Sink, calls: Mapping[str, int]) -> None:
    sink.unsupported = dict(sink.unsupported or {})
    for name, count in calls.items():
        sink.unsupported[name] = sink.unsupported.get(name, 0) + count
