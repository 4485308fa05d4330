"""Gradients: their multiply-accumulates are those of torch.utils.flop_counter, where that is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pytest_flops.metrics import Cost
from tests.formulas.conftest import Tally


def meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta", requires_grad=True)


def step(run: Callable[[], Any]) -> None:
    out = run()
    (out[0] if isinstance(out, tuple) else out).sum().backward()


def tally(run: Callable[[], Any]) -> Cost:
    with Tally() as found:
        step(run)
    assert not found.unsupported
    return found.cost


STEPS: dict[str, Callable[[], Any]] = {
    "linear": lambda: F.linear(meta(2, 3, 5), meta(7, 5), meta(7)),
    "mm": lambda: meta(2, 3) @ meta(3, 5),
    "baddbmm": lambda: torch.baddbmm(meta(2, 3, 5), meta(2, 3, 7), meta(2, 7, 5)),
    "conv1d": lambda: F.conv1d(meta(2, 3, 11), meta(5, 3, 4), meta(5), stride=2),
    "conv2d": lambda: F.conv2d(meta(2, 3, 7, 9), meta(5, 3, 2, 3), stride=(1, 2), padding=1),
    "conv3d": lambda: F.conv3d(meta(2, 3, 5, 6, 7), meta(4, 3, 2, 3, 1), meta(4)),
    "conv_transpose2d": lambda: F.conv_transpose2d(meta(2, 3, 5, 4), meta(3, 6, 2, 3), stride=2),
    "attention": lambda: F.scaled_dot_product_attention(meta(2, 3, 4, 8), meta(2, 3, 5, 8), meta(2, 3, 5, 8)),
    "encoder": lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.0, device="meta")(meta(5, 3, 8)),
    "embedding": lambda: F.embedding(torch.zeros(2, 3, dtype=torch.long, device="meta"), meta(7, 5)),
}


@pytest.mark.parametrize("run", STEPS.values(), ids=STEPS)
def test_macs_are_those_of_torchs_counter(run: Callable[[], Any]) -> None:
    with FlopCounterMode(display=False) as theirs:
        step(run)
    assert 2 * tally(run).macs == theirs.get_total_flops()


# (x, weight, groups, transposed): torch's counter ignores groups in the backward pass of a convolution
GROUPED = {
    "grouped": (meta(2, 6, 7, 9), meta(4, 3, 2, 3), 2, False),
    "depthwise": (meta(2, 6, 7, 9), meta(6, 1, 2, 3), 6, False),
    "transposed": (meta(2, 6, 5, 4), meta(6, 5, 2, 3), 3, True),
}


@pytest.mark.parametrize(("x", "weight", "groups", "transposed"), GROUPED.values(), ids=GROUPED)
def test_a_convolutions_gradients_take_its_products_twice(
    x: Tensor, weight: Tensor, groups: int, transposed: bool
) -> None:
    op = F.conv_transpose2d if transposed else F.conv2d
    with torch.no_grad(), Tally() as forward:
        op(x, weight, groups=groups)
    assert tally(lambda: op(x, weight, groups=groups)).macs == 3 * forward.cost.macs


MASKS = [(True, False, False), (False, True, False), (False, False, True), (True, True, True)]


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_only_the_gradients_asked_for_are_counted(mask: tuple[bool, bool, bool]) -> None:
    x, weight, grad = meta(2, 4, 7), meta(6, 2, 3), meta(2, 6, 5)
    settings = ([6], [1], [0], [1], False, [0], 2)
    with torch.no_grad(), Tally() as found:
        torch.ops.aten.convolution_backward(grad, x, weight, *settings, mask)
    products = grad.numel() * 2 * 3
    to_input = Cost(2 * products - x.numel(), products)
    to_weight = Cost(2 * products - weight.numel(), products)
    to_bias = Cost(grad.numel() - 6)
    assert found.cost == sum(
        (cost for cost, asked in zip((to_input, to_weight, to_bias), mask, strict=True) if asked), Cost(0)
    )


BACKWARD_OPS: dict[str, tuple[Callable[[], Any], int]] = {
    # the sum in front of `backward` takes n−1, the loss's own gradient is an expand
    "relu": (lambda: F.relu(meta(2, 5)), 10 + 10),
    "gelu": (lambda: F.gelu(meta(2, 5)), 10 + 2 * 10),
    "sigmoid": (lambda: torch.sigmoid(meta(2, 5)), 10 + 3 * 10),
    "tanh": (lambda: torch.tanh(meta(2, 5)), 10 + 3 * 10),
    "softmax": (lambda: F.softmax(meta(2, 5), -1), (3 * 5 - 1) * 2 + (4 * 5 - 1) * 2),
    "log_softmax": (lambda: F.log_softmax(meta(2, 5), -1), 3 * 10 + (4 * 5 - 1) * 2),
    "max_pool2d": (lambda: F.max_pool2d(meta(1, 2, 6, 9), 3), 12 * 8 + 12),
    "avg_pool2d": (lambda: F.avg_pool2d(meta(1, 2, 6, 9), 3), 12 * 9 + 12 * 10),
    "layer_norm": (lambda: F.layer_norm(meta(3, 5), [5], meta(5), meta(5)), 4 * 15 + 13 * 15),
    # one product with the scaled mask, by the composite of the CPU and by the kernel of CUDA
    "dropout": (lambda: F.dropout(meta(2, 5), 0.5), 2 * 10 + 10),
    "native_dropout": (lambda: torch.native_dropout(meta(2, 5), 0.5, True)[0], 2 * 10 + 10),
    "layer_norm-plain": (lambda: F.layer_norm(meta(3, 5), [5]), 2 * 15 + 9 * 15),
}


@pytest.mark.parametrize(("run", "flops"), BACKWARD_OPS.values(), ids=BACKWARD_OPS)
def test_closed_forms(run: Callable[[], Tensor], flops: int) -> None:
    assert tally(run).flops == flops + run().numel() - 1


def test_a_training_step_of_every_layer_has_answers() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, groups=1), nn.BatchNorm2d(4), nn.Hardswish(), nn.AdaptiveAvgPool2d(3),
        nn.GroupNorm(2, 4), nn.PReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(36, 8), nn.GELU(),
        nn.Unflatten(1, (2, 4)),
        nn.LSTM(4, 5, 2, batch_first=True),
    )  # fmt: skip
    assert tally(lambda: model(torch.randn(2, 3, 9, 9))).flops > 0
