"""The cost of work that cannot be seen, stated where it is called.

No torch here: the block costs next to nothing where nobody counts.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from pytest_flops.errors import TraceError
from pytest_flops.metrics import Cost


class _Counter(Protocol):
    """The recorder of a run."""

    @property
    def is_here(self) -> bool:
        """Whether it records the thread that asks."""

    def declared(self, cost: Cost) -> AbstractContextManager[None]:
        """Count a block as what its author says that it costs."""


_NOBODY = nullcontext()
counter: _Counter | None = None


def declared_cost(*, flops: int, macs: int = 0) -> AbstractContextManager[None]:
    """Count what runs in the block as so many FLOPs and multiply-accumulates, whatever is seen of it.

    For a kernel that PyTorch does not know (Triton, a pybind extension, ctypes), at the place that calls it:

        with pytest_flops.declared_cost(flops=2 * x.numel()):
            kernel(x, out)

    A custom backward pass takes a block of its own. Where no count runs a block does nothing. While one runs,
    it raises TraceError for what is no number of FLOPs.
    """
    if counter is None or not counter.is_here:
        return _NOBODY
    for name, number in (("flops", flops), ("macs", macs)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise TraceError(f"declared_cost({name}={number!r}): expected a whole number, at least 0.")
    return counter.declared(Cost(flops, macs))


def count_by(recorder: _Counter) -> None:
    """Let a recorder hear of what is declared; `process.ProcessState` brings back who heard before."""
    global counter
    counter = recorder
