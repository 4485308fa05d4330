"""What code and data lead to: the modules, tensors, containers and caches that a function or a class uses.

Followed are the names that code uses: of a function its closure, its defaults, and the globals that it
loads; of an object or a class the attributes that any code found so far names. What belongs to torch, NumPy
or the standard library is not entered, for it holds nothing of the user's.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import contextvars
import enum
import functools
import inspect
import random
import sys
import threading
import types
import weakref
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from pytest_flops.counting.caches import Cached, contents_of
from pytest_flops.counting.code_names import Names, names_in
from pytest_flops.counting.places import Slot, is_atomic, items_of, leaves_of

CONTAINERS = frozenset({dict, list, set, collections.OrderedDict, collections.defaultdict, collections.deque})
"""What is put back item by item."""
_NOT_THE_USERS = frozenset(
    {"torch", "numpy", "pytest", "_pytest", "pluggy", "pytest_flops", *sys.stdlib_module_names}
)
FILLED_BY_THE_USER = (
    *(types.SimpleNamespace, argparse.Namespace, threading.local, weakref.WeakValueDictionary),
    *(collections.UserDict, collections.UserList, collections.ChainMap),
)
_USED_UNNAMED = frozenset(
    {
        *("forward", "__call__", "__getitem__", "__setitem__", "__getattr__", "__iter__", "__next__"),
        *("__len__", "__contains__", "__enter__", "__exit__", "__get__", "__add__", "__mul__", "__matmul__"),
        *("__init__", "__new__", "__post_init__", "__torch_function__", "__wrapped__"),
        *(
            "data",
            "maps",
            "_torchdynamo_orig_callable",
        ),  # of collections.UserDict and its like; of torch.compile
    }
)
"""Attributes that are used without being named."""
_RUN_BEFORE = frozenset({"__init__", "__new__", "__post_init__"})
"""What makes an object, long before it is counted."""
_WRAPPERS: dict[type, tuple[str, ...]] = {
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
    property: ("fget",),
    functools.cached_property: ("func",),
    functools.partialmethod: ("func", "args", "keywords"),
    functools.singledispatchmethod: ("dispatcher",),
    types.MethodType: ("__func__", "__self__"),
    types.BuiltinMethodType: ("__self__",),
    types.MethodWrapperType: ("__self__",),
    Cached: ("__wrapped__",),
}
"""Where values of Python's own kinds keep what they stand for."""
_CODE = frozenset({*_WRAPPERS, type, functools.partial, weakref.ReferenceType, contextvars.ContextVar})
_DYNAMIC = frozenset({"__dict__", "vars", "getattr", "attrgetter"})
"""Ways to reach attributes that no name tells of. Met in the Python module of the function that is counted,
all attributes of objects are followed; met in other modules that would be far too many."""
_SEARCH_LIMIT = 5_000
CONTAINER_LIMIT = 1_000
_REGISTRY_LIMIT = 64
"""Items up to which a container is looked into; the lower limit is for what only the code of a class names,
where a longer one is a library's table of all that it has."""

Path = tuple[str, ...]


def is_users(module: str | None) -> bool:
    """Tell whether a module of this name, and what is defined there, may hold something of the user's."""
    return (module or "").partition(".")[0] not in _NOT_THE_USERS


@functools.lru_cache(maxsize=4096)
def is_generator(kind: type) -> bool:
    """Tell whether objects of a class draw random numbers from a state of their own."""
    return issubclass(kind, (torch.Generator, random.Random)) or kind.__module__.startswith("numpy.random")


def attributes_of(value: Any) -> dict[str, Any] | None:
    """Return the `__dict__` of an object; None where it has none, or makes one up."""
    kind: Any = type(value)
    own: dict[str, Any] | None = None
    if issubclass(kind, threading.local):
        own = vars(value)
    elif _keeps_attributes(kind):
        own = object.__getattribute__(value, "__dict__")
    return own


@functools.lru_cache(maxsize=4096)
def _keeps_attributes(kind: type) -> bool:
    """Tell whether objects of a class have a `__dict__`: Python's own, where a proxy has its target's."""
    found = [vars(base)["__dict__"] for base in kind.__mro__ if "__dict__" in vars(base)]
    return bool(found) and isinstance(found[0], (types.GetSetDescriptorType, types.MemberDescriptorType))


@functools.lru_cache(maxsize=4096)
def slots_of(kind: type) -> tuple[str, ...]:
    """Return the names of the attributes that objects of a class keep outside a `__dict__`."""
    return tuple(
        name
        for base in kind.__mro__
        for name, value in vars(base).items()
        if isinstance(value, types.MemberDescriptorType) and is_users(base.__module__)
    )


@functools.lru_cache(maxsize=4096)
def cached_properties_of(kind: type) -> tuple[str, ...]:
    """Return the names of the `functools.cached_property` attributes of a class."""
    return tuple(
        name
        for base in kind.__mro__
        for name, value in vars(base).items()
        if isinstance(value, functools.cached_property)
    )


@dataclass
class Reached:
    """What was found: to be counted, or to be put back after a run."""

    modules: dict[str, nn.Module] = field(default_factory=dict)
    """Modules by path; what is inside them is not here."""
    tensors: list[Tensor] = field(default_factory=list)
    """Tensors that want a gradient."""
    places: list[Slot] = field(default_factory=list)
    """Where such tensors are: there or in what cannot be written."""
    generators: list[Any] = field(default_factory=list)
    """What draws random numbers from a state of its own."""
    stores: list[Any] = field(default_factory=list)
    """Of what modules have as attributes: containers, the `__dict__` of objects, and objects with slots."""
    caches: list[Slot] = field(default_factory=list)
    """Where caches of `functools` are."""
    computed: list[Slot] = field(default_factory=list)
    """Where cached properties have put what they computed."""
    objects: list[Any] = field(default_factory=list)
    """What a function holds or names beside these: the attributes of such objects are to be put back."""
    names: set[str] = field(default_factory=set)
    """Attributes that the code found uses."""

    def add(self, other: Reached) -> None:
        """Add what another search found."""
        for part in fields(self):
            mine, others = getattr(self, part.name), getattr(other, part.name)
            if isinstance(mine, list):
                mine.extend(others)
        self.names |= other.names
        for path, module in other.modules.items():
            self.add_module(path, module)

    def note(self, slot: Slot, value: Any) -> None:
        """Note a place where another value is to be put for a run, if it is one."""
        leaves = list(leaves_of(value))
        if any(type(leaf) is Cached for leaf in leaves):
            self.caches.append(slot)
        if any(issubclass(type(leaf), Tensor) and leaf.requires_grad for leaf in leaves):
            self.places.append(slot)

    def add_module(self, path: str, module: nn.Module) -> None:
        """Add a module under a path, or under the next one that is free."""
        name, number = path, 0
        while name in self.modules:
            number += 1
            name = f"{path}_{number}"
        self.modules[name] = module


# The search -------------------------------------------------------------------------------------------------


class Search:
    """A walk from code and data to all that they lead to, what is nearest first.

    `exact` is for what is counted: a global is reached only where code loads it, and the path of a module
    is what the code calls it: "net", "runner.net", "nets.0". Without it the search is fast, and at times
    finds too much, which does no harm to what is only put back. With `whole`, all attributes are followed.
    """

    def __init__(self, *, exact: bool = False, whole: bool = False, names: Iterable[str] = ()) -> None:
        self.found = Reached()
        self.globals: list[Slot] = []
        """All globals that were looked up."""
        self._exact = exact
        self._home: dict[str, Any] | None = None
        self._used = {*_USED_UNNAMED, *names}
        self._unnamed: dict[str, list[tuple[Path, Slot]]] = {}
        self._waiting: collections.deque[tuple[Path, Slot | None, Any]] = collections.deque()
        self._seen: dict[int, Any] = {}
        self._open: set[int] = set()
        self._whole = whole

    def follow(self, value: Any, path: Path = (), slot: Slot | None = None) -> None:
        """Find what a value leads to; `path` is what the code calls it, `slot` where it is."""
        self._waiting.append((path, slot, value))
        while self._waiting and len(self._seen) < _SEARCH_LIMIT:
            self._look(*self._waiting.popleft())

    def _look(self, path: Path, slot: Slot | None, value: Any) -> None:
        if is_atomic(value):
            return
        if slot is not None:
            self.found.note(slot, value)
        if id(value) in self._seen:
            return
        self._seen[id(value)] = value  # kept, so that no other value gets its id
        kind: type = type(value)  # `isinstance` would ask a proxy for the class that it pretends to be of
        if is_generator(kind):
            self.found.generators.append(value)
        elif issubclass(kind, nn.Module):
            self.found.add_module(".".join(path), value)
        elif issubclass(kind, Tensor):
            self.found.tensors += [value] if value.requires_grad else []
        elif kind is types.FunctionType:
            self._enter_function(value)
        else:
            self._enter(path, value)
            if self._exact and kind not in _CODE and self._is_near(slot):
                self.found.objects.append(value)

    def _is_near(self, slot: Slot | None) -> bool:
        """Tell whether a place is the function's: held by it, or a global beside it, and not a library's."""
        if slot is None or slot.holder is self._home:
            return True
        return type(slot.holder) in (types.CellType, types.FunctionType, list)

    def _visit(self, path: Path, slot: Slot) -> None:
        self._waiting.append((path, slot, slot.get()))

    # -- code -------------------------------------------------------------------------------------------

    def _enter_function(self, function: types.FunctionType) -> None:
        names = names_in(function.__code__, exact=self._exact)
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        for name, cell in cells.items():
            self._visit((name,), Slot(cell))
        self._enter_defaults(function)
        self._offer((), vars(function), vars(function))
        if is_users(function.__globals__.get("__name__")):
            self.found.names |= names.used
            self._use(names.used)
            self._enter_globals(function.__globals__, names)

    def _enter_defaults(self, function: types.FunctionType) -> None:
        code, defaults = function.__code__, function.__defaults__ or ()
        names = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
        self._waiting.extend(((name,), None, value) for name, value in zip(names, defaults, strict=True))
        self._visit((), Slot(function, "__defaults__"))
        self._visit((), Slot(function, "__kwdefaults__"))

    def _enter_globals(self, home: dict[str, Any], names: Names) -> None:
        if self._exact and (self._home is None or self._home is home) and names.used & _DYNAMIC:
            self._whole = True
            self._use(list(self._unnamed))
        self._home = self._home or home
        for name in names.used if "globals" in names.loaded else names.loaded:
            if name in home:
                self._visit_global(home, name, names.used)
        for name in names.imported:
            for full in (name, f"{home.get('__package__')}.{name}"):
                self._visit_module(sys.modules.get(full), names.used)

    def _visit_global(self, home: dict[str, Any], name: str, used: Iterable[str]) -> None:
        self.globals.append(Slot(home, name))
        if issubclass(type(home[name]), types.ModuleType):
            self._visit_module(home[name], used)
        else:
            self._visit((name,), Slot(home, name))

    def _visit_module(self, module: types.ModuleType | None, used: Iterable[str]) -> None:
        """Visit what a Python module has under these names: the code says `helpers.scale(x)`."""
        if module is None or not is_users(module.__name__) or id(module) in self._open:
            return
        self._open.add(id(module))  # `module` may have itself under one of the names
        for name in used:
            if name in vars(module):
                self._visit_global(vars(module), name, used)
        self._open.discard(id(module))

    def _use(self, names: Iterable[str]) -> None:
        """Visit the attributes of these names, of whatever was found so far and of what is to come."""
        for name in names:
            self._used.add(name)
            for path, slot in self._unnamed.pop(name, ()):
                self._visit(path, slot)

    # -- data -------------------------------------------------------------------------------------------

    def _enter(self, path: Path, value: Any) -> None:
        kind: type = type(value)
        if issubclass(kind, type):
            self._enter_class(path, value, _RUN_BEFORE if issubclass(value, nn.Module) else ())
            self._enter_class(path, kind, _RUN_BEFORE)
        elif kind is functools.partial:
            self._waiting.append((path, None, value.func))
            self._waiting.extend(((name,), None, argument) for name, argument in arguments_of(value).items())
        elif kind in _WRAPPERS:
            self._waiting.extend((path, None, getattr(value, name, None)) for name in _WRAPPERS[kind])
            if kind is Cached:  # a model that is made when first asked for
                self._waiting.extend((path, None, part) for part in contents_of(value))
        elif issubclass(kind, weakref.ReferenceType):
            self._waiting.append((path, None, value()))
        elif kind is contextvars.ContextVar:
            with contextlib.suppress(LookupError):
                self._waiting.append((path, None, value.get()))
        else:
            self._enter_items(path, value)
            self._enter_object(path, value)

    def _enter_items(self, path: Path, container: Any) -> None:
        items = items_of(container, CONTAINER_LIMIT if self._exact else _REGISTRY_LIMIT)
        if not items:
            return
        is_slotted = issubclass(type(container), (dict, list))
        names = getattr(type(container), "_fields", ())  # of a named tuple
        for key, item in items:
            kind = type(item)
            if not issubclass(kind, type):  # a registry of classes, of which hardly any is used
                is_place = is_slotted and (self._exact or kind is not tuple)
                slot = Slot(container, key) if is_place else None
                name = names[key] if names else str(key)
                self._waiting.append(((*path, name), slot, item))

    def _enter_class(self, path: Path, kind: type, without: Collection[str]) -> None:
        for base in kind.__mro__:
            if is_users(base.__module__):
                self._offer(path, base, [name for name in vars(base) if name not in without])

    def _enter_object(self, path: Path, value: Any) -> None:
        kind: type = type(value)
        is_open = is_users(kind.__module__) and not issubclass(kind, enum.Enum)
        if not is_open and kind not in FILLED_BY_THE_USER:
            return
        if (own := attributes_of(value)) is not None:
            self._offer(path, own, own)
            self.found.computed += [Slot(own, name) for name in cached_properties_of(kind) if name in own]
        self._offer(path, value, slots_of(kind))
        if id(kind) not in self._seen:
            self._seen[id(kind)] = kind
            self._enter_class(path, kind, _RUN_BEFORE)

    def _offer(self, path: Path, holder: Any, names: Iterable[str]) -> None:
        """Visit the attributes that code has named, and keep the others until some code does."""
        for name in names:
            place = ((*path, name), Slot(holder, name))
            if name in self._used or (self._whole and not isinstance(holder, type)):
                self._visit(*place)
            else:
                self._unnamed.setdefault(name, []).append(place)


def arguments_of(partial: functools.partial[Any]) -> dict[str, Any]:
    """Return the arguments that a partial holds by the names that its function gives them."""
    try:
        return inspect.signature(partial.func).bind_partial(*partial.args, **partial.keywords).arguments
    except (TypeError, ValueError):
        return {f"args_{i}": value for i, value in enumerate(partial.args)} | partial.keywords
