"""What values hold, and the places that hold a value: to put another there for a while, then the old one.

Nothing here, nor in what uses it, runs the user's code: no property, no `__getattr__`, no method that a dict
of a library's own overrides. A registry that imports what it is asked for is looked at as what it is so far.
"""

from __future__ import annotations

import functools
import gc
import math
import types
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from operator import is_, itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Slot(NamedTuple):
    """A place that holds a value: an item of a container, the cell of a closure, an attribute."""

    holder: Any
    key: Any = None

    def get(self) -> Any:
        """Return what is there; None where nothing is any more."""
        holder, key = self
        kind: type = type(holder)  # `isinstance` would ask a proxy for the class that it pretends to be of
        try:
            if kind is types.CellType:
                return holder.cell_contents
            if issubclass(kind, dict):
                return dict.get(holder, key)
            if issubclass(kind, list):
                return list.__getitem__(holder, key)
            return vars(holder)[key] if issubclass(kind, type) else object.__getattribute__(holder, key)
        except (LookupError, ValueError, AttributeError):
            return None

    def put(self, value: Any) -> None:
        """Put a value there."""
        holder, key = self
        kind: type = type(holder)
        if kind is types.CellType:
            holder.cell_contents = value
        elif issubclass(kind, (dict, list)):
            holder[key] = value
        elif issubclass(kind, type):
            type.__setattr__(holder, key, value)
        else:
            object.__setattr__(holder, key, value)


def picker(names: Iterable[str]) -> Callable[[dict[str, Any]], Collection[Any]]:
    """Return a quick way to pick the values of these names, as far as they are there."""
    names = tuple(names)
    pick = itemgetter(*names)

    def picked(values: dict[str, Any]) -> Collection[Any]:
        try:
            found: tuple[Any, ...] = pick(values)
        except KeyError:  # of TorchScript, or made by an older version of torch
            return [values[name] for name in names if name in values]
        return found

    return picked


# What a value holds at any depth ----------------------------------------------------------------------------

ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size})
are_atoms = ATOMS.issuperset
SHARED = (nn.Module, torch.Generator, types.ModuleType)
"""What an object shares with its copy."""
_CODE = (type, types.FunctionType, types.BuiltinFunctionType, types.CodeType, types.FrameType)


def is_atomic(value: Any) -> bool:
    """Tell whether a value can neither be changed nor hold what can: a number, a text, a tuple of such."""
    kind = type(value)
    return kind in ATOMS or (kind is tuple and are_atoms(map(type, value)))


def parts_of(value: Any) -> Iterator[Any]:
    """Yield the tensors that a value holds, and what it would share with its copy, which is not entered."""
    seen: dict[int, Any] = {}
    waiting = [value]
    while waiting:
        part = waiting.pop()
        kind: type = type(part)
        if kind in ATOMS or id(part) in seen or issubclass(kind, _CODE):
            continue
        seen[id(part)] = part
        if issubclass(kind, (Tensor, *SHARED)):
            yield part
        else:  # whatever Python's own collector finds there: items, attributes, slots
            waiting.extend(gc.get_referents(part))


_BASES: tuple[Any, ...] = (dict, list, tuple, set, frozenset, deque)


def items_of(value: Any, limit: float = math.inf) -> list[tuple[Any, Any]]:
    """Return the items of a container of any class, by key or number; none of what has more, or is none."""
    kind = type(value)
    if kind is types.MappingProxyType:
        return list(value.items())
    base = next((base for base in _BASES if issubclass(kind, base)), None)
    if base is None or base.__len__(value) > limit:
        return []
    return list(dict.items(value) if base is dict else enumerate(base.__iter__(value)))


# Values that cannot be written ------------------------------------------------------------------------------


def _partial_of(old: Any, function: Any, args: Any, *values: Any) -> Any:
    return functools.partial(function, *args, **dict(zip(old.keywords, values, strict=True)))


_UNWRITABLE: dict[type, tuple[Callable[[Any], tuple[Any, ...]], Callable[..., Any]]] = {
    staticmethod: (lambda old: (old.__func__,), lambda old, function: staticmethod(function)),
    classmethod: (lambda old: (old.__func__,), lambda old, function: classmethod(function)),
    property: (lambda old: (old.fget,), lambda old, function: old.getter(function)),
    types.MethodType: (
        lambda old: (old.__func__,),
        lambda old, function: types.MethodType(function, old.__self__),
    ),
    functools.partial: (lambda old: (old.func, old.args, *old.keywords.values()), _partial_of),
    tuple: (lambda old: old, lambda old, *parts: parts),
}
"""How to take such a value apart, and how to make one like it of other parts."""


def leaves_of(value: Any) -> Iterator[Any]:
    """Yield the parts of a value that are no such values; one that is none itself is its only part."""
    if type(value) in _UNWRITABLE:
        for part in _UNWRITABLE[type(value)][0](value):
            yield from leaves_of(part)
    else:
        yield value


def remade(value: Any, replace: Callable[[Any], Any]) -> Any:
    """Return a value with its leaves replaced; the value itself where each was replaced by itself."""
    if type(value) not in _UNWRITABLE:
        return replace(value)
    take_apart, make = _UNWRITABLE[type(value)]
    old = take_apart(value)
    new = [remade(part, replace) for part in old]
    return value if all(map(is_, new, old)) else make(value, *new)


# Containers -------------------------------------------------------------------------------------------------


def put_back(found: Any, saved: Any) -> None:
    """Give a container the items that its copy has, in their order.

    Items are written before any is taken away: whoever breaks this off does not leave the container empty,
    and to do it again completes it.
    """
    if isinstance(found, dict):
        put_items_back(found, saved)
        if list(found) != list(saved):
            for key in saved:
                found[key] = found.pop(key)
    elif isinstance(found, set):
        found |= saved
        found &= saved
    elif isinstance(found, list):
        found[:] = saved
    else:
        found.extend(saved)
        while len(found) > len(saved):
            found.popleft()


def put_items_back(found: dict[Any, Any], saved: dict[Any, Any]) -> None:
    """Give a dict the items of its copy, in whatever order."""
    found.update(saved)
    while len(found) > len(saved) and (last := next(reversed(found))) not in saved:
        del found[last]  # what a run adds comes last: by far the quickest way to find it
    if len(found) > len(saved):
        for key in found.keys() - saved.keys():
            del found[key]


def is_same(found: Any, saved: Any) -> bool:
    """Tell whether a container holds the very objects that it held, in their order."""
    if len(found) != len(saved):
        return False
    if isinstance(found, dict) and not all(map(is_, found.values(), saved.values())):
        return False
    return all(map(is_, found, saved))
