"""Sorting, selection, search and counting, in comparisons.

What the algorithm does depends on the data; the closed form of a textbook one stands for it: merge sort
n·⌈log₂ n⌉, a heap of k for the k largest, binary search (Knuth, The Art of Computer Programming 3, §5.2.3,
§5.2.4 and §6.2.1).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pytest_flops.formulas.registry import elements, register_flop_formula


def log2_ceil(n: int) -> int:
    """Return ⌈log₂ n⌉, 0 for n < 2."""
    return max(n - 1, 0).bit_length()


def _length(x: Tensor, dim: int) -> int:
    return x.shape[dim] if x.ndim else 1


@register_flop_formula("aten::sort")
def sort(x: Tensor, dim: int = -1, *_: Any, **__: Any) -> int:
    """Count n·⌈log₂ n⌉ comparisons per row."""
    return x.numel() * log2_ceil(_length(x, dim))


@register_flop_formula("aten::topk")
def topk(x: Tensor, k: int, *_: Any, **__: Any) -> int:
    """Count n·⌈log₂ k⌉ comparisons per row to keep the k largest in a heap, and one at least."""
    return x.numel() * max(log2_ceil(k), 1)


@register_flop_formula("aten::mode")
def mode(x: Tensor, dim: int = -1, *_: Any, **__: Any) -> int:
    """Count a sort, and a comparison of each element with the one before."""
    return sort(x, dim) + x.numel()


@register_flop_formula(["aten::_unique", "aten::_unique2"])
def unique(x: Tensor, *_: Any, **__: Any) -> int:
    """Count a sort of all elements, and the comparisons of neighbours."""
    n = x.numel()
    return n * log2_ceil(n) + max(n - 1, 0)


@register_flop_formula(["aten::unique_dim", "aten::unique_dim_consecutive"])
def unique_dim(x: Tensor, dim: int, *_: Any, **__: Any) -> int:
    """Count as `unique`, for slices: a comparison of two slices compares their elements."""
    return x.numel() * (log2_ceil(x.shape[dim]) + 1)


@register_flop_formula("aten::unique_consecutive")
def unique_consecutive(x: Tensor, *_: Any, **__: Any) -> int:
    """Count the comparisons of neighbours."""
    return max(x.numel() - 1, 0)


@register_flop_formula("aten::searchsorted")
def searchsorted(boundaries: Tensor, *_: Any, out: Tensor, **__: Any) -> int:
    """Count ⌈log₂(n+1)⌉ comparisons per value."""
    return out.numel() * log2_ceil(boundaries.shape[-1] + 1)


@register_flop_formula("aten::bucketize")
def bucketize(x: Any, boundaries: Tensor, *_: Any, out: Tensor, **__: Any) -> int:
    """Count as `searchsorted`."""
    return searchsorted(boundaries, out=out)


@register_flop_formula("aten::isin")
def isin(x: Any, tests: Any, *_: Any, out: Tensor, **__: Any) -> int:
    """Count a binary search among the sorted test elements, and their sort."""
    n = tests.numel() if isinstance(tests, Tensor) else 1
    return n * log2_ceil(n) + out.numel() * log2_ceil(n + 1)


@register_flop_formula("aten::bincount")
def bincount(x: Tensor, *_: Any, **__: Any) -> int:
    """Count one addition per element."""
    return x.numel()


@register_flop_formula(["aten::histc", "aten::histogram.bin_ct"])
def histc(x: Tensor, *_: Any, **__: Any) -> int:
    """Count 3 per element: its offset from the minimum, its bin, and the addition there."""
    return 3 * x.numel()


@register_flop_formula("aten::histogram.bins_tensor")
def histogram(x: Tensor, bins: Tensor, *_: Any, **__: Any) -> int:
    """Count a binary search among the borders and an addition per element."""
    return x.numel() * (log2_ceil(bins.numel()) + 1)


@register_flop_formula(["aten::_histogramdd_from_bin_cts", "aten::_histogramdd_from_bin_tensors"])
def histogramdd(x: Tensor, *_: Any, **__: Any) -> int:
    """Count 3 per coordinate, as `histc`; the index of the bin takes the place of the addition."""
    return 3 * x.numel()


@register_flop_formula("aten::_histogramdd_bin_edges")
def histogramdd_bin_edges(x: Tensor, *_: Any, out: Any, **__: Any) -> int:
    """Count the minimum and the maximum of each coordinate, and 2 per edge."""
    return 2 * x.numel() + 2 * elements(out)
