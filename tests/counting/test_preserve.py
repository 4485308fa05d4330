"""A trace leaves the model and the process as it found them, also when the model raises."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_flops import trace


class Helper:
    cache: int | None = None


class Meddler(nn.Module):
    """Runs `act(self)` in its forward, and raises afterwards if told to."""

    def __init__(self, act: Callable[[Any], object], raises: bool) -> None:
        super().__init__()
        self.lin = nn.Linear(5, 5)
        self.norm = nn.BatchNorm1d(5)
        self.plain = torch.zeros(2)
        self.count = 0
        self.seen: list[int] = [1]
        self.cache: dict[str, int] = {}
        self.nested: list[list[int]] = [[1], []]
        self.helper = Helper()
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("scale", torch.ones(5))
        self.lin.weight.grad = torch.full((5, 5), 2.0)
        self.lin.bias.requires_grad_(False)
        self.act = act
        self.raises = raises

    def forward(self, x: Tensor) -> Tensor:
        self.act(self)
        out = self.norm(self.lin(x) * self.scale)
        if self.raises:
            raise ValueError("on purpose")
        return out


def freeze(value: Any) -> Any:
    """Describe a value so that two descriptions are equal only if nothing changed."""
    if isinstance(value, Tensor):
        grad = value.grad if value.is_leaf else None
        return (id(value), value.data_ptr(), value.tolist(), value.requires_grad, id(grad), freeze_grad(grad))
    if isinstance(value, (dict, OrderedDict)):
        return (id(value), {key: freeze(item) for key, item in value.items()})
    if isinstance(value, (list, set)):
        return (id(value), [freeze(item) for item in value])
    if isinstance(value, Helper):
        return (id(value), dict(vars(value)))
    return value if isinstance(value, (int, str, bool, type(None))) else id(value)


def freeze_grad(grad: Tensor | None) -> Any:
    return None if grad is None else grad.tolist()


def state(model: nn.Module) -> Any:
    return [
        {name: freeze(value) for name, value in module.__dict__.items() if name != "_modules"}
        | {"modules": {name: id(child) for name, child in module._modules.items()}}
        for module in model.modules()
    ]


def process_state() -> Any:
    import numpy

    return (
        torch.get_rng_state().tolist(),
        random.getstate(),
        numpy.random.get_state()[1].tolist(),
        torch.get_default_dtype(),
        torch.empty(0).device,
        torch.backends.mha.get_fastpath_enabled(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.nn.Module.__call__,
        torch.utils._python_dispatch._len_torch_dispatch_stack(),
        torch._C._len_torch_function_stack(),
    )


def draw(model: Any) -> None:
    import numpy

    torch.rand(3)
    random.random()
    numpy.random.rand()


ACTS: dict[str, Callable[[Any], object]] = {
    "nothing": lambda self: None,
    "an attribute": lambda self: setattr(self, "count", self.count + 1),
    "a new attribute": lambda self: setattr(self, "last", 1),
    "a deleted attribute": lambda self: delattr(self, "count"),
    "a list": lambda self: self.seen.append(2),
    "a list in a list": lambda self: self.nested[0].append(2),
    "a helper object": lambda self: setattr(self.helper, "cache", 7),
    "an empty dict": lambda self: self.cache.update(a=1),
    "a whole buffer": lambda self: self.steps.add_(1),
    "a floating buffer": lambda self: self.scale.mul_(2),
    "a rebound buffer": lambda self: setattr(self, "scale", self.scale * 2),
    "a new buffer": lambda self: self.register_buffer("other", torch.ones(1)),
    "a plain tensor": lambda self: self.plain.add_(1),
    "a parameter": lambda self: self.lin.weight.data.mul_(2),
    "a rebound parameter": lambda self: setattr(self.lin, "weight", nn.Parameter(torch.ones(5, 5))),
    "parameter data": lambda self: setattr(self.lin.weight, "data", torch.ones(5, 5)),
    "a gradient": lambda self: setattr(self.lin.weight, "grad", None),
    "gradients": lambda self: self.zero_grad(),
    "a new gradient": lambda self: setattr(self.lin.bias, "grad", torch.ones(5)),
    "requires_grad": lambda self: self.lin.weight.requires_grad_(False),
    "a hook": lambda self: self.lin.register_forward_hook(lambda *_: None),
    "a module": lambda self: self.add_module("other", nn.ReLU()),
    "flags": lambda self: self.train(not self.training),
    "random states": draw,
    "the default dtype": lambda self: torch.set_default_dtype(torch.float64),
    "the default device": lambda self: torch.set_default_device("meta"),
    "the fast path": lambda self: torch.backends.mha.set_fastpath_enabled(False),
}


MAY_FAIL = ("the default dtype", "the default device", "parameter data")
"""Meddling after which the rest of the forward pass cannot run; it must leave no trace all the same."""


@pytest.mark.parametrize("raises", [False, True], ids=["returns", "raises"])
@pytest.mark.parametrize("execute", ["meta", "real"])
@pytest.mark.parametrize("act", ACTS)
def test_left_as_found(act: str, execute: Any, raises: bool) -> None:
    model = Meddler(ACTS[act], raises)
    x = torch.randn(3, 5)
    before, process, given = state(model), process_state(), freeze(x)
    tolerated = (RuntimeError, ValueError) if act in MAY_FAIL else ()
    with (
        pytest.raises(ValueError, match="on purpose")
        if raises and act not in MAY_FAIL
        else suppress(*tolerated)
    ):
        trace(model, x, train=True, execute=execute)
    assert state(model) == before
    assert process_state() == process
    assert freeze(x) == given


def test_inputs_written_in_place_are_put_back() -> None:
    whole, floating = torch.arange(4), torch.ones(4)
    for execute in ("meta", "real"):
        trace(lambda a, b: (a.add_(1), b.mul_(3)), (whole, floating), execute=execute)
        assert (whole.tolist(), floating.tolist()) == ([0, 1, 2, 3], [1.0] * 4)


def test_tensors_of_a_closure_are_put_back() -> None:
    counter = torch.zeros(1)
    trace(lambda x: x * counter.add_(1), torch.ones(3), execute="real")
    assert counter.item() == 0


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d])
def test_running_statistics_are_put_back_though_pytorch_does_not_declare_them(norm: Any) -> None:
    model = norm(3, affine=True, track_running_stats=True)
    for execute in ("meta", "real"):
        trace(model, torch.randn(2, 3, 4, 4), train=True, execute=execute)
        assert model.running_mean.tolist() == [0, 0, 0]
        assert model.running_var.tolist() == [1, 1, 1]
        assert model.num_batches_tracked.item() == 0


def test_the_next_model_counts_as_ever() -> None:
    model = Meddler(ACTS["nothing"], raises=False)
    expected = trace(model, torch.randn(3, 5)).flops
    with pytest.raises(ValueError, match="on purpose"):
        trace(Meddler(ACTS["nothing"], raises=True), torch.randn(3, 5))
    assert trace(model, torch.randn(3, 5)).flops == expected


def test_the_model_still_computes_what_it_did() -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5), nn.ReLU()).train()
    x = torch.randn(3, 5)
    torch.manual_seed(0)
    expected = [p.detach().clone() for p in model.parameters()]
    trace(model, x, train=True)
    trace(model, x, train=True, execute="real")
    assert all(torch.equal(a, b) for a, b in zip(expected, model.parameters(), strict=True))
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
