"""Work belongs to the module whose code does it, however that code is reached."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pytest_flops import Report, trace

X = torch.randn(2, 4)
LINEAR = 2 * (2 * 4 - 1) * 4 + 2 * 4  # a Linear(4, 4) of two rows
ELEMENTS = 2 * 4  # what one pointwise op costs


def totals(report: Report) -> dict[str, int]:
    """Return the FLOPs of the modules that cost anything."""
    return {path: module.flops for path, module in report.modules.items() if module.flops}


def logged(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(function)
    def call(*args: object, **kwargs: object) -> Tensor:
        return function(*args, **kwargs)

    return call


class Head(nn.Module):
    """One linear layer and one addition; with other ways to the addition."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + 1.0

    def encode(self, x: Tensor) -> Tensor:
        return self.helper(x) * 2.0

    def helper(self, x: Tensor) -> Tensor:
        return x + 1.0

    @property
    def scale(self) -> Tensor:
        return self.fc.bias * 2.0


class Wrapped(Head):
    @logged
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Net(nn.Module):
    def __init__(self, head: nn.Module, forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.head = head
        self.way = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self.head, x) * 2.0


def outside(head: nn.Module, x: Tensor) -> Tensor:
    return head.forward(x)


@pytest.mark.parametrize(
    "way",
    [
        lambda head, x: head(x),
        lambda head, x: head.forward(x),
        lambda head, x: head.forward(x=x),
        lambda head, x: type(head).forward(head, x),
        lambda head, x: next(head.forward(value) for value in [x]),
        lambda head, x: functools.partial(head.forward)(x),
        lambda head, x: torch.utils.checkpoint.checkpoint(head.forward, x, use_reentrant=False),
        outside,
    ],
)
@pytest.mark.parametrize("kind", [Head, Wrapped])
def test_every_way_to_forward_is_a_call_of_the_module(kind, way):
    report = trace(Net(kind(), way), X)
    assert totals(report) == {"": LINEAR + 2 * ELEMENTS, "head": LINEAR + ELEMENTS, "head.fc": LINEAR}
    assert report.functions == {("head", "add"): ELEMENTS, ("", "mul"): ELEMENTS}


def test_a_leaf_whose_forward_is_called_is_a_function_in_it():
    report = trace(Net(nn.Linear(4, 4), outside), X)
    assert [(node.name, node.op, node.module, node.module_type) for node in report.nodes[1:-1]] == [
        ("linear", "call_function", "head", "Linear"),
        ("mul", "call_function", "", "Net"),
    ]
    assert totals(report) == {"": LINEAR + ELEMENTS, "head": LINEAR}


@pytest.mark.parametrize(
    ("way", "flops"),
    [
        (lambda head, x: head.encode(x), 2 * ELEMENTS),
        (lambda head, x: head.helper(x), ELEMENTS),
        (lambda head, x: x * head.scale, 4),  # the product is the caller's
    ],
)
def test_other_methods_belong_to_the_module_too(way, flops):
    assert trace(Net(Head(), way), X).modules["head"].flops == flops


def test_real_tensors_and_training_tell_the_same():
    for options in ({"execute": "real"}, {"train": True, "backward": True}):
        report = trace(Net(Head(), outside), X, **options)
        products = 3 if "backward" in options else 1  # one gradient for the weight, none for the input
        assert report.modules["head.fc"].macs == (products - 1 or 1) * 2 * 4 * 4
        assert report.modules["head"].macs == report.modules["head.fc"].macs


class Recursive(nn.Module):
    """Calls the forward of another of its own class."""

    def __init__(self, inner: Recursive | None = None) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return (x if self.inner is None else self.inner.forward(x)) + 1.0


def test_modules_of_one_class_are_told_apart():
    report = trace(Recursive(Recursive(Recursive())), X)
    assert totals(report) == {"": 3 * ELEMENTS, "inner": 2 * ELEMENTS, "inner.inner": ELEMENTS}


def test_modules_that_are_not_the_models_belong_to_the_caller():
    other = Head()
    report = trace(Net(nn.Identity(), lambda head, x: other.helper(x)), X)
    assert totals(report) == {"": 2 * ELEMENTS}


def test_looking_at_a_frame_keeps_no_tensor_alive():
    """Before Python 3.13 a frame keeps what it is asked for: `wide` would live until `forward` returns."""

    class Narrow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.repeat(1, 8) + 1.0).sum(1)

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.narrow = Narrow()

        def forward(self, x: Tensor) -> Tensor:
            wide = x.repeat(1, 16)
            total = wide.sum(1)
            del wide
            return total + self.narrow(x)

    called, direct = (trace(Net(Wide(), way), X) for way in (lambda head, x: head(x), outside))
    assert called.peak_memory == direct.peak_memory == (2 + 2 * 4 * 8 * 2) * 4


def test_a_method_that_asks_for_its_locals_gets_them():
    class Asking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            given = locals()
            y = x + 1.0
            return y * given["x"]

    assert trace(Net(Asking(), outside), X).flops == 3 * ELEMENTS


# Inside leaves ----------------------------------------------------------------------------------------------

WIDTH, HEADS, HIDDEN, LENGTH = 16, 4, 32, 7
SEQUENCE = torch.randn(1, LENGTH, WIDTH)
UP = LENGTH * WIDTH * HIDDEN
ATTENTION = LENGTH * WIDTH * 3 * WIDTH + 2 * HEADS * LENGTH * LENGTH * (WIDTH // HEADS) + LENGTH * WIDTH**2


class Gated(nn.TransformerEncoderLayer):
    """A layer of the user's own inside one of PyTorch's containers, with a part that it does not call."""

    def __init__(self) -> None:
        super().__init__(WIDTH, HEADS, HIDDEN, batch_first=True)
        self.gate = nn.Linear(WIDTH, WIDTH)

    def forward(self, src: Tensor, *args: object, **kwargs: object) -> Tensor:
        return super().forward(src, *args, **kwargs) * self.gate.forward(src)


def encoder(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


def macs(report: Report) -> dict[str, int]:
    return {path: module.macs for path, module in report.modules.items() if module.macs}


@pytest.mark.parametrize("execute", ["meta", "real"])
def test_modules_inside_a_leaf_have_totals(execute):
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, batch_first=True)
    report = trace(encoder(layer), SEQUENCE, execute=execute)
    assert [node.op for node in report.nodes] == ["placeholder", "call_module", "output"]
    assert (UP, ATTENTION, 2 * UP + ATTENTION) == (3584, 8736, 15904)
    layers = {}
    for path in ("0.layers.0", "0.layers.1"):
        layers |= {path: 2 * UP + ATTENTION, f"{path}.self_attn": ATTENTION}
        layers |= {f"{path}.linear1": UP, f"{path}.linear2": UP}
    assert macs(report) == {"": 31808, "0": 31808, "0.layers": 31808, **layers}


def test_the_backward_pass_of_modules_inside_a_leaf_is_theirs():
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, batch_first=True)
    report = trace(encoder(layer), SEQUENCE, train=True, backward=True)
    # Each product has two more for its gradients, but the first one, whose input needs none.
    assert report.modules["0.layers.1"].macs == 3 * (2 * UP + ATTENTION)
    assert report.modules["0.layers.0"].macs == 3 * (2 * UP + ATTENTION) - LENGTH * WIDTH * 3 * WIDTH
    assert report.modules["0.layers.0.linear1"].macs == 3 * UP
    assert sum(part.macs for part in report.nodes[1].shares) == report.macs


def test_the_users_own_layers_inside_a_leaf_show():
    report = trace(encoder(Gated()), SEQUENCE)
    gate = LENGTH * WIDTH**2
    assert report.modules["0.layers.1"].type == "Gated"
    assert report.modules["0.layers.1"].macs == 2 * UP + ATTENTION + gate
    assert report.modules["0.layers.1.gate"].macs == gate
    assert report.modules["0"].macs == report.macs == 2 * (2 * UP + ATTENTION + gate)


def test_a_module_that_a_hook_runs_is_a_part_of_the_leaf():
    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base, self.adapter = nn.Linear(4, 4), Head()
            self.base.register_forward_hook(lambda module, args, out: out + self.adapter(out))

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x)

    report = trace(Adapted(), X)
    assert [node.name for node in report.nodes] == ["x", "base", "output"]
    whole = {"": 2 * LINEAR + 2 * ELEMENTS, "base": LINEAR + ELEMENTS}
    assert totals(report) == {**whole, "adapter": LINEAR + ELEMENTS, "adapter.fc": LINEAR}


def test_a_parametrisation_is_a_part_of_the_leaf():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3, bias=False)))
    report = trace(model, X)
    product = (2 * 4 - 1) * 2 * 3
    norm = report.modules["0.parametrizations.weight.0"].flops
    assert 0 < norm == report.flops - product
    assert report.modules["0"].flops == report.flops


def test_the_peak_of_a_module_inside_a_leaf_is_what_is_alive_while_it_runs():
    report = trace(encoder(Gated()), SEQUENCE)
    row = LENGTH * WIDTH * 4
    # The layer's input is the caller's; `src` and what the residual adds to it are alive
    assert report.modules["0.layers.0.linear1"].peak_memory == row + 2 * row
    assert report.modules["0"].peak_memory == report.peak_memory
