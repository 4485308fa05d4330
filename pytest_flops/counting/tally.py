"""What a step adds up while it is open."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from pytest_flops.counting.live_memory import LiveMemory
from pytest_flops.counting.memo import Outcome
from pytest_flops.metrics import Cost


class Tally:
    """The costs of some ops, added up once at the end; the most bytes alive; ops without an answer.

    Of ops that a formula answers which is not this package's (a user's, or one that torch's own counter was
    given), `by_others` has the calls.
    """

    __slots__ = ("by_others", "costs", "peak", "unsupported")

    def __init__(self) -> None:
        self.costs: list[Cost] = []
        self.peak = 0
        self.unsupported: dict[str, int] | None = None
        self.by_others: dict[str, int] | None = None

    @property
    def cost(self) -> Cost:
        """The sum of all costs."""
        return Cost.total(self.costs)

    def add(self, found: Outcome | Tally) -> None:
        """Add what one op, or the parts of one, came to; the peak is its caller's affair."""
        self.costs.append(found.cost)
        if found.unsupported:
            self.note_unsupported(found.unsupported)
        if found.by_others:
            self.note_by_others(found.by_others)

    def note_unsupported(self, calls: Mapping[str, int]) -> None:
        """Note calls of ops that have no answer, by the name of the op."""
        self.unsupported = added_up([*(self.unsupported or {}).items(), *calls.items()])

    def note_by_others(self, calls: Mapping[str, int]) -> None:
        """Note calls of ops that a formula of others answered, by the name of the op."""
        self.by_others = added_up([*(self.by_others or {}).items(), *calls.items()])


def added_up(calls: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Return how often each op was called, all calls together."""
    found: dict[str, int] = {}
    for name, number in calls:
        found[name] = found.get(name, 0) + number
    return found


class Meter(Protocol):
    """What a recorder shows the open step to: `ShapeMode`, which counts its ATen ops in `answered`."""

    tally: Tally | None
    answered: int
    memory: LiveMemory

    def read(self, tensor: Any, name: str) -> Any:
        """Take note that the values of a tensor leave PyTorch; return what has them."""

    def with_values(self, tensor: Any, reason: str) -> Any:
        """Return what has the values of a tensor; stop a run that has none, and say why it asks."""

    def refuse(self, reason: str) -> None:
        """Stop a run that has no answer on shapes."""

    def need_autograd(self, reason: str) -> None:
        """Stop a run in inference mode that cannot do without autograd."""

    def trust(self) -> None:
        """Take note that what was done up to now is known, though no op was seen to do it."""
