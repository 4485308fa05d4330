"""What ops return, described without tensors, and built again from the description."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor

META = torch.device("meta")


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


class UnrepeatableError(Exception):
    """A result that metadata does not describe (sparse, conjugate, a number): never remembered."""


def specify(result: Any, stand_ins: list[Tensor]) -> Result:
    """Describe a result so that it can be built again from other arguments of the same metadata."""
    if result is None:
        return None
    if type(result) in (tuple, list):
        return Several(type(result), tuple(specify(part, stand_ins) for part in result))
    if type(result) is not Tensor or not result.is_meta or not is_plain(result):
        raise UnrepeatableError
    for position, stand_in in enumerate(stand_ins):
        if result is stand_in:
            return Same(position)
    for position, stand_in in enumerate(stand_ins):
        if stand_in.is_meta and result.untyped_storage()._cdata == stand_in.untyped_storage()._cdata:
            if result.dtype is not stand_in.dtype:  # the real part of complex numbers: no strides describe it
                raise UnrepeatableError
            shift = int(result.storage_offset()) - int(stand_in.storage_offset())
            return View(position, result.size(), result.stride(), shift)
    return New(result.size(), result.stride(), result.dtype, result.untyped_storage().nbytes())


def is_plain(tensor: Tensor) -> bool:
    """Tell whether a tensor is what its size, strides and dtype say."""
    return tensor.layout is torch.strided and not tensor.is_conj() and not tensor.is_neg()


def meta_like(tensor: Tensor) -> Tensor:
    """Return a meta tensor of the same size, strides and dtype."""
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


def broadcasts(shape: Sequence[int], size: Sequence[int]) -> bool:
    """Tell whether a tensor of this shape can be expanded to a size."""
    missing = len(size) - len(shape)
    return missing >= 0 and all(n in (1, m) for n, m in zip(shape, size[missing:], strict=True))


def broadcast_size(tensors: Sequence[Tensor]) -> torch.Size | None:
    """Return the size that tensors broadcast to; None where they do not."""
    largest = max((tensor.shape for tensor in tensors), key=lambda shape: (len(shape), math.prod(shape)))
    if all(broadcasts(tensor.shape, largest) for tensor in tensors):
        return largest
    rows = zip_longest(*(reversed(tensor.shape) for tensor in tensors), fillvalue=1)
    size = [next((length for length in lengths if length != 1), 1) for lengths in rows]
    made = torch.Size(reversed(size))
    return made if all(broadcasts(tensor.shape, made) for tensor in tensors) else None


def contiguous(size: Sequence[int], dtype: torch.dtype) -> New:
    """Describe a new contiguous tensor."""
    return New(torch.Size(size), contiguous_stride(size), dtype, math.prod(size) * dtype.itemsize)


def transposed(new: New, first: int, second: int) -> New:
    """Describe a new tensor with two dimensions in each other's place."""
    size, stride = list(new.size), list(new.stride)
    size[first], size[second] = size[second], size[first]
    stride[first], stride[second] = stride[second], stride[first]
    return new._replace(size=torch.Size(size), stride=tuple(stride))


def build(
    result: Result,
    tensors: list[Tensor],
    stand_in: Callable[[Tensor], Tensor],
    born: Callable[[Tensor, int], object],
) -> Any:
    """Make the described result for these argument tensors.

    `stand_in` gives the meta tensor that a view can be of; `born` is told of each new storage and its size in
    bytes.
    """
    if type(result) is New:
        made = torch.empty_strided(result.size, result.stride, dtype=result.dtype, device=META)
        born(made, result.nbytes)
        return made
    if type(result) is Same:
        return tensors[result.argument]
    if type(result) is View:
        base = stand_in(tensors[result.argument])
        return base.as_strided(result.size, result.stride, base.storage_offset() + result.shift)
    if type(result) is Several:
        return result.kind([build(part, tensors, stand_in, born) for part in result.parts])
    return None
