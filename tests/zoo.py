"""Well-known models without their weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class _WeightsOnMeta(TorchFunctionMode):
    """Put what `torch.empty` makes on meta, which is where the layers get their weights from.

    A `torch.device("meta")` would also take the small tensors that constructors read values of.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def weightless(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a model whose parameters take neither memory nor time."""
    with _WeightsOnMeta():
        model = build()
    return model.to("meta").eval()
