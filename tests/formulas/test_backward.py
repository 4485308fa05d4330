"""Gradients: their multiply-accumulates are those of torch.utils.flop_counter, where that is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pytest_flops.formulas import formula_for
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
    # what padding repeats is added up: 2·9 more on a row of 5 that is a row of 14
    "replication_pad1d": (lambda: F.pad(meta(2, 3, 5), (4, 5), "replicate"), 6 * 9),
    "replication_pad2d": (lambda: F.pad(meta(2, 3, 4, 5), (1, 2, 3, 0), "replicate"), 6 * (7 * 8 - 20)),
    "reflection_pad1d": (lambda: F.pad(meta(2, 3, 5), (2, 3), "reflect"), 6 * 5),
    "reflection_pad2d": (lambda: F.pad(meta(2, 3, 4, 5), (1, 2, 3, 0), "reflect"), 6 * (7 * 8 - 20)),
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


# Ops that run on real tensors only: FLOPs of both passes, those of the loss's sum apart
REAL: dict[str, tuple[Callable[[], Any], int]] = {
    "masked_scatter": (
        lambda: real(2, 5).masked_scatter(torch.ones(2, 5) > 0, real(10)),
        10,
    ),  # the comparison
    "segment-sum": (lambda: segments("sum"), 6),
    "segment-mean": (lambda: segments("mean"), 6 + 2 + 6),
    "segment-max": (lambda: segments("max"), 6 + 2 * 6),
}


def real(*shape: int) -> Tensor:
    return torch.ones(shape, requires_grad=True)


def segments(reduce: str) -> Tensor:
    return torch.segment_reduce(real(6), reduce, lengths=torch.tensor([2, 4]))


@pytest.mark.parametrize(("run", "flops"), REAL.values(), ids=REAL)
def test_closed_forms_of_real_tensors(run: Callable[[], Tensor], flops: int) -> None:
    assert tally(run).flops == flops + run().numel() - 1


def t(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


aten = torch.ops.aten
MM = Cost(2 * 30 - 6, 30)  # the gradient of (2, 3) of a product with (3, 5)
CONV = (t(2, 4, 3, 4), t(2, 3, 4, 6), t(4, 3, 2, 3))  # gradient, input, weight
CONV_MACS = CONV[0].numel() * 3 * 2 * 3
CONV_ALL = (
    Cost(2 * CONV_MACS - CONV[1].numel(), CONV_MACS)
    + Cost(2 * CONV_MACS - CONV[2].numel(), CONV_MACS)
    + (CONV[0].numel() - 4)
)
# By name: an op, its arguments, its result, what it costs
BY_NAME: dict[str, tuple[Any, tuple[Any, ...], Any, Cost | int]] = {
    "matmul": (
        aten.matmul_backward.default,
        (t(2, 5), t(2, 3), t(3, 5), (True, True)),
        None,
        Cost(2 * 30 - 6, 30) + Cost(2 * 30 - 15, 30),
    ),
    "matmul-broadcast": (  # the second operand serves 4 products
        aten.matmul_backward.default,
        (t(4, 2, 5), t(4, 2, 3), t(3, 5), (False, True)),
        None,
        Cost(2 * 120 - 15, 120),
    ),
    "linear-input": (
        aten.mkldnn_linear_backward_input.default,
        ([2, 3], t(2, 5), t(5, 3)),
        t(2, 3),
        Cost(6 * 9, 30),
    ),
    "linear-weights": (
        aten.mkldnn_linear_backward_weights.default,
        (t(2, 5), t(2, 3), t(5, 3), True),
        None,
        Cost(15 * 3 + 5, 30),
    ),
    "slow_conv2d": (
        aten._slow_conv2d_backward.output_mask,
        (*CONV, [2, 3], [1, 1], [0, 0], (True, True, True)),
        None,
        CONV_ALL,
    ),
    "slow_conv2d-all": (
        aten._slow_conv2d_backward.grad_input,
        (*CONV, [2, 3], [1, 1], [0, 0]),
        None,
        CONV_ALL,
    ),
    # 4 taps, a product and an addition each, for the input, and for both coordinates
    "grid_sampler": (
        aten._grid_sampler_2d_cpu_fallback_backward.default,
        (t(1, 2, 5, 6), t(1, 2, 3, 4), t(1, 5, 6, 2), 0, 0, False),
        None,
        2 * 4 * 3 * 60,
    ),
    "grid_sampler-cudnn": (
        aten.cudnn_grid_sampler_backward.default,
        (t(1, 2, 3, 4), t(1, 5, 6, 2), t(1, 2, 5, 6)),
        None,
        2 * 4 * 3 * 60,
    ),
    "affine_grid-cudnn": (
        aten.cudnn_affine_grid_generator_backward.default,
        (t(2, 4, 5, 2), 2, 3, 4, 5),
        t(2, 2, 3),
        Cost(12 * 39, 12 * 20),
    ),
    "linear_combination": (
        aten._compute_linear_combination.default,
        (t(3, 4, 5), t(2, 3)),
        t(2, 4, 5),
        Cost(40 * 5, 120),
    ),
    # x̂ 2, Σ g·x̂ 2, Σ g 1; then x̂ 2, its product with a mean, two differences, rstd, the weight
    "batch_norm-reduce": (
        aten.batch_norm_backward_reduce.default,
        (t(2, 3, 4), t(2, 3, 4), t(3), t(3), t(3), True, True, True),
        None,
        5 * 24,
    ),
    "batch_norm-elements": (
        aten.batch_norm_backward_elemt.default,
        (t(2, 3, 4), t(2, 3, 4), t(3), t(3), t(3), t(3), t(3), t(1)),
        None,
        7 * 24,
    ),
    "nested-softmax": (
        aten._nested_tensor_softmax_with_shape.default,
        (t(2, 3, 4, 5), t(2, 4)),
        None,
        2 * 3 * 4 * 14,
    ),
}


@pytest.mark.parametrize(("op", "args", "out", "cost"), BY_NAME.values(), ids=BY_NAME)
def test_operators_of_other_backends(op: Any, args: tuple[Any, ...], out: Any, cost: Cost | int) -> None:
    formula = formula_for(op)
    assert formula is not None
    assert formula(*args, out=out) == cost


EMPTY: dict[str, Callable[[], Any]] = {
    "conv2d": lambda: F.conv2d(meta(0, 3, 7, 9), meta(5, 3, 2, 3), meta(5)),
    "conv_transpose2d": lambda: F.conv_transpose2d(meta(0, 3, 5, 4), meta(3, 6, 2, 3), meta(6)),
    "linear": lambda: F.linear(meta(0, 5), meta(7, 5), meta(7)),
    "pad": lambda: F.pad(meta(0, 3, 5), (4, 5), "replicate"),
}


@pytest.mark.parametrize("run", EMPTY.values(), ids=EMPTY)
def test_a_batch_of_nothing_costs_nothing(run: Callable[[], Any]) -> None:
    assert tally(run) == Cost(0)
