"""What a step adds up while it is open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from pytest_flops.counting.live_memory import LiveMemory
from pytest_flops.metrics import Cost


class Tally:
    """The costs of some ops, added up once at the end; the most bytes alive; ops without an answer."""

    __slots__ = ("costs", "peak", "unsupported")

    def __init__(self) -> None:
        self.costs: list[Cost] = []
        self.peak = 0
        self.unsupported: dict[str, int] | None = None

    @property
    def cost(self) -> Cost:
        """The sum of all costs."""
        return Cost.total(self.costs)

    def note_unsupported(self, calls: Mapping[str, int]) -> None:
        """Note calls of ops that have no answer, by the name of the op."""
        self.unsupported = dict(self.unsupported or {})
        for name, count in calls.items():
            self.unsupported[name] = self.unsupported.get(name, 0) + count


class Meter(Protocol):
    """What a recorder shows the open step to: `ShapeMode`, which counts its ATen ops in `answered`."""

    tally: Tally | None
    answered: int
    memory: LiveMemory

    def read(self, tensor: Any, name: str) -> Any:
        """Take note that the values of a tensor leave PyTorch; return what has them."""
