"""Settings, of torch's mostly, that last for a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch


@contextmanager
def setting(read: Callable[[], Any], write: Callable[[Any], object], value: Any) -> Iterator[None]:
    """Let something have a value, and afterwards the one that it had."""
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)


def threads(number: int) -> AbstractContextManager[None]:
    """Let torch compute on so many threads."""
    return setting(torch.get_num_threads, torch.set_num_threads, number)


def default_dtype(dtype: torch.dtype) -> AbstractContextManager[None]:
    """Let floating-point tensors be of this dtype where nobody says which."""
    return setting(torch.get_default_dtype, torch.set_default_dtype, dtype)


def fast_path(enabled: bool) -> AbstractContextManager[None]:
    """Let encoder layers take the fast path of PyTorch, or not."""
    mha = torch.backends.mha
    return setting(mha.get_fastpath_enabled, mha.set_fastpath_enabled, enabled)


def precision(of_products: str) -> AbstractContextManager[None]:
    """Let products of float32 be this precise."""
    return setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, of_products)


def deterministic() -> AbstractContextManager[None]:
    """Let PyTorch use deterministic algorithms alone."""
    return setting(torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True)
