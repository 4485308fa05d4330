"""Scaled dot-product attention, by one formula however it is computed.

Q is (…, H, Lq, d), K (…, Hkv, Lk, d), V (…, Hkv, Lk, dv); with grouped queries a key head serves several
query heads, which changes nothing in the count. A causal mask counts in full: every score is computed.
"""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor

from pytest_flops.formulas.contraction import dots
from pytest_flops.formulas.registry import register_flop_formula
from pytest_flops.metrics import Cost


def attention(q: Tensor, k: Tensor, v: Tensor, *, masked: bool, dropout: bool) -> Cost:
    """Return QKᵀ, scale, mask, softmax (3·Lk−1 per row), dropout (1 per score) and AV."""
    *_batch, Lq, d = q.shape
    Lk, dv = k.shape[-2], v.shape[-1]
    heads = prod(q.shape[:-2])
    return _attention(heads, Lq, Lk, d, dv, masked=masked, dropout=dropout)


def _attention(heads: int, Lq: int, Lk: int, d: int, dv: int, *, masked: bool, dropout: bool) -> Cost:
    scores = heads * Lq * Lk
    softmax = max(3 * scores - heads * Lq, 0)
    return dots(scores, d) + dots(heads * Lq * dv, Lk) + (scores * (1 + masked + dropout) + softmax)


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


@register_flop_formula("aten::_native_multi_head_attention")
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
    scores = B * H * Lq * Lk
    products = 2 * B * Lq * Lk * E
    softmax = 3 * scores - B * H * Lq
    return Cost(2 * products - scores - B * Lq * E + scores * (1 + masked) + softmax, products)


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


def attention_backward(q: Tensor, k: Tensor, v: Tensor, *, masked: bool, dropout: bool) -> Cost:
    """Return the gradient of `attention`, with the scores computed again rather than kept.

    S = QKᵀ; dP = dO·Vᵀ; dV = Pᵀ·dO; dQ = dS·K; dK = dSᵀ·Q. Per score: scale, mask, exp(s − l) 2, dropout 2,
    P·(dP − D) 2, scale. D is the dot product of dO and O in each row.
    """
    *_batch, Lq, d = q.shape
    Lk, dv = k.shape[-2], v.shape[-1]
    heads = prod(q.shape[:-2])
    scores = heads * Lq * Lk
    from_value = dots(scores, dv) + dots(heads * Lk * dv, Lq)
    from_key = dots(heads * Lq * d, Lk) + dots(heads * Lk * d, Lq)
    per_score = 6 + masked + 2 * dropout
    return dots(scores, d) + from_value + from_key + per_score * scores + heads * Lq * (2 * dv - 1)


@register_flop_formula(
    [
        "aten::_scaled_dot_product_flash_attention_backward",
        "aten::_scaled_dot_product_cudnn_attention_backward",
    ]
)
def flash_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *args: Any, **__: Any) -> Cost:
    """Count `attention_backward`; `is_causal` is the one bool among the arguments, behind `dropout_p`."""
    at = next(position for position, arg in enumerate(args) if isinstance(arg, bool))
    dropout_p, is_causal = args[at - 1 : at + 1]
    return attention_backward(q, k, v, masked=is_causal, dropout=dropout_p > 0)


@register_flop_formula("aten::_scaled_dot_product_flash_attention_for_cpu_backward")
def flash_for_cpu_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    result: Tensor,
    logsumexp: Tensor,
    dropout_p: float,
    is_causal: bool,
    *_: Any,
    attn_mask: Tensor | None = None,
    **__: Any,
) -> Cost:
    """Count `attention_backward`."""
    return attention_backward(q, k, v, masked=attn_mask is not None or is_causal, dropout=dropout_p > 0)


@register_flop_formula("aten::_scaled_dot_product_efficient_attention_backward")
def efficient_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, attn_bias: Any, *args: Any, **__: Any
) -> Cost:
    """Count `attention_backward`."""
    dropout_p, is_causal = args[4], len(args) > 6 and args[6]
    return attention_backward(q, k, v, masked=attn_bias is not None or is_causal, dropout=dropout_p > 0)
