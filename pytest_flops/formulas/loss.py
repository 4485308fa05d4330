"""Losses that are one op. The others (cross-entropy, L1, KL, triplet…) are left to their parts."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor

from pytest_flops.formulas.contraction import dots
from pytest_flops.formulas.pointwise import per_element
from pytest_flops.formulas.registry import Formula, register_flop_formula
from pytest_flops.metrics import Cost

NONE, MEAN = 0, 1


def combine(n: int, reduction: int) -> int:
    """Return the FLOPs that make one number of `n` losses: n for their mean, n−1 for their sum."""
    return 0 if reduction == NONE else max(n - (reduction != MEAN), 0)


def loss(flops: int, reduction_at: int = 2) -> Formula:
    """Return the formula of a loss of `flops` per element whose reduction is argument `reduction_at`."""

    def formula(x: Tensor, target: Tensor, *args: Any, **__: Any) -> int:
        reduction = args[reduction_at - 2] if len(args) > reduction_at - 2 else MEAN
        n = max(x.numel(), target.numel())
        return flops * n + combine(n, reduction)

    return formula


# (x−t)²; |x−t| < β chooses ½(x−t)²/β; |x−t| < δ chooses ½(x−t)²; log(1 + e^(−t·x))
register_flop_formula("aten::mse_loss")(loss(2))
register_flop_formula("aten::smooth_l1_loss")(loss(6))
register_flop_formula("aten::huber_loss")(loss(5))
register_flop_formula("aten::soft_margin_loss")(loss(4))

for _flops, _names in {
    3: "mse_loss_backward",  # 2/n·(x−t)·g
    5: """
        smooth_l1_loss_backward huber_loss_backward soft_margin_loss_backward multi_margin_loss_backward
        binary_cross_entropy_backward
    """,
}.items():
    register_flop_formula([f"aten::{name}" for name in _names.split()])(per_element(_flops))


@register_flop_formula("aten::binary_cross_entropy")
def binary_cross_entropy(
    x: Tensor, target: Tensor, weight: Tensor | None = None, reduction: int = MEAN, *_: Any, **__: Any
) -> int:
    """Count −(t·log x + (1−t)·log(1−x)), 8 per element, and the weight."""
    n = x.numel()
    return (8 + (weight is not None)) * n + combine(n, reduction)


@register_flop_formula("aten::binary_cross_entropy_with_logits")
def binary_cross_entropy_with_logits(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: int = MEAN,
    *_: Any,
    **__: Any,
) -> int:
    """Count (1−t)·x − log σ(x), 4 per element; log σ is scaled by 1 + (w₊−1)·t, 4 more; and the weight."""
    n = x.numel()
    per_element = 4 + 4 * (pos_weight is not None) + (weight is not None)
    return per_element * n + combine(n, reduction)


@register_flop_formula(["aten::nll_loss_forward", "aten::nll_loss2d_forward"])
def nll_loss(x: Tensor, target: Tensor, weight: Tensor | None, reduction: int, *_: Any, **__: Any) -> int:
    """Count a change of sign per target; with weights a product, and for the mean their sum."""
    n = target.numel()
    weights = 0 if weight is None else n + (combine(n, reduction) if reduction == MEAN else 0)
    return n + weights + combine(n, reduction)


@register_flop_formula(["aten::nll_loss_backward", "aten::nll_loss2d_backward"])
def nll_loss_backward(grad: Tensor, x: Tensor, target: Tensor, *_: Any, **__: Any) -> int:
    """Count 2 per target: sign and weight."""
    return 2 * target.numel()


@register_flop_formula("aten::multi_margin_loss")
def multi_margin_loss(
    x: Tensor,
    target: Tensor,
    p: Any = 1,
    margin: Any = 1,
    weight: Tensor | None = None,
    reduction: int = MEAN,
    *_: Any,
    **__: Any,
) -> int:
    """Count max(0, m − x_t + x)^p / C summed over the classes: 5 per element; and the weight."""
    return (5 + (weight is not None)) * x.numel() + combine(target.numel(), reduction)


@register_flop_formula("aten::multilabel_margin_loss_forward")
def multilabel_margin_loss(x: Tensor, target: Tensor, reduction: int, *_: Any, **__: Any) -> int:
    """Count max(0, 1 − (x_t − x)), 4 with its addition, for each of C·C pairs: all that could be targets."""
    C = x.shape[-1] if x.ndim else 1
    samples = prod(x.shape[:-1])
    return 4 * x.numel() * C + combine(samples, reduction)


@register_flop_formula("aten::multilabel_margin_loss_backward")
def multilabel_margin_loss_backward(grad: Tensor, x: Tensor, target: Tensor, *_: Any, **__: Any) -> int:
    """Count as forward."""
    return multilabel_margin_loss(x, target, NONE)


@register_flop_formula(["aten::_ctc_loss", "aten::_cudnn_ctc_loss"])
def ctc_loss(log_probs: Tensor, targets: Tensor, *_: Any, out: Any, **__: Any) -> int:
    """Count 7 for each of T·(2S+1) cells of the forward variable: log(e^a + e^b + e^c) + log p.

    S is the length of a target as padded: which part of it is used is data.
    """
    T = log_probs.shape[0]
    N = log_probs.shape[1] if log_probs.ndim == 3 else 1
    return 7 * T * (2 * targets.numel() + N)


@register_flop_formula("aten::_ctc_loss_backward")
def ctc_loss_backward(grad: Tensor, log_probs: Tensor, targets: Tensor, *_: Any, out: Any, **__: Any) -> int:
    """Count the backward variable as the forward one, and 4 per probability for their product."""
    return ctc_loss(log_probs, targets, out=out) + 4 * log_probs.numel()


@register_flop_formula("torch_nn::_linear_cross_entropy_batch_chunked_no_reduction")
def linear_cross_entropy(
    x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, class_weight: Any, *_: Any, **__: Any
) -> Cost:
    """Count the linear map, log-softmax (3 per logit), a change of sign per target; in one chunk or many."""
    C, features = weight.shape
    N = prod(x.shape[:-1])
    return dots(N * C, features) + (3 + (bias is not None)) * N * C + (1 + (class_weight is not None)) * N


@register_flop_formula("torch_nn::_linear_cross_entropy_batch_chunked")
def linear_cross_entropy_with_gradients(
    x: Tensor, weight: Tensor, target: Tensor, bias: Any, class_weight: Any, *args: Any, **__: Any
) -> Cost:
    """Count the loss, and the gradients that it computes on the way: softmax less target, 2 per logit."""
    C, features = weight.shape
    N = prod(x.shape[:-1])
    to_input, to_weight, to_bias = map(bool, args[-3:])
    cost = linear_cross_entropy(x, weight, target, bias, class_weight) + combine(N, MEAN)
    if to_input:
        cost += dots(N * features, C)
    if to_weight:
        cost += dots(C * features, N)
    return cost + 2 * N * C * any(args[-3:]) + to_bias * (N - 1) * C
