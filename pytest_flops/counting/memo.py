"""What ATen ops returned and cost, remembered by the metadata of their arguments.

The meta kernels of many ops are Python that costs up to a millisecond; remembering costs microseconds. The
memo is process-wide, so that a suite of similar models stays warm, and bounded. Results are remembered as
descriptions, never as tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pytest_flops.formulas import generation

META = torch.device("meta")

MEMO_LIMIT = 16_384
"""Remembered ops before the memo starts afresh: about 25 MB, and more than a hundred models' worth."""


class New(NamedTuple):
    """A result with a storage of its own, of `nbytes`."""

    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    nbytes: int


class View(NamedTuple):
    """A result that shares the storage of an argument, `shift` elements further on."""

    argument: int
    size: torch.Size
    stride: tuple[int, ...]
    shift: int


class Same(NamedTuple):
    """A result that is an argument: in-place ops, `contiguous` of what is contiguous, `dropout` in eval."""

    argument: int


class Several(NamedTuple):
    """Results in a tuple or a list."""

    kind: type
    parts: tuple[New | View | Same | Several | None, ...]


Result = New | View | Same | Several | None


class Outcome(NamedTuple):
    """What an op returns, as a description, and what it costs.

    `workspace` is what was alive at most while it ran, in bytes, beside its arguments and results; `written`
    are the positions of the tensors that it writes.
    """

    result: Result
    flops: int
    macs: int
    unsupported: Mapping[str, int] | None
    workspace: int = 0
    written: tuple[int, ...] = ()


class UnrepeatableError(Exception):
    """A result that metadata does not describe (sparse, conjugate, a number): never remembered."""


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


def describe(values: Collection[Any], key: list[object], tensors: list[Tensor]) -> None:
    """Append what decides an op's result to `key`, and the tensors met on the way to `tensors`."""
    key.extend(map(type, values))  # 1, 1.0 and True are equal as keys and promote dtypes differently
    for value in values:
        if isinstance(value, Tensor):
            key += (value.dtype, value.shape, _stride(value))
            tensors.append(value)
        elif isinstance(value, (list, tuple)):
            key.append(len(value))
            describe(value, key, tensors)
        else:
            key.append(value)


def _stride(tensor: Tensor) -> object:
    try:
        return tensor.stride()
    except RuntimeError:  # sparse: it has none
        return tensor.layout


def specify(result: Any, twins: list[Tensor]) -> Result:
    """Describe a result so that it can be built again from other arguments of the same metadata."""
    if result is None:
        return None
    if type(result) in (tuple, list):
        return Several(type(result), tuple(specify(part, twins) for part in result))
    if type(result) is not Tensor or not result.is_meta or not is_plain(result):
        raise UnrepeatableError
    for position, twin in enumerate(twins):
        if result is twin:
            return Same(position)
    for position, twin in enumerate(twins):
        if twin.is_meta and result.untyped_storage()._cdata == twin.untyped_storage()._cdata:
            if result.dtype is not twin.dtype:  # the real part of complex numbers: no strides describe it
                raise UnrepeatableError
            shift = int(result.storage_offset()) - int(twin.storage_offset())
            return View(position, result.size(), result.stride(), shift)
    return New(result.size(), result.stride(), result.dtype, result.untyped_storage().nbytes())


def is_plain(tensor: Tensor) -> bool:
    """Tell whether a tensor is what its size, strides and dtype say."""
    return tensor.layout is torch.strided and not tensor.is_conj() and not tensor.is_neg()


def meta_like(tensor: Tensor) -> Tensor:
    if not is_plain(tensor):
        return tensor.to(META)
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=META)


def contiguous_stride(size: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor of this size."""
    strides: list[int] = []
    step = 1
    for length in reversed(size):
        strides.append(step)
        step *= max(length, 1)
    return tuple(reversed(strides))


def build(
    result: Result,
    tensors: list[Tensor],
    twin: Callable[[Tensor], Tensor],
    born: Callable[[Tensor, int], object],
) -> Any:
    """Make the described result for these argument tensors.

    `twin` gives the meta tensor a view can be of; `born` is told of each new storage and its size in bytes.
    """
    if type(result) is New:
        made = torch.empty_strided(result.size, result.stride, dtype=result.dtype, device=META)
        born(made, result.nbytes)
        return made
    if type(result) is Same:
        return tensors[result.argument]
    if type(result) is View:
        base = twin(tensors[result.argument])
        return base.as_strided(result.size, result.stride, base.storage_offset() + result.shift)
    if type(result) is Several:
        return result.kind([build(part, tensors, twin, born) for part in result.parts])
    return None
