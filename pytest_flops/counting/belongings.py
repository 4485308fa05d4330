"""What belongs to modules beside their parameters and buffers, so that a run of them may change it.

Attributes are looked through before every run. What the code of the modules' classes leads to is searched
for once per set of classes, and again when a global that it names has become another.
"""

from __future__ import annotations

import functools
import math
import types
import weakref
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from pytest_flops.counting.places import ATOMS, Slot, are_atoms, is_atomic, items_of, picker
from pytest_flops.counting.reach import (
    CONTAINER_LIMIT,
    CONTAINERS,
    FILLED_BY_THE_USER,
    Reached,
    Search,
    attributes_of,
    cached_properties_of,
    is_generator,
    is_users,
    slots_of,
)

_STANDARD = frozenset(vars(nn.Module()))
_hooks_of = picker(["_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks"])
_CODE = frozenset({types.FunctionType, types.MethodType, functools.partial})


def belongings_of(
    modules: Iterable[nn.Module], also: Reached | None = None
) -> tuple[list[nn.Module], Reached]:
    """Return the modules, with those that they hide from `nn.Module.modules`, and what belongs to them all.

    `also` is what a function leads to: its objects have belongings as modules do, and the names in its code
    are attributes of the modules that are used from outside, beside `forward`.
    """
    known = {id(module): module for module in modules}
    found, names = Reached(), also.names if also else ()
    walks = [_Attributes(known.values())]
    if also and also.objects:
        walks.append(_Attributes((), also.objects))
    while walks:
        walk = walks.pop()
        walk.found.add(led_to(walk.code, names))
        found.add(replace(walk.found, modules={}))
        inside = [module for root in walk.found.modules.values() for module in root.modules()]
        hidden = {id(module): module for module in inside if id(module) not in known}
        known.update(hidden)
        walks += [_Attributes(hidden.values())] if hidden else []
    return list(known.values()), found


class _Attributes:
    """A walk through all attributes of modules and the objects that these hold, or of a function's objects.

    A list or dict that a function itself holds is its own affair: there it may note what it sees.
    """

    def __init__(self, modules: Collection[nn.Module], objects: Iterable[Any] = ()) -> None:
        self.found = Reached()
        self._limit = math.inf if modules else CONTAINER_LIMIT  # a function may hold a whole data set
        kinds = set(map(type, modules))
        self.code: set[Any] = {kind for kind in kinds if is_users(kind.__module__)}
        """Classes and functions that may run."""
        self._seen: set[int] = set()
        owned = [module.__dict__ for module in modules]
        self._waiting: list[tuple[Any, Any, Any]] = [
            (own, name, value)
            for own in owned
            for name, value in own.items()
            if name not in _STANDARD
            and (kind := type(value)) not in ATOMS
            and (kind is not tuple or not are_atoms(map(type, value)))  # `is_atomic`, for hundreds of modules
        ]
        self._waiting += [
            (None, None, held) for hooks in map(_hooks_of, owned) if any(hooks) for held in hooks
        ]
        for held in objects:
            self._wait(None, items_of(held, self._limit) if type(held) in CONTAINERS else [(None, held)])
        if any(map(cached_properties_of, kinds)):
            for module in modules:
                self._note_computed(type(module), module.__dict__)
        while self._waiting:
            self._look(*self._waiting.pop())

    def _note_computed(self, kind: type, own: dict[str, Any]) -> None:
        self.found.computed += [Slot(own, name) for name in cached_properties_of(kind) if name in own]

    def _look(self, holder: Any, key: Any, value: Any) -> None:
        kind: type = type(value)
        if holder is not None:
            self.found.note(Slot(holder, key), value)
        if id(value) in self._seen:
            return
        self._seen.add(id(value))
        if kind in CONTAINERS:
            self.found.stores += [value] if len(value) <= self._limit else []
            self._wait(value if isinstance(value, (dict, list)) else None, items_of(value, self._limit))
        elif kind is tuple:
            self._wait(None, enumerate(value))
        elif kind in _CODE:
            self.code.add(value)
        elif is_generator(kind):
            self.found.generators.append(value)
        elif issubclass(kind, nn.Module):
            self.found.add_module("", value)
        elif issubclass(kind, Tensor):
            self.found.tensors += [value] if value.requires_grad else []
        elif is_users(kind.__module__) or kind in FILLED_BY_THE_USER:
            self._look_into(value, kind)

    def _look_into(self, value: Any, kind: type) -> None:
        """Look into a plain object."""
        if (own := attributes_of(value)) is not None:
            self.found.stores.append(own)
            self._note_computed(kind, own)
            self._wait(own, own.items())
            self.code.add(kind)
        if slots := slots_of(kind):
            self.found.stores.append(value)
            self._wait(value, [(name, Slot(value, name).get()) for name in slots])

    def _wait(self, holder: Any, items: Iterable[tuple[Any, Any]]) -> None:
        self._waiting.extend((holder, key, item) for key, item in items if not is_atomic(item))


# What code leads to -----------------------------------------------------------------------------------------

_KNOWN_LIMIT = 32
"""Sets of classes whose search is remembered: as few as do, for what was found is kept alive meanwhile."""


class _Known(NamedTuple):
    """The result of a search, and the globals that it looked at, by their ids."""

    homes: list[dict[str, Any]]
    names: list[str]
    ids: list[int]
    found: Reached
    modules: list[weakref.ref[nn.Module]]
    tensors: list[weakref.ref[Tensor]]

    @classmethod
    def of(cls, search: Search) -> _Known:
        found = search.found
        homes, names = [slot.holder for slot in search.globals], [slot.key for slot in search.globals]
        return cls(
            homes,
            names,
            _ids(homes, names),
            replace(found, modules={}, tensors=[]),
            [weakref.ref(module) for module in found.modules.values()],
            [weakref.ref(tensor) for tensor in found.tensors],
        )

    def is_true(self) -> bool:
        """Tell whether the globals are those that they were."""
        return _ids(self.homes, self.names) == self.ids

    def reached(self) -> Reached:
        modules = [module for ref in self.modules if (module := ref()) is not None]
        tensors = [tensor for ref in self.tensors if (tensor := ref()) is not None]
        return replace(self.found, modules={str(i): m for i, m in enumerate(modules)}, tensors=tensors)


def _ids(homes: list[dict[str, Any]], names: list[str]) -> list[int]:
    return list(map(id, map(dict.get, homes, names)))


_known: dict[tuple[frozenset[Any], frozenset[str]], _Known] = {}


def led_to(code: Collection[Any], names: Collection[str] = ()) -> Reached:
    """Return what these classes and functions lead to, the attributes of these names included."""
    if not code:
        return Reached()
    bases = [base for start in code if isinstance(start, type) for base in start.__mro__] if names else []
    used = frozenset(name for base in bases for name in vars(base) if name in names)
    key = frozenset(map(weakref.ref, code)), used
    known = _known.get(key)
    if known is None or not known.is_true():
        search = Search(names=used)
        for start in code:
            search.follow(start)
        while len(_known) >= _KNOWN_LIMIT:
            del _known[next(iter(_known))]
        known = _known[key] = _Known.of(search)
    return known.reached()
