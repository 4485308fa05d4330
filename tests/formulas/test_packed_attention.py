"""Attention of packed sequences: scores are those of each sequence with itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_flops import trace
from pytest_flops.formulas import formula_for
from pytest_flops.metrics import Cost

aten = torch.ops.aten
H, D = 4, 8
QKV = torch.ones(16, H, D)


def offsets(*values: int, device: str = "cpu") -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)


LENGTHS = offsets(0, 4, 16)  # two sequences, of 4 and 12


def forward(rows: int, pairs: int, *, masked: int = 0, dropout: int = 0, d: int = D, dv: int = D) -> Cost:
    """`rows` of scores and results for each head, `pairs` of a query and a key that meet."""
    rows, scores = H * rows, H * pairs
    flops = scores * (2 * d - 1) + scores * (1 + masked + dropout) + 3 * scores - rows
    return Cost(flops + 2 * scores * dv - rows * dv, scores * (d + dv))


def backward(rows: int, pairs: int, q: int, k: int, v: int, *, dropout: int = 0, scaled: int = 0) -> Cost:
    """dV, dP, softmax, dQ and dK for operands of so many elements; `scaled` are K's in all heads."""
    scores, products = H * pairs, H * pairs * D
    flops = (2 * products - v) + (2 * products - scores) + scores * (4 + dropout) - H * rows
    return Cost(flops + (2 * products - q) + (2 * products - k) + q + (scaled or k), 4 * products)


TWO = forward(16, 4 * 4 + 12 * 12)
BOUND = forward(16, 16 * 12)  # every query as if it met the longest sequence
NONE = (0.0, False, False)


def test_the_published_example() -> None:
    assert Cost(21_824, 10_240) == TWO


# By name: the op, its arguments, its keywords, what it costs
FORWARD: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any], Cost]] = {
    "flash": (
        aten._flash_attention_forward.default,
        (QKV, QKV, QKV, LENGTHS, LENGTHS, 12, 12, *NONE),
        {},
        TWO,
    ),
    "flash-one-sequence": (
        aten._flash_attention_forward.default,
        (QKV, QKV, QKV, offsets(0, 16), offsets(0, 16), 16, 16, *NONE),
        {},
        forward(16, 16 * 16),
    ),
    "flash-causal-dropout": (
        aten._flash_attention_forward.default,
        (QKV, QKV, QKV, LENGTHS, LENGTHS, 12, 12, 0.5, True, False),
        {},
        forward(16, 160, masked=1, dropout=1),
    ),
    "flash-window": (
        aten._flash_attention_forward.default,
        (QKV, QKV, QKV, LENGTHS, LENGTHS, 12, 12, *NONE),
        {"window_size_left": 3, "window_size_right": 0},
        forward(16, 160, masked=1),
    ),
    "flash-open-window": (
        aten._flash_attention_forward.default,
        (QKV, QKV, QKV, LENGTHS, LENGTHS, 12, 12, *NONE),
        {"window_size_left": -1, "window_size_right": -1},
        TWO,
    ),
    "flash-cross": (
        aten._flash_attention_forward.default,
        (QKV, torch.ones(9, H, D), torch.ones(9, H, D), LENGTHS, offsets(0, 2, 9), 12, 7, *NONE),
        {},
        forward(16, 4 * 2 + 12 * 7),
    ),
    "flash-without-keys": (
        aten._flash_attention_forward.default,
        (QKV, torch.ones(9, H, D), torch.ones(9, H, D), LENGTHS, offsets(0, 0, 9), 12, 9, *NONE),
        {},
        forward(12, 12 * 9),
    ),
    "flash-grouped": (
        aten._flash_attention_forward.default,
        (QKV, torch.ones(16, 2, D), torch.ones(16, 2, D), LENGTHS, LENGTHS, 12, 12, *NONE),
        {},
        TWO,
    ),
    "flash-batch": (
        aten._flash_attention_forward.default,
        (torch.ones(2, 5, H, D), torch.ones(2, 7, H, D), torch.ones(2, 7, H, D), None, None, 5, 7, *NONE),
        {},
        forward(2 * 5, 2 * 5 * 7),
    ),
    "flash-cache": (  # a cache of 7 of which 3 and 6 are in use
        aten._flash_attention_forward.default,
        (torch.ones(2, 1, H, D), torch.ones(2, 7, H, D), torch.ones(2, 7, H, D), None, None, 1, 7, *NONE),
        {"seqused_k": offsets(3, 6)},
        forward(2, 3 + 6),
    ),
    "flash-quantized": (
        aten._flash_attention_forward.quantized,
        (QKV, QKV, QKV, LENGTHS, LENGTHS, 12, 12, *NONE, QKV, QKV, QKV),
        {},
        TWO,
    ),
    "flash-in-place": (
        aten._flash_attention_forward_no_dropout_inplace.default,
        (QKV, QKV, QKV, QKV, LENGTHS, LENGTHS, 12, 12, *NONE),
        {},
        TWO,
    ),
    "flash-unknown": (
        aten._flash_attention_forward.default,
        (QKV, QKV, QKV, LENGTHS.to("meta"), LENGTHS.to("meta"), 12, 12, *NONE),
        {},
        BOUND,
    ),
    "efficient": (
        aten._efficient_attention_forward.default,
        (QKV[None], QKV[None], QKV[None], None, LENGTHS, LENGTHS, 12, 12, 0.0, 0),
        {},
        TWO,
    ),
    "efficient-causal": (
        aten._efficient_attention_forward.default,
        (QKV[None], QKV[None], QKV[None], None, LENGTHS, LENGTHS, 12, 12, 0.1, 2),
        {},
        forward(16, 160, masked=1, dropout=1),
    ),
    "efficient-bias": (
        aten._efficient_attention_forward.default,
        (*[torch.ones(2, 5, H, D)] * 3, torch.ones(2, H, 5, 5), None, None, None, None, 0.0, 0),
        {},
        forward(10, 50, masked=1),
    ),
    "efficient-unknown": (  # nor the longest of them: every query as if it met all keys
        aten._efficient_attention_forward.default,
        (*[QKV[None]] * 3, None, LENGTHS.to("meta"), LENGTHS.to("meta"), None, None, 0.0, 0),
        {},
        forward(16, 16 * 16),
    ),
    "cudnn": (
        aten._cudnn_attention_forward.default,
        (QKV, QKV, QKV, None, LENGTHS, LENGTHS, 12, 12, True),
        {},
        TWO,
    ),
    "cudnn-batch": (
        aten._cudnn_attention_forward.default,
        (*[torch.ones(2, H, 5, D)] * 3, None, None, None, 5, 5, True, 0.0, True),
        {},
        forward(10, 50, masked=1),
    ),
}


@pytest.mark.parametrize(("op", "args", "kwargs", "cost"), FORWARD.values(), ids=FORWARD)
def test_scores_are_those_of_each_sequence(
    op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], cost: Cost
) -> None:
    assert formula_for(op)(*args, out=None, **kwargs) == cost


# Behind the gradient: the op, its arguments
ELEMENTS = QKV.numel()
BACKWARD: dict[str, tuple[Any, tuple[Any, ...], Cost]] = {
    "flash": (
        aten._flash_attention_backward.default,
        (QKV, QKV, QKV, None, None, LENGTHS, LENGTHS, 12, 12, 0.5, False, None, None),
        backward(16, 160, *[ELEMENTS] * 3, dropout=1),
    ),
    "flash-grouped": (
        aten._flash_attention_backward.default,
        (QKV, QKV[:, :2], QKV[:, :2], None, None, LENGTHS, LENGTHS, 12, 12, 0.0, False, None, None),
        backward(16, 160, ELEMENTS, ELEMENTS // 2, ELEMENTS // 2, scaled=ELEMENTS),
    ),
    "flash-unknown": (
        aten._flash_attention_backward.default,
        (*[QKV] * 3, None, None, *[LENGTHS.to("meta")] * 2, 12, 12, 0.0, False, None, None),
        backward(16, 16 * 12, *[ELEMENTS] * 3),
    ),
    "efficient": (
        aten._efficient_attention_backward.default,
        (*[QKV[None]] * 3, None, None, LENGTHS, LENGTHS, 12, 12, None, 0.0, None, None, 0, False),
        backward(16, 160, *[ELEMENTS] * 3),
    ),
    "efficient-bias": (
        aten._efficient_attention_backward.default,
        (
            *[torch.ones(2, 5, H, D)] * 3,
            torch.ones(5, 5),
            *[None, None, None, 5, 5, None, 0.0, None, None, 0, True],
        ),
        backward(10, 50, *[2 * 5 * H * D] * 3) + (2 * H * 25 - 25),
    ),
    "cudnn": (
        aten._cudnn_attention_backward.default,
        (*[QKV] * 3, *[None] * 5, LENGTHS, LENGTHS, 12, 12, 0.0, False),
        backward(16, 160, *[ELEMENTS] * 3),
    ),
    "cudnn-batch": (
        aten._cudnn_attention_backward.default,
        (*[torch.ones(2, H, 5, D)] * 3, *[None] * 5, None, None, 5, 5, 0.5, False),
        backward(10, 50, *[2 * H * 5 * D] * 3, dropout=1),
    ),
}


@pytest.mark.parametrize(("op", "args", "cost"), BACKWARD.values(), ids=BACKWARD)
def test_gradients_take_the_products_twice(op: Any, args: tuple[Any, ...], cost: Cost) -> None:
    assert formula_for(op)(None, *args, out=None) == cost


# -- in a run on shapes, which keeps the lengths -------------------------------------------------------------


class Packed(nn.Module):
    def __init__(self, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        self.attend = attend

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        cumulative = nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
        return self.attend(x * 1, x * 1, x * 1, cumulative, cumulative)


def varlen(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor) -> Tensor:
    return pytest.importorskip("torch.nn.attention.varlen").varlen_attn(q, k, v, cu_q, cu_k, 12, 12)


def varlen_out(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor) -> Tensor:
    module = pytest.importorskip("torch.nn.attention.varlen")
    return module.varlen_attn_out(torch.empty_like(q), q, k, v, cu_q, cu_k, 12, 12)


def flash(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor) -> Tensor:
    return aten._flash_attention_forward(q, k, v, cu_q, cu_k, 12, 12, *NONE)[0]


def efficient(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor) -> Tensor:
    return aten._efficient_attention_forward(
        q[None], k[None], v[None], None, cu_q, cu_k, 12, 12, 0.0, 0, compute_log_sumexp=True
    )[0]


@pytest.mark.parametrize("attend", [varlen, varlen_out, flash, efficient])
def test_lengths_are_those_of_the_run(attend: Callable[..., Tensor]) -> None:
    x, adding = torch.randn(16, H, D), 1  # to sum the lengths up
    for lengths in (
        [4, 12],
        [8, 8],
        [12, 4],
        [4, 12],
    ):  # nothing is remembered that another length would change
        report = trace(Packed(attend), (x, torch.tensor(lengths)), execute="meta")
        pairs = sum(length * length for length in lengths)
        assert report.macs == H * pairs * 2 * D
        assert report.flops - 3 * x.numel() - adding == forward(16, pairs).flops
        assert not report.unsupported


@pytest.mark.parametrize("attend", [varlen, flash, efficient])
def test_a_training_step(attend: Callable[..., Tensor]) -> None:
    x = torch.randn(16, H, D, requires_grad=True)
    report = trace(Packed(attend), (x, torch.tensor([4, 12])), backward=True, execute="meta")
    expected = backward(16, 160, *[ELEMENTS] * 3)
    inputs = (3 + 2) * ELEMENTS  # of three products, and their sum
    assert (report.backward_flops - inputs, report.backward_macs) == expected[:2]
    assert not report.unsupported


def test_on_meta_every_query_counts_as_if_it_met_the_longest_sequence() -> None:
    x, lengths = torch.empty(16, H, D, device="meta"), torch.empty(2, dtype=torch.long, device="meta")
    assert trace(Packed(flash), (x, lengths)).macs == BOUND.macs
    known = trace(Packed(flash), (x, torch.tensor([4, 12])))
    assert known.macs == TWO.macs
