"""How much a run on shapes computes for real: small results alone, told before they are computed.

A mask of length × length is made of two rows of positions, and takes seconds and gigabytes where a model is
counted at its full length. Nobody reads its values: what models ask for are those of `mask.all()` over batch
× length, and of smaller results.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from pytest_flops.counting.calls import Call
from pytest_flops.counting.op_results import New, Result, Several

CONCRETE_LIMIT = 1 << 22
"""Elements up to which a result is computed for real; larger ones are symbolic. As many are 32 sequences of
131,072 tokens, and a mask of 2,048 × 2,048."""

_aten = torch.ops.aten
_SQUARES = frozenset({_aten.eye.default, _aten.eye.m, _aten.tril_indices.default, _aten.triu_indices.default})


def may_be_big(call: Call) -> bool:
    """Tell quickly whether an op on values may return more than is computed for real.

    Tensors can be broadcast or indexed to no more than the product of their sizes, and repeated as often as
    the integers among the arguments say.
    """
    if not call.tensors:
        return _asked_for(call) > CONCRETE_LIMIT
    most = 1
    for tensor in call.tensors:
        most *= tensor.numel() or 1
    for part in call.key:
        if type(part) is int and part:
            most *= abs(part)
    return most > CONCRETE_LIMIT


def _asked_for(call: Call) -> float:
    """Return how many elements a factory is asked for at most: by a size, or by the ends of a range."""
    for size in (*call.args, *call.kwargs.values()):
        if isinstance(size, (list, tuple)):
            return math.prod(length for length in size if type(length) is int)
    length = sum(map(_steps, call.args))
    return length * length if call.func in _SQUARES else length


def _steps(number: Any) -> float:
    """Return how many steps of one a number is, or how many of its size one is."""
    if not isinstance(number, (int, float)) or not number:
        return 0
    return abs(number) if isinstance(number, int) else max(abs(number), 1 / abs(number))


def is_big(result: Result) -> bool:
    """Tell whether a result is of new tensors, and one of them is more than is computed for real."""
    parts: Iterable[Result] = result.parts if type(result) is Several else (result,)
    sizes = [part.size.numel() if type(part) is New else -1 for part in parts if part is not None]
    return bool(sizes) and min(sizes) >= 0 and max(sizes) > CONCRETE_LIMIT
