"""Which composites have to be counted as a whole, although autograd shows their parts alone.

In inference mode an op that PyTorch composes of others arrives whole, and its formula answers. Under autograd
it is taken apart before a dispatch mode can see it. The parts of nearly all add up to the same, which a test
holds; those that do not are named here. A formula that a user registers for a composite may say anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache, lru_cache

import torch
from torch._ops import OpOverload  # the type of `torch.ops.aten.add.Tensor`; torch publishes no alias

from pytest_flops.formulas.registry import (
    formula_for,
    generation,
    is_composite,
    no_flops,
    registered_names,
    torchs_names,
    users_formulas,
)

DIFFERENT_IN_PARTS = {
    "aten::scaled_dot_product_attention": "backends compute it in several ways",
    "aten::_scaled_dot_product_attention_math": "it scales queries and keys rather than scores",
    "aten::instance_norm": "it averages the statistics of a batch by ops of their own",
    "aten::one_hot": "on the CPU it checks the range of its indices",
}


@cache
def different_in_parts() -> tuple[OpOverload, ...]:
    """Return the composites whose formula from this package says other than their parts."""
    return tuple(_composites(DIFFERENT_IN_PARTS))


def with_users_formula() -> tuple[OpOverload, ...]:
    """Return the composites that a user gave a formula, here or with PyTorch's own counter."""
    return tuple(_composites([*users_formulas(), *torchs_names()]))


def with_any_formula() -> tuple[OpOverload, ...]:
    """Return the composites that have a formula and are not zero by kind."""
    return _with_any_formula(generation())


@lru_cache(maxsize=1)
def _with_any_formula(generation: int) -> tuple[OpOverload, ...]:
    return tuple(func for func in _composites(registered_names()) if formula_for(func) is not no_flops)


def _composites(names: Iterable[str]) -> Iterator[OpOverload]:
    return filter(is_composite, dict.fromkeys(_ops_named(names)))


def _ops_named(names: Iterable[str]) -> Iterator[OpOverload]:
    """Yield the ops that qualified names stand for, all overloads where none is named, in-place twins too."""
    for name in names:
        namespace, _, rest = name.partition("::")
        op, _, overload = rest.partition(".")
        for twin in (op, f"{op}_"):
            packet = getattr(getattr(torch.ops, namespace), twin, None)
            overloads = packet.overloads() if packet is not None else ()
            yield from (getattr(packet, each) for each in overloads if overload in ("", each))
