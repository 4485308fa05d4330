"""A trace leaves the model and the process as it found them, also when the model raises."""

from __future__ import annotations

import dataclasses
import random
import threading
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.parametrize
from torch import Tensor, nn

from pytest_flops import trace
from tests.interrupts import state_of_process


class Helper:
    cache: int | None = None


class Slotted:
    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last = 0


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
        self.slotted = Slotted()
        self.generator = torch.Generator().manual_seed(1)
        self.dice = random.Random(1)
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
    if isinstance(value, Slotted):
        return (id(value), value.last)
    if isinstance(value, torch.Generator):
        return (id(value), value.get_state().tolist())
    if isinstance(value, random.Random):
        return (id(value), value.getstate())
    return value if isinstance(value, (int, str, bool, type(None))) else id(value)


def freeze_grad(grad: Tensor | None) -> Any:
    return None if grad is None else grad.tolist()


def state(model: nn.Module) -> Any:
    return [
        {name: freeze(value) for name, value in module.__dict__.items() if name != "_modules"}
        | {"modules": {name: id(child) for name, child in module._modules.items()}}
        for module in model.modules()
    ]


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
    "anomalies": lambda self: torch.autograd.set_detect_anomaly(True, check_nan=False),
    "determinism": lambda self: torch.use_deterministic_algorithms(True, warn_only=True),
    "filled memory": lambda self: setattr(torch.utils.deterministic, "fill_uninitialized_memory", False),
    "threads": lambda self: torch.set_num_threads(torch.get_num_threads() + 1),
    "oneDNN": lambda self: torch._C._set_mkldnn_enabled(False),
    "attention's kernels": lambda self: torch.backends.cuda.enable_flash_sdp(False),
    "the precision of products": lambda self: torch.set_float32_matmul_precision("medium"),
    "the precision of one kind": lambda self: torch._C._set_fp32_precision_setter("cuda", "matmul", "tf32"),
    "warnings of torch": lambda self: torch.set_warn_always(not torch.is_warn_always_enabled()),
    "warnings of Python": lambda self: warnings.simplefilter("ignore"),
    "grad mode": lambda self: torch._C._set_grad_enabled(not torch.is_grad_enabled()),
    "autograd's threads": lambda self: torch.autograd.set_multithreading_enabled(False),
    "autocast": lambda self: torch.set_autocast_enabled("cpu", True),
    "sparse checks": lambda self: torch.sparse.check_sparse_tensor_invariants.enable(),
    "contraction orders": lambda self: torch.backends.opt_einsum.set_flags(False),
    "a hook on all modules": lambda self: nn.modules.module.register_module_forward_hook(lambda *_: None),
    "a function of torch": lambda self: setattr(F, "scaled_dot_product_attention", None),
    "an object with slots": lambda self: setattr(self.slotted, "last", 7),
    "a generator": lambda self: torch.rand(3, generator=self.generator),
    "a generator of Python": lambda self: self.dice.random(),
}


MAY_FAIL = ("the default dtype", "the default device", "parameter data")
"""Meddling after which the rest of the forward pass cannot run; it must leave no trace all the same."""


@pytest.mark.parametrize("raises", [False, True], ids=["returns", "raises"])
@pytest.mark.parametrize("execute", ["meta", "real"])
@pytest.mark.parametrize("act", ACTS)
def test_left_as_found(act: str, execute: Any, raises: bool) -> None:
    model = Meddler(ACTS[act], raises)
    x = torch.randn(3, 5)
    before, process, given = state(model), state_of_process(), freeze(x)
    tolerated = (RuntimeError, ValueError) if act in MAY_FAIL else ()
    with (
        pytest.raises(ValueError, match="on purpose")
        if raises and act not in MAY_FAIL
        else suppress(*tolerated)
    ):
        trace(model, x, train=True, execute=execute)
    assert state(model) == before
    assert state_of_process() == process
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


# -- gradients and histories ------------------------------------------------------------------------------


LINEAR = 3 * 5 * 10  # 5x5 on 3 rows, with a bias
LINEAR_BACKWARD = 5 * 5 * (2 * 3 - 1) + 5 * (3 - 1)  # the weight's and the bias's; the input wants none


class Holder:
    def __init__(self, layer: nn.Module) -> None:
        self.layers = [layer]

    def __call__(self, x: Tensor) -> Tensor:
        return self.layers[0](x)


class Hiding(nn.Module):
    """Runs a layer that it hides in a list."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.hidden = [layer]

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden[0](x)


LAYER = nn.Linear(5, 5)


class UsesGlobal(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return LAYER(x)


REACHING: dict[str, Callable[[nn.Linear], Callable[..., Any]]] = {
    "a closure": lambda layer: lambda x: layer(x),
    "a list": lambda layer: (lambda layers: lambda x: layers[0](x))([layer]),
    "a callable object": Holder,
    "a partial": lambda layer: partial(F.linear, weight=layer.weight, bias=layer.bias),
    "parameters": lambda layer: (lambda weight, bias: lambda x: F.linear(x, weight, bias))(
        *layer.parameters()
    ),
    "a tuple": lambda layer: (lambda both: lambda x: F.linear(x, *both))(tuple(layer.parameters())),
    "a hidden module": Hiding,
    "a global of a module": lambda layer: UsesGlobal(),
}


@pytest.mark.parametrize("execute", ["auto", "real"])
@pytest.mark.parametrize("reaching", REACHING)
def test_gradients_of_what_is_reached_are_nobodys(reaching: str, execute: Any) -> None:
    run, x = REACHING[reaching](LAYER), torch.randn(3, 5)
    for grad in (None, torch.ones(5, 5)):
        LAYER.weight.grad = grad
        counts = [trace(run, x, train=True, backward=True, execute=execute).flops for _ in range(2)]
        assert counts == [LINEAR + LINEAR_BACKWARD] * 2
        assert LAYER.weight.grad is grad
        assert LAYER.bias.grad is None
    assert grad.tolist() == [[1.0] * 5] * 5


@pytest.mark.parametrize("execute", ["auto", "real"])
def test_hooks_on_gradients_do_not_run(execute: Any) -> None:
    layer, x = nn.Linear(5, 5), torch.randn(3, 5)
    seen: list[str] = []
    layer.weight.register_hook(lambda grad: seen.append("a gradient"))
    layer.weight.register_post_accumulate_grad_hook(lambda weight: seen.append("a step of the optimizer"))
    assert trace(layer, x, backward=True, execute=execute).flops == LINEAR + LINEAR_BACKWARD
    assert seen == []


class Stateful(nn.Module):
    """Adds what it returned the last time, of which autograd knows how it came about."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(5, 5)
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.lin(x) + self.last
        return self.last


@pytest.mark.parametrize("execute", ["auto", "real"])
def test_a_backward_pass_ends_where_the_run_began(execute: Any) -> None:
    model, x = Stateful(), torch.randn(3, 5)
    model.last = before = model.lin(x)
    counts = [trace(model, x, backward=True, execute=execute).flops for _ in range(2)]
    assert counts == [LINEAR + 15 + LINEAR_BACKWARD] * 2
    assert model.last is before
    before.sum().backward()  # the graph is still there
    assert model.lin.weight.grad is not None


@pytest.mark.parametrize("execute", ["auto", "real"])
def test_nor_does_it_go_on_in_what_a_function_reaches(execute: Any) -> None:
    layer, x = nn.Linear(5, 5), torch.randn(3, 5)
    made_before = layer(x)
    report = trace(lambda x: x * made_before, x, backward=True, execute=execute)
    assert report.flops == 15 + 15
    assert layer.weight.grad is None
    made_before.sum().backward()


# -- objects that hold tensors ----------------------------------------------------------------------------


class Layer:
    __slots__ = ("keys",)

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys


@dataclasses.dataclass
class Cache:
    """What a decoder has seen: an object in a list in an object, as those of transformers are."""

    layers: list[Layer]
    length: int


def attend(query: Tensor, cache: Cache) -> Tensor:
    layer = cache.layers[0]
    layer.keys = torch.cat([layer.keys, query])
    layer.keys[0].mul_(2.0)
    cache.length += 1
    return query @ layer.keys.T


@pytest.mark.parametrize("execute", ["meta", "real"])
@pytest.mark.parametrize("history", [False, True], ids=["plain", "with a history"])
def test_a_cache_that_is_given_is_not_changed(history: bool, execute: Any) -> None:
    keys = nn.Linear(5, 5)(torch.randn(7, 5)) if history else torch.randn(7, 5)
    cache, values, query = Cache([Layer(keys)], 7), keys.tolist(), torch.randn(1, 5)
    # One row of five on eight keys, and the product in place.
    assert [trace(attend, (query, cache), execute=execute).flops for _ in range(3)] == [8 * 9 + 5] * 3
    assert cache.layers[0].keys is keys
    assert (keys.tolist(), cache.length, keys.device.type) == (values, 7, "cpu")
    if history:
        keys.sum().backward()


GLOBAL = Cache([Layer(torch.zeros(1, 5))], 0)


def holding(cache: Cache) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return functions that come by a cache in several ways; the names are those of the ways."""
    GLOBAL.layers, GLOBAL.length = cache.layers, cache.length
    held = types.SimpleNamespace(cache=cache)
    return {
        "a closure": lambda query: attend(query, cache),
        "a list": (lambda caches: lambda query: attend(query, caches[0]))([cache]),
        "a namespace": lambda query: attend(query, held.cache),
        "a partial": partial(attend, cache=cache),
        "a default": lambda query, own=cache: attend(query, own),
        "a global": lambda query: attend(query, GLOBAL),
    }


@pytest.mark.parametrize("execute", ["meta", "real"])
@pytest.mark.parametrize("history", [False, True], ids=["plain", "with a history"])
@pytest.mark.parametrize("way", holding(GLOBAL))
def test_nor_is_one_that_a_function_holds(way: str, history: bool, execute: Any) -> None:
    keys = nn.Linear(5, 5)(torch.randn(7, 5)) if history else torch.randn(7, 5)
    cache, values, query = Cache([Layer(keys)], 7), keys.tolist(), torch.randn(1, 5)
    run = holding(cache)[way]
    assert [trace(run, query, execute=execute).flops for _ in range(3)] == [8 * 9 + 5] * 3
    for held in (cache, GLOBAL):
        assert held.layers[0].keys is keys
        assert held.length == 7
    assert (keys.tolist(), keys.device.type) == (values, "cpu")


def test_a_function_may_note_what_it_sees() -> None:
    seen: list[Any] = []
    trace(lambda x: seen.append(x.shape) or x * 2.0, torch.randn(3, 5))
    assert seen == [(3, 5)]


def test_the_gradient_of_a_cache_with_a_history_is_counted_and_not_kept() -> None:
    layer = nn.Linear(5, 5)
    cache, query = Cache([Layer(layer(torch.randn(7, 5)))], 7), torch.randn(1, 5)

    def run(query: Tensor, cache: Cache) -> Tensor:
        return query @ torch.cat([cache.layers[0].keys, query]).T

    for execute in ("meta", "real"):
        report = trace(run, (query, cache), backward=True, execute=execute)
        assert (report.flops, report.backward_flops) == (8 * 9 + 8 * 5, 8 * 5)  # one product a key's element
    assert layer.weight.grad is None


def test_a_tensor_that_is_given_twice_stays_one() -> None:
    x = torch.randn(3, 5)
    same: list[bool] = []

    def run(x: Tensor, cache: Cache) -> Tensor:
        same.append(cache.layers[0].keys is x)
        return x

    trace(run, (x, Cache([Layer(x)], 3)))
    assert same == [True]


def test_what_cannot_be_copied_goes_as_it_is() -> None:
    given = types.SimpleNamespace(x=torch.randn(3, 5), lock=threading.Lock())
    assert trace(lambda given: given.x * 2.0, given).flops == 15
    assert given.x.tolist()


def test_a_generator_that_is_given_draws_the_same_again() -> None:
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    trace(lambda x, generator: x * torch.rand(5, generator=generator), (torch.randn(3, 5), generator))
    assert torch.equal(generator.get_state(), before)


# -- what others have switched on -------------------------------------------------------------------------


def test_a_cast_that_autocast_has_kept_is_not_the_runs() -> None:
    layer, x = nn.Linear(5, 5), torch.randn(3, 5)

    def run(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return layer(x)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(x)
        trace(run, x, execute="real")
        layer(x).sum().backward()  # with a weight cast by the run, an inference tensor, this fails
    assert layer.weight.grad is not None


class Double(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2.0


def test_what_a_parametrization_has_computed_is_computed_again() -> None:
    layer, x = nn.Linear(5, 5), torch.randn(3, 5)
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", Double())
    with torch.nn.utils.parametrize.cached():
        assert [trace(layer, x).flops for _ in range(2)] == [LINEAR + 25] * 2
        kept = layer.weight
        assert trace(layer, x).flops == LINEAR + 25
        assert layer.weight is kept
