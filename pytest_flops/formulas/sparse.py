"""Sparse tensors: making them and turning them into one another is layout; coalescing them adds.

What a product with a sparse operand costs stands with the other contractions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pytest_flops.formulas.contraction import dots, scaled, stored
from pytest_flops.formulas.registry import no_flops, real_parts, register_flop_formula
from pytest_flops.metrics import Cost

ZERO_BY_KIND = {
    "creation": """
        sparse_coo_tensor sparse_compressed_tensor sparse_csr_tensor sparse_csc_tensor sparse_bsr_tensor
        sparse_bsc_tensor _sparse_coo_tensor_unsafe _sparse_compressed_tensor_unsafe
        _sparse_csr_tensor_unsafe _sparse_csc_tensor_unsafe _sparse_bsr_tensor_unsafe
        _sparse_bsc_tensor_unsafe _sparse_coo_tensor_with_dims _sparse_coo_tensor_with_dims_and_tensors
        _sparse_compressed_tensor_with_dims _spdiags
    """,
    "conversion": """
        to_dense to_sparse to_sparse_csr to_sparse_csc to_sparse_bsr to_sparse_bsc _to_sparse_csr
        _to_sparse_csc _to_sparse_bsr _to_sparse_bsc _to_sparse_semi_structured _cslt_compress
        _convert_indices_from_coo_to_csr _convert_indices_from_csr_to_coo _sparse_broadcast_to_copy
        copy_sparse_to_sparse copy_sparse_to_sparse_ indices_copy values_copy _indices_copy _values_copy
        crow_indices_copy col_indices_copy ccol_indices_copy row_indices_copy _sparse_sum_backward
    """,
    "selection by a mask": "sparse_mask _sparse_mask_projection",
    "size and state": """
        sparse_dim dense_dim _dimI _dimV _coalesced _coalesced_ resize_as_sparse resize_as_sparse_
        sparse_resize sparse_resize_ sparse_resize_and_clear sparse_resize_and_clear_
        _validate_compressed_sparse_indices _validate_sparse_coo_tensor_args
        _validate_sparse_compressed_tensor_args _validate_sparse_csr_tensor_args
        _validate_sparse_csc_tensor_args _validate_sparse_bsr_tensor_args _validate_sparse_bsc_tensor_args
    """,
}
for _names in ZERO_BY_KIND.values():
    register_flop_formula([f"aten::{name}" for name in _names.split()])(no_flops)


@register_flop_formula(["aten::coalesce", "aten::_coalesce"])
def coalesce(x: Tensor, *_: Any, out: Tensor, **__: Any) -> int:
    """Count an addition for each stored element that falls together with another."""
    return max(stored(x) - stored(out), 0) * real_parts(x)


@register_flop_formula("aten::_sparse_mm_reduce_impl_backward")
def sparse_mm_reduce_backward(
    a: Tensor, grad: Tensor, b: Tensor, reduce: str, arg_out: Any, mask: Sequence[bool], *_: Any, **__: Any
) -> Cost:
    """Count for each stored element a dot product over the columns; for the dense operand a product and its
    addition per column."""
    n, columns = stored(a), grad.shape[1]
    to_sparse, to_dense = map(int, mask)
    return dots(n, columns) * to_sparse + Cost(2 * n * columns, n * columns) * to_dense


@register_flop_formula("aten::_sparse_semi_structured_mm")
def semi_structured_mm(a: Tensor, meta: Tensor, b: Tensor, *_: Any, out: Tensor, **__: Any) -> Cost:
    """Count the products with the stored half of the first operand, (m, k/2)."""
    return dots(out.numel(), a.shape[1])


@register_flop_formula("aten::_sparse_semi_structured_addmm")
def semi_structured_addmm(
    bias: Tensor,
    a: Tensor,
    meta: Tensor,
    b: Tensor,
    *_: Any,
    out: Tensor,
    alpha: complex = 1,
    beta: complex = 1,
    **__: Any,
) -> Cost:
    """Count `semi_structured_mm` and what adds the bias."""
    return dots(out.numel(), a.shape[1]) + scaled(out.numel(), alpha, beta)
