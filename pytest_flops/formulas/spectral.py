"""Fast Fourier transforms: 5·n·log₂ n for a complex one of length n, half of that for a real one.

That is the count that FFTW's benchmark uses for all algorithms and lengths (www.fftw.org/speed, "mflops");
log₂ n is rounded up, so that the count is a whole number. The normalising factor is not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pytest_flops.formulas.ordering import log2_ceil
from pytest_flops.formulas.registry import register_flop_formula


def complex_fft(x: Tensor, dims: Sequence[int]) -> int:
    """Return the FLOPs of complex transforms of `x` along each of `dims`."""
    return 5 * x.numel() * sum(log2_ceil(x.shape[dim]) for dim in dims)


def real_fft(x: Tensor, dim: int) -> int:
    """Return the FLOPs of transforms from, or to, the real tensor `x` along `dim`."""
    return 5 * x.numel() * log2_ceil(x.shape[dim]) // 2


@register_flop_formula("aten::_fft_c2c")
def c2c(x: Tensor, dim: Sequence[int], *_: Any, **__: Any) -> int:
    """Count complex transforms along all dimensions."""
    return complex_fft(x, dim)


@register_flop_formula("aten::_fft_r2c")
def r2c(x: Tensor, dim: Sequence[int], *_: Any, out: Tensor, **__: Any) -> int:
    """Count a real transform along the last dimension, then complex ones on what it leaves."""
    return real_fft(x, dim[-1]) + complex_fft(out, dim[:-1])


@register_flop_formula("aten::_fft_c2r")
def c2r(x: Tensor, dim: Sequence[int], *_: Any, out: Tensor, **__: Any) -> int:
    """Count complex transforms, and at last a real one along the last dimension."""
    return complex_fft(x, dim[:-1]) + real_fft(out, dim[-1])
