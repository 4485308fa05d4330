"""Attention with operands that broadcast, in groups, and its gradient: one count wherever it is met."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pytest_flops import trace
from pytest_flops.formulas import formula_for
from pytest_flops.metrics import Cost

from .conftest import Tally

aten = torch.ops.aten
attend = F.scaled_dot_product_attention


def t(*shape: int) -> Tensor:
    return torch.ones(shape)


def forward(rows: int, Lk: int, d: int, results: int) -> Cost:
    """`rows` of Lk scores, each a dot product of d, its scale and softmax; `results`, each one of Lk."""
    scores = rows * Lk
    flops = scores * (2 * d - 1) + scores + rows * (3 * Lk - 1) + results * (2 * Lk - 1)
    return Cost(flops, scores * d + results * Lk)


# Q, K, V; whether they are grouped; rows of scores; elements of the result
OPERANDS: dict[str, tuple[tuple[Tensor, Tensor, Tensor], bool, int, int]] = {
    "alike": ((t(2, 8, 5, 16), t(2, 8, 7, 16), t(2, 8, 7, 12)), False, 2 * 8 * 5, 2 * 8 * 5 * 12),
    "queries-for-a-batch": ((t(1, 8, 5, 16), t(2, 8, 7, 16), t(2, 8, 7, 12)), False, 80, 80 * 12),
    "keys-for-a-batch": ((t(2, 8, 5, 16), t(1, 8, 7, 16), t(1, 8, 7, 12)), False, 80, 80 * 12),
    "one-query-head": ((t(2, 1, 5, 16), t(2, 8, 7, 16), t(2, 8, 7, 12)), False, 80, 80 * 12),
    "one-key-head": ((t(2, 8, 5, 16), t(2, 1, 7, 16), t(2, 8, 7, 12)), False, 80, 80 * 12),
    "both-ways": ((t(2, 1, 5, 16), t(1, 8, 7, 16), t(1, 1, 7, 12)), False, 80, 80 * 12),
    "values-alone": ((t(1, 8, 5, 16), t(1, 8, 7, 16), t(2, 8, 7, 12)), False, 8 * 5, 80 * 12),
    "heads-of-values-alone": ((t(2, 1, 5, 16), t(2, 1, 7, 16), t(2, 8, 7, 12)), False, 2 * 5, 80 * 12),
    "without-heads": ((t(1, 5, 16), t(2, 7, 16), t(2, 7, 12)), False, 10, 10 * 12),
    "fewer-dimensions": ((t(5, 16), t(2, 8, 7, 16), t(7, 12)), False, 80, 80 * 12),
    "without-anything": ((t(5, 16), t(7, 16), t(7, 12)), False, 5, 5 * 12),
    "grouped": ((t(2, 8, 5, 16), t(2, 2, 7, 16), t(2, 2, 7, 12)), True, 80, 80 * 12),
    "grouped-apart": ((t(2, 8, 5, 16), t(2, 2, 7, 16), t(2, 4, 7, 12)), True, 80, 80 * 12),
    "grouped-for-a-batch": ((t(1, 8, 5, 16), t(2, 2, 7, 16), t(2, 2, 7, 12)), True, 80, 80 * 12),
    "grouped-for-a-batch-of-queries": ((t(2, 8, 5, 16), t(1, 2, 7, 16), t(1, 2, 7, 12)), True, 80, 80 * 12),
    "grouped-without-batch": ((t(8, 5, 16), t(2, 7, 16), t(2, 7, 12)), True, 40, 40 * 12),
    "nobody": ((t(0, 8, 5, 16), t(1, 8, 7, 16), t(1, 8, 7, 12)), False, 0, 0),
}
EACH = pytest.mark.parametrize(("operands", "grouped", "rows", "results"), OPERANDS.values(), ids=OPERANDS)


@EACH
def test_scores_are_those_of_what_queries_and_keys_broadcast_to(
    operands: tuple[Tensor, ...], grouped: bool, rows: int, results: int, count: Callable[..., Cost]
) -> None:
    cost = forward(rows, 7, 16, results)
    assert count(lambda: attend(*operands, enable_gqa=grouped), parts=False) == cost
    for execute in ("meta", "real"):
        report = trace(attend, operands, {"enable_gqa": grouped}, execute=execute)
        assert report.cost.arithmetic == cost
        assert not report.unsupported


def test_the_published_example() -> None:
    q, k = t(1, 8, 5, 16), t(2, 8, 7, 16)
    assert trace(attend, (q, k, k)).flops == 560 * 31 + 2 * 8 * 5 * 16 * 13 + 560 + 3 * 560 - 80 == 36_160
    assert trace(attend, (t(1, 8, 5, 16), t(8, 8, 7, 16), t(8, 8, 7, 16))).flops == 4 * 36_160


@EACH
def test_products_are_those_of_the_plain_form(
    operands: tuple[Tensor, ...], grouped: bool, rows: int, results: int
) -> None:
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), Tally() as parts:
        attend(*operands, enable_gqa=grouped)
    assert parts.cost.macs == forward(rows, 7, 16, results).macs


# -- the gradient --------------------------------------------------------------------------------------------


def gradient(q: Tensor, k: Tensor, v: Tensor, rows: int, results: int, key_heads: int, dropout: int) -> Cost:
    """dV = Pᵀ·dO, dP = dO·Vᵀ, softmax's 4n−1 per row, dQ = dS·K and dK = dSᵀ·Q, each scaled."""
    scores, Lk, d = rows * k.shape[-2], k.shape[-2], k.shape[-1]
    from_values, from_keys = results * Lk, scores * d
    products = Cost(2 * from_values - v.numel(), from_values) + Cost(2 * from_values - scores, from_values)
    products += Cost(2 * from_keys - q.numel(), from_keys) + Cost(2 * from_keys - k.numel(), from_keys)
    scale = q.numel() + k.numel() // key_heads * (q.shape[1] if key_heads < q.shape[1] else key_heads)
    return products + rows * (4 * Lk - 1) + dropout * scores + scale


# Q, K, V, rows of scores, elements of the result, dropout; the fused operators take no other broadcast
FUSED: dict[str, tuple[tuple[Tensor, Tensor, Tensor], int, int, float]] = {
    "alike": ((t(2, 6, 3, 4), t(2, 6, 5, 4), t(2, 6, 5, 8)), 36, 36 * 8, 0.0),
    "dropout": ((t(2, 6, 3, 4), t(2, 6, 5, 4), t(2, 6, 5, 8)), 36, 36 * 8, 0.5),
    "grouped": ((t(2, 6, 3, 4), t(2, 2, 5, 4), t(2, 2, 5, 8)), 36, 36 * 8, 0.0),
    "one-key-head": ((t(2, 6, 3, 4), t(2, 1, 5, 4), t(2, 1, 5, 8)), 36, 36 * 8, 0.0),
    "values-alone": ((t(1, 6, 3, 4), t(1, 6, 5, 4), t(2, 6, 5, 8)), 18, 36 * 8, 0.0),
}
# The arguments behind Q, K and V
BACKWARD: dict[str, Callable[[float], tuple[Any, ...]]] = {
    "flash_attention_backward": lambda p: (None, None, None, None, 3, 5, p, False, None, None),
    "flash_attention_for_cpu_backward": lambda p: (None, None, p, False),
    "cudnn_attention_backward": lambda p: (*[None] * 7, 3, 5, p, False),
    "efficient_attention_backward": lambda p: (*[None] * 5, p, [True] * 3 + [False]),
    "fused_attention_overrideable_backward": lambda p: (
        None, [True] * 3 + [False], None, None, None, None, 3, 5, p, False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BACKWARD)
@pytest.mark.parametrize(("operands", "rows", "results", "p"), FUSED.values(), ids=FUSED)
def test_every_fused_gradient_costs_the_products_without_recomputation(
    name: str, operands: tuple[Tensor, Tensor, Tensor], rows: int, results: int, p: float
) -> None:
    formula = formula_for(getattr(aten, f"_scaled_dot_product_{name}").default)
    expected = gradient(*operands, rows, results, operands[1].shape[1], p > 0)
    assert formula(None, *operands, *BACKWARD[name](p), out=None) == expected


@pytest.mark.parametrize(("operands", "rows", "results", "p"), FUSED.values(), ids=FUSED)
def test_a_gradient_under_autograd_costs_the_same(
    operands: tuple[Tensor, Tensor, Tensor], rows: int, results: int, p: float
) -> None:
    tensors = [x.clone().requires_grad_() for x in operands]
    grouped = operands[1].shape[1] < 6
    report = trace(attend, (*tensors, None, p), {"enable_gqa": grouped}, train=True, backward=True)
    expected = gradient(*operands, rows, results, operands[1].shape[1], p > 0)
    assert report.backward_cost.arithmetic == expected


PLAIN = gradient(*FUSED["alike"][0], 36, 36 * 8, 6, 0)
Q, K, V = (x.numel() for x in FUSED["alike"][0])
FROM_VALUES, FROM_KEYS, SCORES = 36 * 5 * 8, 36 * 5 * 4, 36 * 5
TO_VALUES = Cost(2 * FROM_VALUES - V, FROM_VALUES)
TO_QUERIES, TO_KEYS = (Cost(2 * FROM_KEYS, FROM_KEYS) for _ in "qk")  # the scale makes up for the −1
TO_SCORES = Cost(2 * FROM_VALUES - SCORES + 4 * SCORES - 36, FROM_VALUES)
MASKS = {
    (True, True, True, True): TO_VALUES + TO_SCORES + TO_QUERIES + TO_KEYS + (SCORES - 15),
    (True, False, False, False): TO_SCORES + TO_QUERIES,
    (False, True, False, False): TO_SCORES + TO_KEYS,
    (False, False, True, False): TO_VALUES,
    (False, False, False, True): TO_SCORES + (SCORES - 15),
    (False, False, False, False): Cost(0),
}


@pytest.mark.parametrize(("mask", "cost"), MASKS.items(), ids=str)
def test_only_the_gradients_that_are_asked_for_are_counted(mask: tuple[bool, ...], cost: Cost) -> None:
    operands, bias = FUSED["alike"][0], t(3, 5)
    efficient = formula_for(aten._scaled_dot_product_efficient_attention_backward.default)
    assert efficient(None, *operands, bias, None, None, None, None, 0.0, mask, out=None) == cost
    overrideable = formula_for(aten._scaled_dot_product_fused_attention_overrideable_backward.default)
    behind = (None, None, None, None, 3, 5, 0.0, False, None, None)
    assert overrideable(None, *operands, bias, mask, *behind, out=None) == cost


@pytest.mark.parametrize("mask", [mask for mask in MASKS if any(mask)], ids=str)
def test_autograd_counts_the_gradients_that_it_needs(mask: tuple[bool, ...]) -> None:
    tensors = [
        x.clone().requires_grad_(asked) for x, asked in zip((*FUSED["alike"][0], t(3, 5)), mask, strict=True)
    ]
    report = trace(attend, tuple(tensors), train=True, backward=True)
    assert report.backward_cost.arithmetic == MASKS[mask]


def fused(name: str) -> Callable[..., Tensor]:
    more = {"efficient_attention": (None, True), "cudnn_attention": (None, True)}.get(name, ())
    return lambda q, k, v: getattr(aten, f"_scaled_dot_product_{name}")(q, k, v, *more)[0]


class Attention(nn.Module):
    def __init__(self, attention: Callable[..., Tensor]) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(8, 8) for _ in "qkv")
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(*(layer(x).view(2, 5, 2, 4).transpose(1, 2) for layer in self.maps))


FORMS = {
    "flash_attention_for_cpu": ("meta", "real"),
    "flash_attention": ("meta",),
    "efficient_attention": ("meta",),
    "cudnn_attention": ("meta",),
    "fused_attention_overrideable": ("meta",),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_training_step_costs_the_same_by_a_fused_operator(name: str) -> None:
    x = torch.randn(2, 5, 8)
    plain = trace(Attention(attend), x, train=True, backward=True)
    assert plain.backward_macs == 2 * (2 * 2 * 5 * 5 * 2 * 4) + 3 * (10 * 8 * 8)  # x itself needs no gradient
    for execute in FORMS[name]:
        report = trace(Attention(fused(name)), x, train=True, backward=True, execute=execute)
        assert not report.unsupported
        assert (report.flops, report.macs) == (plain.flops, plain.macs)
        assert report.backward_flops == plain.backward_flops
