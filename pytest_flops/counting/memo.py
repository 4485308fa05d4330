"""What ATen ops returned and cost, remembered by the metadata of their arguments.

The meta kernels of many ops are Python that costs up to a millisecond; remembering costs microseconds. The
memo is process-wide, so that a suite of similar models stays warm, and bounded in bytes, for an op may be
given a list of thousands of tensors. Results are remembered as descriptions, never as tensors.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import NamedTuple

import torch

from pytest_flops.counting.op_results import New, Result, Several, View
from pytest_flops.formulas import generation
from pytest_flops.metrics import Cost

MEMO_BYTES = 64 << 20
"""What is remembered at most before the memo starts afresh: some 30,000 ops, two hundred models' worth."""


class Outcome(NamedTuple):
    """What an op returns, as a description, and what it costs.

    `unsupported` and `by_others` are the calls of ops without an answer, and of those that a formula of
    torch's own counter answers. `workspace` is what was alive at most while it ran, in bytes, beside its
    arguments and results; `written` are the positions of the tensors that it writes.
    """

    result: Result
    cost: Cost
    unsupported: Mapping[str, int] | None
    workspace: int = 0
    written: tuple[int, ...] = ()
    by_others: Mapping[str, int] | None = None


class Memo:
    """Outcomes by key, dropped when they are too many or no longer true."""

    def __init__(self) -> None:
        self.outcomes: dict[tuple[object, ...], Outcome] = {}
        self.nbytes = 0
        self._made_under = self._conditions()

    def current(self) -> dict[tuple[object, ...], Outcome]:
        """Return the outcomes that are still true."""
        if self._made_under != (conditions := self._conditions()):
            self.clear()
            self._made_under = conditions
        return self.outcomes

    @staticmethod
    def _conditions() -> tuple[int, torch.dtype]:
        """Return what outcomes depend on beside the arguments: the formulas, and the dtype that 1 / 2 has."""
        return generation(), torch.get_default_dtype()

    def store(self, key: tuple[object, ...], outcome: Outcome) -> None:
        """Remember an outcome, unless it fills the memo alone; raise TypeError for a key without a hash."""
        nbytes = _key_bytes(key) + _outcome_bytes(outcome)
        if self.nbytes + nbytes > MEMO_BYTES:
            self.clear()
        if nbytes <= MEMO_BYTES:
            self.outcomes[key] = outcome
            self.nbytes += nbytes

    def clear(self) -> None:
        """Forget everything."""
        self.outcomes.clear()
        self.nbytes = 0


# How much memory Python takes for them: rather too much than too little, and told in a microsecond or two.
_ENTRY = 512  # the dictionary's own, the key's and the outcome's heads, its cost
_TUPLE, _NUMBER, _PART = 64, 40, 24  # with the places that they take; half of a key are types, shared by all


def _key_bytes(key: tuple[object, ...]) -> int:
    """Return about how much memory a key takes."""
    total = _PART * len(key)
    for part in key:
        if isinstance(part, tuple):  # sizes and strides
            total += _TUPLE + _NUMBER * len(part)
        elif type(part) is str:
            total += sys.getsizeof(part)
    return total


def _outcome_bytes(outcome: Outcome) -> int:
    """Return about how much memory an outcome takes."""
    named = _ENTRY * len(outcome.unsupported or ())
    return _ENTRY + named + _NUMBER * len(outcome.written) + _result_bytes(outcome.result)


def _result_bytes(result: Result) -> int:
    if isinstance(result, Several):
        return 2 * _TUPLE + sum(8 + _result_bytes(part) for part in result.parts)
    if isinstance(result, (New, View)):
        return 4 * _TUPLE + 2 * _NUMBER * (1 + len(result.size))
    return 2 * _TUPLE
