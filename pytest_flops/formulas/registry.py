"""The one registry of FLOP formulas, and how an op without an entry gets its answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch._ops import OpOverload, OpOverloadPacket  # the types of `torch.ops.*`; torch publishes no alias

from pytest_flops.errors import FormulaError


class Cost(NamedTuple):
    """FLOPs, and the multiply-accumulates of contractions among them."""

    flops: int
    macs: int = 0


Formula = Callable[..., "Cost | int"]
"""Called as `formula(*args, out=result, **kwargs)` with the op's own arguments.

Tensors carry metadata only (they may be on meta): read `.shape`, `.ndim`, `.dtype`, `.is_complex()`, nothing
else. Returns a `Cost`, or plain FLOPs for an op without multiply-accumulates. May return `NotImplemented` to
leave the op to its decomposition.
"""
