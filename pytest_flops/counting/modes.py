"""Putting a model into training or eval mode, for a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from torch import nn


def switch_mode(root: nn.Module, modules: Iterable[nn.Module], *, train: bool) -> None:
    """Put a model, with these modules, into training or eval mode; call it inside `preserve.Untouched`.

    Modules that override `train` to stay frozen do. One that `torch.export` made refuses: it stays in the
    mode that it was exported in.
    """
    for module in modules:
        if (own := module.__dict__.get("train")) is not None:  # as `torch.export` sets it
            module.__dict__["train"] = partial(_tried, module, own)
    root.train(train)


def _tried(module: nn.Module, switch: Callable[[bool], nn.Module], mode: bool = True) -> nn.Module:
    try:
        return switch(mode)
    except NotImplementedError:
        return module
