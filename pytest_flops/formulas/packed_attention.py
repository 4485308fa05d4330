"""Attention by the kernels' own operators, whose sequences may be packed: each with a length of its own.

Q is (B, Lq, H, d), or (ΣLq, H, d) with the offsets at which the sequences begin; K and V likewise, with heads
that may serve a group of query heads each. Scores are counted for each sequence by itself. Lengths are
values: where a run has none (offsets computed from what is on meta) every query counts as if it met `max_k`
keys. Windows and causal masks count in full, as everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any

from torch import Tensor

from pytest_flops.formulas.attention import Gradients, Work, attention, attention_backward
from pytest_flops.formulas.registry import reads_values, register_flop_formula
from pytest_flops.metrics import Cost


def packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_offsets: Tensor | None,
    k_offsets: Tensor | None,
    max_k: int | None,
    k_lengths: Tensor | None = None,
) -> Work:
    """Return the work of attention on packed sequences; of keys only `k_lengths` are used, where given."""
    H, d = q.shape[-2:]
    queries = _lengths(q, q_offsets)
    keys = _values(k_lengths) if k_lengths is not None else _lengths(k, k_offsets)
    if queries is None or keys is None:
        rows = prod(q.shape[:-2])
        pairs = rows * (prod(k.shape[:-2]) if max_k is None else max_k)
    else:
        rows = sum(Lq for Lq, Lk in zip(queries, keys, strict=True) if Lk)
        pairs = sum(Lq * Lk for Lq, Lk in zip(queries, keys, strict=True))
    dv = v.shape[-1]
    return Work(H * rows, H * pairs, H * rows * dv, from_keys=H * pairs * d, from_values=H * pairs * dv)


def _lengths(x: Tensor, offsets: Tensor | None) -> list[int] | None:
    """Return the length of each sequence; None where nobody knows."""
    if offsets is None:
        B, L = x.shape[:2]
        return [L] * B
    begins = _values(offsets)
    return [end - begin for begin, end in pairwise(begins)] if begins else begins


def _values(x: Tensor) -> list[int] | None:
    return None if x.is_meta else [int(value) for value in x.tolist()]


def gradients(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Gradients:
    """Return what the gradients of all three operands are made of, and that of a bias if it is asked for."""
    of_groups = prod(k.shape[:-2]) * q.shape[-2] * k.shape[-1]
    return Gradients(q.numel(), k.numel(), v.numel(), of_groups, 0 if bias is None else bias.numel())


def is_windowed(*sizes: int | None) -> bool:
    """Tell whether a window leaves anything out: a side of −1, or none, is open."""
    return any(size is not None and size >= 0 for size in sizes)


@register_flop_formula("aten::_flash_attention_forward")
@reads_values
def flash_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cum_seq_q: Tensor | None,
    cum_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    *_: Any,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
    seqused_k: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    **__: Any,
) -> Cost:
    """Count `packed`; a bias of slopes is added to every score as a mask is."""
    masked = is_causal or is_windowed(window_size_left, window_size_right) or alibi_slopes is not None
    work = packed(q, k, v, cum_seq_q, cum_seq_k, max_k, seqused_k)
    return work.forward(masked=masked, dropout=dropout_p > 0)


@register_flop_formula("aten::_flash_attention_forward_no_dropout_inplace")
@reads_values
def flash_forward_inplace(result: Tensor, *args: Any, **kwargs: Any) -> Cost:
    """Count `flash_forward`, which this writes into its first argument."""
    return flash_forward(*args, **kwargs)


@register_flop_formula("aten::_flash_attention_backward")
@reads_values
def flash_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    result: Tensor,
    logsumexp: Tensor,
    cum_seq_q: Tensor | None,
    cum_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    dropout_p: float,
    *_: Any,
    **__: Any,
) -> Cost:
    """Count the gradient of `packed`."""
    work = packed(q, k, v, cum_seq_q, cum_seq_k, max_k)
    return work.backward(gradients(q, k, v), dropout=dropout_p > 0)


@register_flop_formula("aten::_efficient_attention_forward")
@reads_values
def efficient_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    max_seqlen_q: int | None,
    max_seqlen_k: int | None,
    dropout_p: float,
    custom_mask_type: int,
    *_: Any,
    seqlen_k: Tensor | None = None,
    window_size: int | None = None,
    **__: Any,
) -> Cost:
    """Count `packed`; mask types 1 and 2 are causal."""
    masked = bias is not None or custom_mask_type != 0 or window_size is not None
    work = packed(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_k, seqlen_k)
    return work.forward(masked=masked, dropout=dropout_p > 0)


@register_flop_formula("aten::_efficient_attention_backward")
@reads_values
def efficient_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    result: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    max_seqlen_q: int,
    max_seqlen_k: int,
    logsumexp: Tensor,
    dropout_p: float,
    seed: Tensor,
    offset: Tensor,
    custom_mask_type: int,
    bias_requires_grad: bool,
    *_: Any,
    **__: Any,
) -> Cost:
    """Count the gradient of `packed`, and of the bias if it is asked for."""
    work = packed(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_k)
    to = gradients(q, k, v, bias if bias_requires_grad else None)
    return work.backward(to, dropout=dropout_p > 0)


@register_flop_formula("aten::_cudnn_attention_forward")
@reads_values
def cudnn_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_bias: Tensor | None,
    cum_seq_q: Tensor | None,
    cum_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    compute_log_sumexp: bool,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *_: Any,
    seqused_k: Tensor | None = None,
    **__: Any,
) -> Cost:
    """Count `packed` with offsets, and `attention` without: there the heads come before the lengths."""
    masked, dropout = attn_bias is not None or is_causal, dropout_p > 0
    if cum_seq_q is None:
        return attention(q, k, v, masked=masked, dropout=dropout)
    work = packed(q, k, v, cum_seq_q, cum_seq_k, max_k, seqused_k)
    return work.forward(masked=masked, dropout=dropout)


@register_flop_formula("aten::_cudnn_attention_backward")
@reads_values
def cudnn_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *args: Any, **__: Any) -> Cost:
    """Count the gradient of `cudnn_forward`."""
    _out, _logsumexp, _seed, _offset, _bias, cum_seq_q, cum_seq_k, _max_q, max_k, dropout_p, *_rest = args
    if cum_seq_q is None:
        return attention_backward(q, k, v, dropout=dropout_p > 0)
    work = packed(q, k, v, cum_seq_q, cum_seq_k, max_k)
    return work.backward(gradients(q, k, v), dropout=dropout_p > 0)


@register_flop_formula("torch_attn::_varlen_attn")
@reads_values
def varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    is_causal: bool = False,
    scale: float | None = None,
    window_size: Sequence[int] | None = None,
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    *_: Any,
    **__: Any,
) -> Cost:
    """Count `packed`, what `torch.nn.attention.varlen` calls."""
    work = packed(query, key, value, cu_seq_q, cu_seq_k, max_k, seqused_k)
    return work.forward(masked=is_causal or is_windowed(*(window_size or ())), dropout=False)


@register_flop_formula("torch_attn::_varlen_attn_out")
@reads_values
def varlen_out(result: Tensor, *args: Any, **kwargs: Any) -> Cost:
    """Count `varlen`, which this writes into its first argument."""
    return varlen(*args, **kwargs)


@register_flop_formula("torch_attn::_varlen_attn_backward")
@reads_values
def varlen_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    result: Tensor,
    logsumexp: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *_: Any,
    **__: Any,
) -> Cost:
    """Count the gradient of `packed`."""
    return packed(query, key, value, cu_seq_q, cu_seq_k, max_k).backward(
        gradients(query, key, value), dropout=False
    )
