"""What ATen ops returned and cost, remembered by the metadata of their arguments.

The meta kernels of many ops are Python that costs up to a millisecond; remembering costs microseconds. The
memo is process-wide, so that a suite of similar models stays warm, and bounded. Results are remembered as
descriptions, never as tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from pytest_flops.counting.op_results import Result
from pytest_flops.formulas import generation
from pytest_flops.metrics import Cost

MEMO_LIMIT = 16_384
"""Remembered ops before the memo starts afresh: about 25 MB, and more than a hundred models' worth."""


class Outcome(NamedTuple):
    """What an op returns, as a description, and what it costs.

    `unsupported` and `by_torch` are the calls of ops without an answer, and of those that a formula of
    torch's own counter answers. `workspace` is what was alive at most while it ran, in bytes, beside its
    arguments and results; `written` are the positions of the tensors that it writes.
    """

    result: Result
    cost: Cost
    unsupported: Mapping[str, int] | None
    workspace: int = 0
    written: tuple[int, ...] = ()
    by_torch: Mapping[str, int] | None = None


class Memo:
    """Outcomes by key, dropped when they are too many or no longer true."""

    def __init__(self) -> None:
        self.outcomes: dict[tuple[object, ...], Outcome] = {}
        self._made_under = self._conditions()

    def current(self) -> dict[tuple[object, ...], Outcome]:
        """Return the outcomes that are still true."""
        if self._made_under != (conditions := self._conditions()):
            self.outcomes.clear()
            self._made_under = conditions
        return self.outcomes

    @staticmethod
    def _conditions() -> tuple[int, torch.dtype]:
        """Return what outcomes depend on beside the arguments: the formulas, and the dtype that 1 / 2 has."""
        return generation(), torch.get_default_dtype()

    def store(self, key: tuple[object, ...], outcome: Outcome) -> None:
        """Remember an outcome; raise TypeError for a key that has no hash."""
        if len(self.outcomes) >= MEMO_LIMIT:
            self.outcomes.clear()
        self.outcomes[key] = outcome
