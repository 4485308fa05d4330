"""Small models that several files of tests run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Calls(nn.Module):
    """A model with one Linear(5, 4) whose forward is a function of (module, *inputs)."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.lin = nn.Linear(5, 4)
        self.run = forward

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.run(self, *inputs, **named)


class Toy(nn.Module):
    """The model of the README of torch_flops, with and without the `--add_one` of its compare.py."""

    def __init__(self, add_one: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 4)
        self.add_one = add_one

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        if self.add_one:
            x += 1.0
        return x
