"""The caches of `functools`: found in values, fresh while a model runs, and afterwards as they were found.

What a cache holds would make a count depend on what ran before; what a run leaves there (tensors without
data, or made in inference mode) would break what runs after it. So a run gets caches of its own: of the
same kind, over the same functions, in every place where one of the user's is found, which itself is not
touched.
"""

from __future__ import annotations

import functools
import gc
import inspect
import types
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from torch import Tensor, nn

from pytest_flops.counting.code_names import names_in
from pytest_flops.counting.places import Slot, leaves_of, parts_of, remade

Cached = functools._lru_cache_wrapper
"""What `lru_cache` and `cache` make; the name is private, for want of a public one."""


class FreshCaches:
    """Fresh caches in the places where caches are; `restore` puts the old ones back, any number of times.

    A cache that has nothing to do with tensors (is a package there? has this been warned of?) is left
    alone, and so is one that holds models. If a run leaves tensors in it all the same, it is emptied.
    """

    def __init__(self, slots: Iterable[Slot], computed: Iterable[Slot]) -> None:
        self._computed = [(slot, slot.get()) for slot in computed]
        self._fresh: dict[int, Any] = {}
        self._left: dict[int, tuple[Any, int]] = {}
        found = [(slot, slot.get()) for slot in slots]
        self._old = [(slot, old) for slot, old in found if any([*map(self._is_of_tensors, caches_in(old))])]

    def _is_of_tensors(self, cache: Any) -> bool:
        """Tell whether a fresh one is to stand for a cache, which else is left alone."""
        known = _Known.of(cache)
        if not known.has_models and (known.has_tensors or known.uses_torch):
            return True
        self._left[id(cache)] = cache, known.misses
        return False

    def empty(self) -> None:
        """Put the fresh ones in place; forget what cached properties have computed."""
        for slot, old in self._old:
            slot.put(remade(old, self._stand_in))
        for slot, _ in self._computed:
            slot.holder.pop(slot.key, None)

    def _stand_in(self, cache: Any) -> Any:
        if type(cache) is not Cached or id(cache) in self._left:
            return cache
        if id(cache) not in self._fresh:  # what is in two places stays one
            self._fresh[id(cache)] = _like(cache)
        return self._fresh[id(cache)]

    def restore(self) -> None:
        """Put the old caches back, and let none keep what the run made."""
        for slot, old in (*self._old, *self._computed):
            slot.put(old)
        for fresh in self._fresh.values():
            fresh.cache_clear()  # somebody may have kept it
        for cache, misses in self._left.values():
            if cache.cache_info().misses != misses and _Known.of(cache).is_new_to_tensors:
                cache.cache_clear()


class _Known:
    """What is known of a cache, looked up again when more has been put into it."""

    all: ClassVar[weakref.WeakKeyDictionary[Any, _Known]] = weakref.WeakKeyDictionary()

    def __init__(self, cache: Any) -> None:
        self.misses = -1
        self.has_models = self.has_tensors = self.is_new_to_tensors = False
        function = inspect.unwrap(cache)
        is_code = isinstance(function, types.FunctionType)
        self.uses_torch = not is_code or _names_torch(function) or _may_be_method(function)
        """Whether its function names anything of torch's, or may be a method of a module."""

    @classmethod
    def of(cls, cache: Any) -> _Known:
        if (known := cls.all.get(cache)) is None:
            known = cls.all[cache] = cls(cache)
        if known.misses != (misses := cache.cache_info().misses):
            had_any = known.has_models or known.has_tensors
            kinds = [type(part) for part in contents_of(cache)]
            known.has_models = any(issubclass(kind, nn.Module) for kind in kinds)
            known.has_tensors = any(issubclass(kind, Tensor) for kind in kinds)
            known.is_new_to_tensors = bool(kinds) and not had_any
            known.misses = misses
        return known


def _names_torch(function: types.FunctionType) -> bool:
    names, home = names_in(function.__code__, exact=False), function.__globals__
    named = [home[name] for name in names.loaded if name in home]
    homes = [getattr(value, "__module__", None) or getattr(value, "__name__", None) for value in named]
    return any(str(name).partition(".")[0] == "torch" for name in (*names.imported, *homes))


def _may_be_method(function: types.FunctionType) -> bool:
    """Tell whether a function is a method of a module's class; one of a class that cannot be found may be."""
    first, *rest = function.__qualname__.split(".")
    owner = function.__globals__.get(first)
    for name in rest[:-1]:
        owner = getattr(owner, name, None)
    return bool(rest) and (not isinstance(owner, type) or issubclass(owner, nn.Module))


def contents_of(cache: Any) -> Iterator[Any]:
    """Yield the tensors and modules among the results that a cache holds."""
    if not cache.cache_info().currsize:
        return
    held = [part for part in gc.get_referents(cache) if part is not vars(cache)]
    keys = {id(key) for part in held if isinstance(part, dict) for key in part}
    for part in held:  # one of them is the dict from keys to results, or to links that hide them
        if id(part) not in keys and part is not cache.__wrapped__:
            inside = parts_of(list(part.values()) if isinstance(part, dict) else part)
            yield from (found for found in inside if isinstance(found, (Tensor, nn.Module)))


def _like(cache: Any) -> Any:
    """Return an empty cache of the same kind over the same function."""
    function = cache.__wrapped__
    fresh = functools.lru_cache(**cache.cache_parameters())(function)
    functools.update_wrapper(fresh, cache)
    fresh.__wrapped__ = function
    return fresh


def caches_in(value: Any) -> list[Any]:
    """Return the caches in a value."""
    return [leaf for leaf in leaves_of(value) if type(leaf) is Cached]
