"""Derivatives that a model takes in its forward pass: they count, and inference mode does not lose them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pytest_flops import trace

X = torch.randn(2, 5)
SQUARE, LINEAR = nn.Linear(5, 5, bias=False), nn.Linear(5, 4)
CONV = nn.Conv1d(2, 3, 2, bias=False)
functional = torch.autograd.functional
pytestmark = pytest.mark.filterwarnings(  # PyTorch's own use of it, for derivatives
    "ignore:.*torch.jit.script.* is deprecated"
)


def mlp(x: Tensor) -> Tensor:
    """Two layers by their functions: the counter that this is held against trips over modules."""
    return F.linear(torch.tanh(F.linear(x, UP)), DOWN)


UP, DOWN = torch.randn(7, 5), torch.randn(1, 7)


def tangent_of(run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a function that takes the derivative of another along ones, by dual numbers."""

    def forward(x: Tensor) -> Tensor:
        with forward_ad.dual_level():
            out = forward_ad.unpack_dual(run(forward_ad.make_dual(x, torch.ones_like(x)))).tangent
        return x if out is None else out

    return forward


def jvp_of(run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.func.jvp(run, (x,), (torch.ones_like(x),))[1]


def both(model: Callable[..., Any], x: Tensor, **options: Any) -> tuple[int, int]:
    """Return FLOPs and MACs, the same on shapes and on real tensors."""
    report, real = trace(model, x, **options), trace(model, x, execute="real", **options)
    assert report.executed == "meta", report.reason
    assert (report.flops, report.macs, report.unsupported) == (real.flops, real.macs, {})
    return report.flops, report.macs


@pytest.mark.parametrize("derivative", [tangent_of, jvp_of])
@pytest.mark.parametrize(
    ("run", "x", "flops", "macs"),
    [
        # value, tangent, and the product with the weight's tangent, which is zero; the latter two are added
        (SQUARE, X, 3 * 2 * 5 * 9 + 10, 3 * 50),
        # the bias is added to value and tangent; of its tangent nothing is computed
        (LINEAR, X, 3 * 2 * 4 * 9 + 8 + 8, 3 * 40),
        (CONV, torch.randn(2, 2, 6), 3 * 2 * 3 * 5 * 7 + 30, 3 * 2 * 3 * 5 * 4),
        (lambda x: x * 2 + 1, X, 10 + 10 + 10, 0),  # nor is anything of the numbers' tangents
        (lambda x: x * x, X, 10 + 10 + 10 + 10, 0),
        (lambda x: x.exp(), X, 10 + 10, 0),
        (lambda x: x.sum(-1), X, 2 * 8, 0),
    ],
)
def test_tangents_count(
    derivative: Callable[..., Any], run: Callable[[Tensor], Tensor], x: Tensor, flops: int, macs: int
) -> None:
    assert both(derivative(run), x) == (flops, macs)


def attend(x: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):  # the only one whose derivative PyTorch knows
        return F.scaled_dot_product_attention(x, x, x)


MODELS: dict[str, tuple[Callable[..., Any], Tensor]] = {
    "dual numbers": (tangent_of(mlp), X),
    "attention of duals": (tangent_of(attend), torch.randn(1, 2, 5, 4)),
    "attention under jvp": (jvp_of(attend), torch.randn(1, 2, 5, 4)),
    "jvp": (jvp_of(mlp), X),
    "jacfwd": (torch.func.jacfwd(mlp), X),
    "jacrev": (torch.func.jacrev(mlp), X),
    "hessian": (torch.func.hessian(lambda x: mlp(x).sum()), X[0]),
    "jacobian by forward mode": (
        lambda x: functional.jacobian(mlp, x, vectorize=True, strategy="forward-mode"),
        X,
    ),
    "hessian of autograd": (lambda x: functional.hessian(lambda x: mlp(x).sum(), x), X[0]),
}


@pytest.mark.parametrize("name", MODELS)
def test_products_are_those_that_pytorch_runs(name: str) -> None:
    """Held against torch's counter, outside of inference mode and of any mode of ours."""
    model, x = MODELS[name]
    with FlopCounterMode(display=False) as counter:
        model(x)
    expected = counter.get_total_flops()
    assert expected
    for execute in ("auto", "real"):
        report = trace(model, x, execute=execute)  # type: ignore[arg-type]
        assert (2 * report.macs, report.unsupported) == (expected, {})


def forces(x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(mlp(x).sum(), x)[0]


FORWARD = 2 * 5 * 7 + 2 * 7  # multiply-accumulates of a pass through mlp, one way


@pytest.mark.parametrize(
    ("model", "macs"),
    [
        (forces, 2 * FORWARD),
        (lambda x: functional.vjp(mlp, x, torch.ones_like(x[:, :1]))[1], 2 * FORWARD),
        (lambda x: functional.jvp(mlp, x, x)[1], 3 * FORWARD),  # by a gradient of the gradient
        (lambda x: functional.jacobian(mlp, x), (1 + 2) * FORWARD),  # a pass back for each of two outputs
    ],
)
def test_gradients_that_a_model_switches_on(model: Callable[..., Any], macs: int) -> None:
    """In inference mode they stay off without an error, and the derivative of nothing is zero."""
    assert both(model, X)[1] == macs


def test_derivatives_in_a_training_step() -> None:
    model = nn.Module()
    model.net = SQUARE
    model.forward = tangent_of(model.net)
    forward = trace(model, X).macs
    report = trace(model, X, train=True, backward=True)
    assert (report.executed, forward) == ("meta", 150)
    # the tangent depends on the weight by one product only: its gradient is one more
    assert report.macs == 150 + 50


def test_a_model_that_swallows_the_refusal_is_not_believed() -> None:
    def forward(x: Tensor) -> Tensor:
        try:
            return tangent_of(SQUARE)(x)
        except RuntimeError:
            return x

    assert both(forward, X)[1] == 150
