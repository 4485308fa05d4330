"""Training and eval mode, of models that follow and of some that do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_flops import TraceError, propagate, trace

X = torch.randn(2, 5)
LINEAR = 2 * 4 * (2 * 5 - 1) + 2 * 4  # of five features to four, with a bias
RELU = 2 * 4


def exported() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU()).eval()
    return torch.export.export(model, (X,)).module()


class Around(nn.Module):
    """Something in front of another module, and dropout behind it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.front = nn.Linear(5, 5)
        self.inner = inner
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.inner(self.front(x)))


class Frozen(Around):
    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.drop.eval()
        return self


FRONT = 2 * 5 * (2 * 5 - 1) + 2 * 5


@pytest.mark.parametrize("options", [{}, {"execute": "real"}, {"train": True}])
def test_an_exported_model_stays_in_its_mode(options):
    model = exported()
    report = trace(model, X, **options)
    assert (report.flops, LINEAR + RELU) == (88, 88)
    assert [node.name for node in report.nodes] == ["input_1", "linear_default", "relu_default", "output"]
    with pytest.raises(NotImplementedError):  # as before
        model.train()


def test_an_exported_model_without_activation():
    model, x = nn.Linear(3, 4).eval(), torch.randn(2, 3)
    assert trace(torch.export.export(model, (x,)).module(), x).flops == 48


@pytest.mark.parametrize(("kind", "dropped"), [(Around, 2 * 2 * 4), (Frozen, 0)])
def test_an_exported_model_inside_another_one(kind, dropped):
    # Dropout is a product with its mask, and one with the scale
    model = kind(exported())
    assert trace(model, X).flops == FRONT + LINEAR + RELU
    report = trace(model, X, train=True)
    assert report.flops == FRONT + LINEAR + RELU + dropped
    assert report.modules["inner"].flops == LINEAR + RELU
    assert model.training


def test_an_exported_model_trains():
    # Beside the forward pass: the gradients of the weight and the bias, of the activation, and none for x
    backward = 5 * 4 * (2 * 2 - 1) + 4 + RELU
    assert trace(exported(), X, train=True, backward=True).flops == LINEAR + RELU + backward


def test_an_exported_model_is_measured():
    assert propagate(exported(), X).time_ms > 0


def test_other_failures_of_a_train_of_ones_own_are_raised():
    class Odd(nn.Linear):
        def train(self, mode: bool = True) -> Odd:
            raise RuntimeError("no training")

    with pytest.raises(RuntimeError, match="no training"):
        trace(Odd(5, 4), X, train=True)


# TorchScript ------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # it is deprecated
class TestTorchScript:
    @pytest.mark.parametrize(
        "compiled",
        [
            torch.jit.script,
            lambda model: torch.jit.trace(model, torch.randn(2, 5)),
            lambda model: torch.jit.freeze(torch.jit.script(model)),
            lambda model: torch.jit.optimize_for_inference(torch.jit.script(model)),
        ],
    )
    def test_a_module_of_it_is_refused_by_name(self, compiled: Callable[[nn.Module], nn.Module]) -> None:
        model = Around(compiled(nn.Sequential(nn.Linear(5, 4), nn.ReLU()).eval()))
        for options in ({}, {"execute": "real"}, {"train": True, "backward": True}):
            with pytest.raises(TraceError) as caught:
                trace(model, X, **options)
            assert str(caught.value) == (
                "Cannot count Around: module 'inner' (Sequential) is TorchScript, which hides its modules. "
                "Put in its place what torch.jit.script or torch.jit.trace was called on."
            )

    def test_one_that_is_deep_inside_is_found(self) -> None:
        inner = Around(torch.jit.script(nn.Linear(5, 4)))
        with pytest.raises(
            TraceError, match=r"Cannot count Sequential: module '1\.inner' \(Linear\) is Torch"
        ):
            trace(nn.Sequential(nn.Identity(), inner), X)

    def test_a_function_of_it_counts_the_same_each_time(self) -> None:
        frozen = torch.jit.freeze(torch.jit.script(nn.Sequential(nn.Linear(5, 4), nn.ReLU()).eval()))
        run: Any = frozen.forward
        assert [trace(lambda x: run(x), X).flops for _ in range(4)] == [LINEAR + RELU] * 4
