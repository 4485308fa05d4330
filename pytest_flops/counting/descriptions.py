"""Describing the inputs of a model in words, for reports and baselines: what they are, and of what size."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

_ATOMS = (bool, int, float, complex, str, bytes, range, type(None), torch.dtype, torch.device)
_FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial)
_CLOSED = (*_ATOMS, *_FUNCTIONS, nn.Module, type, types.ModuleType, torch.Generator)
"""Things that hold no tensors, or none that are inputs."""
_DEPTH = 8
_PARTS = 10_000
"""How far to look: so deep into an object, and at so many parts of each."""
_LINES = 100
"""Tensors inside one object that are described each on a line; of all others together there is one more."""


def described(place: str, value: Any) -> Iterator[str]:
    """Yield a line for an input, and one for each tensor that can be reached from an object among them."""
    yield f"{place}: {_in_words(value)}"
    rest = 0
    elements = 0
    for number, (where, tensor) in enumerate(_tensors_inside(place, value)):
        if number < _LINES:
            yield f"{where}: {_in_words(tensor)}"
        else:
            rest, elements = rest + 1, elements + tensor.numel()
    if rest:
        yield f"{place}: {rest} more tensors, {elements} elements"


def _in_words(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, (bool, int, float, str, torch.dtype)):
        return repr(value)
    if type(value).__name__ == "ndarray":
        return f"ndarray {value.dtype}{list(value.shape)}"
    return type(value).__name__


def _tensors_inside(place: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that can be reached from an object, and where; each object is looked into once."""
    seen = {id(value)}
    waiting = [(place, value, 0)]
    while waiting:
        where, found, depth = waiting.pop()
        if isinstance(found, Tensor):
            if depth:
                yield where, found
        elif depth < _DEPTH:
            for inner, part in reversed([*islice(_parts(found), _PARTS)]):
                if isinstance(part, Tensor) or (id(part) not in seen and not isinstance(part, _ATOMS)):
                    seen.add(id(part))
                    waiting.append((f"{where}{inner}", part, depth + 1))


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an object holds, and how one writes it after the object."""
    if isinstance(value, _CLOSED):
        return
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, Sequence):
        yield from ((f"[{position}]", part) for position, part in enumerate(value))
    elif dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value)]
        yield from ((f".{name}", getattr(value, name)) for name in fields if hasattr(value, name))
    else:
        yield from ((f".{name}", part) for name, part in sorted(_attributes(value).items()))


def _attributes(value: Any) -> dict[str, Any]:
    slots = [name for kind in type(value).__mro__ for name in _names(vars(kind).get("__slots__", ()))]
    found = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    return found | getattr(value, "__dict__", {})


def _names(slots: Any) -> list[str]:
    names = [slots] if isinstance(slots, str) else [*slots]
    return [name for name in names if name not in ("__dict__", "__weakref__")]
