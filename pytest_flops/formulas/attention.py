"""Scaled dot-product attention, by one formula however it is computed.

Q is (…, H, Lq, d), K (…, Hkv, Lk, d), V (…, Hkv, Lk, dv); with grouped queries a key head serves several
query heads, which changes nothing in the count. A causal mask counts in full: every score is computed.
"""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor

from pytest_flops.formulas.contraction import dots
from pytest_flops.formulas.registry import Cost, register_flop_formula


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
