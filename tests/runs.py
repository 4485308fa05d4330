"""What runs of pytest inside a test need: tiny models, options, and torch imported before."""

from __future__ import annotations

from importlib import import_module
from pkgutil import walk_packages

# hypothesis, where it is installed, would be imported anew at the end of every run inside a test: 1 s.
QUICK: tuple[str, ...] = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")

# The run around a run inside a test has imported the plugin, which pytest would rather have rewritten first.
QUICK += ("-W", "ignore::pytest.PytestAssertRewriteWarning")

NET = """
import pytest
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up = nn.Linear(3, width)
        self.down = nn.Linear(width, 3)

    def forward(self, x):
        return self.down(self.up(x))


class Net(nn.Module):
    def __init__(self, widths=(4, 4), shift=False, head=False):
        super().__init__()
        self.blocks = nn.Sequential(*(Block(width) for width in widths))
        self.shift = shift
        if head:
            self.head = nn.Linear(3, 7)

    def forward(self, x):
        x = self.blocks(x)
        if self.shift:
            x += 1.0
        return self.head(x) if hasattr(self, "head") else x


def x(batch=2):
    return torch.randn(batch, 3)
"""


def load_torch() -> None:
    """Import torch and every room, once: pytester unloads what is first imported by a run inside."""
    import torch

    import pytest_flops
    from pytest_flops.counting.trace import trace

    for room in walk_packages(pytest_flops.__path__, "pytest_flops."):
        import_module(room.name)
    trace(torch.nn.Linear(2, 3), (torch.zeros(1, 2),))
