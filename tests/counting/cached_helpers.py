"""A module of helpers with caches, for models elsewhere to reach in all the ways there are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


@functools.lru_cache
def table(n: int) -> Tensor:
    """Return n numbers at a cost of 2n: a product and a sum."""
    return torch.arange(n).float().mul(2.0).add(1.0)


def through_another(n: int) -> Tensor:
    """Return the table, by way of a function without a cache."""
    return table(n)


def cached_by_hand(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function as transformers does: with a cache that only the wrapper's closure holds."""
    cache = functools.lru_cache(maxsize=4)(function)

    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return cache(*args)

    return wrapper


@cached_by_hand
def closed_table(n: int) -> Tensor:
    """Return what `table` does, from a cache in a closure."""
    return torch.arange(n).float().mul(2.0).add(1.0)


class Tables:
    """Caches in a class that is no module's."""

    @staticmethod
    @functools.cache
    def static(n: int) -> Tensor:
        """Return what `table` does."""
        return torch.arange(n).float().mul(2.0).add(1.0)

    @classmethod
    @functools.lru_cache(maxsize=None, typed=True)
    def of_class(cls, n: int) -> Tensor:
        """Return what `table` does."""
        return torch.arange(n).float().mul(2.0).add(1.0)

    @functools.cached_property
    def computed(self) -> Tensor:
        """Return what `table` does for 8."""
        return torch.arange(8).float().mul(2.0).add(1.0)
