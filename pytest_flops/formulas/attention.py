"""Scaled dot-product attention, by one formula however it is computed, and its gradient by another.

Q is (…, H, Lq, d), K (…, H, Lk, d), V (…, H, Lk, dv), or the same without heads or batch. Every size in front
of the lengths can broadcast, in each of the three by itself; with grouped queries a key head serves several
query heads, and counts as so many heads. A causal mask counts in full: every score is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

from torch import Tensor

from pytest_flops.formulas.contraction import dots, sums
from pytest_flops.formulas.registry import register_flop_formula
from pytest_flops.metrics import Cost


class Work(NamedTuple):
    """What one attention consists of: its scores, in rows of one per key, and its results.

    `from_keys` are the multiply-accumulates of QKᵀ, `from_values` those of AV.
    """

    rows: int
    scores: int
    results: int
    from_keys: int
    from_values: int

    def forward(self, *, masked: bool, dropout: bool) -> Cost:
        """Return QKᵀ, scale, mask, softmax (3·Lk−1 per row), dropout (1 per score) and AV."""
        products = sums(self.from_keys, self.scores) + sums(self.from_values, self.results)
        softmax = max(3 * self.scores - self.rows, 0)
        return products + self.scores * (1 + masked + dropout) + softmax

    def backward(self, to: Gradients, *, dropout: bool) -> Cost:
        """Return the gradients, from the probabilities P that the forward pass computed.

        dV = Pᵀ·dO. For the others dP = dO·Vᵀ, dropout (1 per score) and softmax (4·Lk−1 per row) give dS,
        then dQ = dS·K and dK = dSᵀ·Q, each scaled. Where an operand broadcasts its gradients are added up.
        """
        cost = Cost(0)
        if to.values:
            cost += sums(self.from_values, to.values)
        if to.queries or to.keys or to.biases:
            softmax = max(4 * self.scores - self.rows, 0)
            cost += sums(self.from_values, self.scores) + self.scores * dropout + softmax
        if to.queries:
            cost += sums(self.from_keys, to.queries) + to.queries
        if to.keys:
            cost += sums(self.from_keys, to.keys) + to.scaled_keys
        return cost + (max(self.scores - to.biases, 0) if to.biases else 0)


class Gradients(NamedTuple):
    """The number of elements of each gradient that is asked for, 0 where it is not.

    `scaled_keys` are those of K with as many heads as there are queries'.
    """

    queries: int
    keys: int
    values: int
    scaled_keys: int
    biases: int = 0


def _work(q: Tensor, k: Tensor, v: Tensor) -> Work:
    *before_q, Lq, d = q.shape
    *before_k, Lk, _d = k.shape
    *before_v, _Lk, dv = v.shape
    scored = _broadcast(before_q, before_k)
    rows = prod(scored) * Lq
    results = prod(_broadcast(scored, before_v)) * Lq * dv
    return Work(rows, rows * Lk, results, from_keys=rows * Lk * d, from_values=results * Lk)


def _broadcast(a: Sequence[int], b: Sequence[int]) -> list[int]:
    """Return the sizes that two operands have together; of grouped heads that is the larger number."""
    n = max(len(a), len(b))
    pairs = zip([1] * (n - len(a)) + [*a], [1] * (n - len(b)) + [*b], strict=True)
    return [y if x == 1 else x if y == 1 else max(x, y) for x, y in pairs]


def _in_groups(k: Tensor, q: Tensor) -> int:
    """Return the number of elements of K with as many heads as Q has."""
    *before, Lk, d = k.shape
    heads = _broadcast(before[-1:], q.shape[:-2][-1:])
    return prod(before[:-1]) * prod(heads) * Lk * d


def attention(q: Tensor, k: Tensor, v: Tensor, *, masked: bool, dropout: bool) -> Cost:
    """Return the cost of attention; see `Work.forward`."""
    return _work(q, k, v).forward(masked=masked, dropout=dropout)


@register_flop_formula(["aten::scaled_dot_product_attention", "aten::_scaled_dot_product_attention_math"])
@register_flop_formula(["aten::_scaled_dot_product_attention_math_for_mps"])
@register_flop_formula(["aten::_scaled_dot_product_fused_attention_overrideable"])
def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *_: Any,
    **__: Any,
) -> Cost:
    """Count `attention`, with a mask where there is one or the attention is causal."""
    return attention(query, key, value, masked=attn_mask is not None or is_causal, dropout=dropout_p > 0)


@register_flop_formula("aten::_scaled_dot_product_flash_attention")
def flash(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, is_causal: bool = False, *_: Any, **__: Any
) -> Cost:
    """Count `attention`: the CUDA kernel without a mask of its own."""
    return attention(q, k, v, masked=is_causal, dropout=dropout_p > 0)


@register_flop_formula("aten::_scaled_dot_product_flash_attention.quantized")
def quantized_flash(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_descale: Any,
    k_descale: Any,
    v_descale: Any,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *_: Any,
    **__: Any,
) -> Cost:
    """Count `attention`: the scales of the operands are part of their number format."""
    return attention(q, k, v, masked=is_causal, dropout=dropout_p > 0)


@register_flop_formula("aten::_triton_scaled_dot_attention")
def triton(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, *_: Any, **__: Any) -> Cost:
    """Count `attention`."""
    return attention(q, k, v, masked=False, dropout=dropout_p > 0)


@register_flop_formula("aten::_scaled_dot_product_flash_attention_for_cpu")
def flash_for_cpu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *_: Any,
    attn_mask: Tensor | None = None,
    **__: Any,
) -> Cost:
    """Count `attention`."""
    return attention(q, k, v, masked=attn_mask is not None or is_causal, dropout=dropout_p > 0)


@register_flop_formula(
    ["aten::_scaled_dot_product_efficient_attention", "aten::_scaled_dot_product_cudnn_attention"]
)
def efficient(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_bias: Tensor | None,
    compute_log_sumexp: bool,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *_: Any,
    **__: Any,
) -> Cost:
    """Count `attention`."""
    return attention(q, k, v, masked=attn_bias is not None or is_causal, dropout=dropout_p > 0)


@register_flop_formula(["aten::_native_multi_head_attention", "aten::_triton_multi_head_attention"])
def native_multi_head_attention(
    query: Tensor, key: Tensor, value: Tensor, embed_dim: int, num_head: int, *args: Any, **__: Any
) -> Cost:
    """Count the four projections with their biases, and `attention`."""
    _qkv_weight, _qkv_bias, _proj_weight, _proj_bias, mask, *_rest = (*args, None)
    B, Lq, E = query.shape
    Lk = key.shape[1]
    linear: Cost = dots(2 * (Lq + Lk) * B * E, E) + 2 * (Lq + Lk) * B * E
    return linear + _attention_of(B, Lq, Lk, E, num_head, masked=mask is not None)


def _attention_of(B: int, Lq: int, Lk: int, E: int, H: int, *, masked: bool) -> Cost:
    # H heads of E/H features: the products add up to E, whatever H is
    products = B * Lq * Lk * E
    whole = Work(B * H * Lq, B * H * Lq * Lk, B * Lq * E, from_keys=products, from_values=products)
    return whole.forward(masked=masked, dropout=False)


@register_flop_formula("aten::_transformer_encoder_layer_fwd")
def transformer_encoder_layer(src: Tensor, embed_dim: int, num_heads: int, *args: Any, **__: Any) -> Cost:
    """Count the attention, the two linear maps with their activation, two norms and two residuals."""
    projections, ffn_1, mask = args[:4], args[11], args[15:16]
    B, L, E = src.shape
    F: int = ffn_1.shape[0]
    feed_forward = dots(B * L * F, E) + dots(B * L * E, F) + (2 * F + E) * B * L
    attend = native_multi_head_attention(src, src, src, embed_dim, num_heads, *projections, *mask)
    return attend + feed_forward + (2 * 4 + 2) * src.numel()


@register_flop_formula("aten::_transform_bias_rescale_qkv")
def transform_bias_rescale_qkv(qkv: Tensor, *_: Any, out: Any, **__: Any) -> int:
    """Count the bias of all three and the scale of the queries."""
    queries: Tensor = out[0]
    return qkv.numel() + queries.numel()


def attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    dropout: bool,
    mask: Sequence[bool] = (True, True, True),
    bias: Tensor | None = None,
) -> Cost:
    """Return the gradients of attention to those of Q, K and V that `mask` asks for; see `Work.backward`.

    A fourth flag asks for the gradient of `bias`. Of fewer key heads than query heads each serves a group.
    """
    of_queries, of_keys, of_values, of_bias = (*mask, False)[:4]
    to = Gradients(
        queries=of_queries * q.numel(),
        keys=of_keys * k.numel(),
        values=of_values * v.numel(),
        scaled_keys=_in_groups(k, q),
        biases=bias.numel() if of_bias and bias is not None else 0,
    )
    return _work(q, k, v).backward(to, dropout=dropout)


@register_flop_formula(
    [
        "aten::_scaled_dot_product_flash_attention_backward",
        "aten::_scaled_dot_product_cudnn_attention_backward",
    ]
)
def flash_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *args: Any, **__: Any) -> Cost:
    """Count `attention_backward`; `is_causal` is the one bool among the arguments, behind `dropout_p`."""
    at = next(position for position, arg in enumerate(args) if isinstance(arg, bool))
    return attention_backward(q, k, v, dropout=args[at - 1] > 0)


@register_flop_formula("aten::_scaled_dot_product_flash_attention_for_cpu_backward")
def flash_for_cpu_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    result: Tensor,
    logsumexp: Tensor,
    dropout_p: float,
    *_: Any,
    **__: Any,
) -> Cost:
    """Count `attention_backward`."""
    return attention_backward(q, k, v, dropout=dropout_p > 0)


@register_flop_formula("aten::_scaled_dot_product_efficient_attention_backward")
def efficient_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, attn_bias: Any, *args: Any, **__: Any
) -> Cost:
    """Count `attention_backward`, those gradients that are asked for."""
    _out, _logsumexp, _seed, _offset, dropout_p, mask, *_rest = args
    return attention_backward(q, k, v, dropout=dropout_p > 0, mask=mask, bias=attn_bias)


@register_flop_formula("aten::_scaled_dot_product_fused_attention_overrideable_backward")
def overrideable_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_bias: Tensor,
    mask: Sequence[bool],
    *args: Any,
    **__: Any,
) -> Cost:
    """Count `attention_backward`, those gradients that are asked for."""
    _out, _logsumexp, _cum_q, _cum_k, _max_q, _max_k, dropout_p, *_rest = args
    return attention_backward(q, k, v, dropout=dropout_p > 0, mask=mask, bias=attn_bias)
