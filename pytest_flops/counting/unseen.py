"""Work that PyTorch's dispatcher does not see: kernels called with pointers, NumPy, other libraries.

Nothing of it may pass as zero. There are three signs: a function by which values or addresses leave PyTorch;
PyTorch's own error when a kernel asks a tensor on shapes for its data; and, on real tensors, memory that was
only reserved and is read before any op has written it, or that was zeros and is not.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pytest_flops.counting.calls import Call
from pytest_flops.counting.live_memory import storage_key
from pytest_flops.formulas.zero import ZERO_BY_KIND

OF_CUDA = "Tensor.__cuda_array_interface__"
"""What tensors elsewhere have not, so that asking for it tells nothing."""
LEAVING: dict[Callable[..., Any], str] = {
    Tensor.numpy: "Tensor.numpy",
    Tensor.__array__: "Tensor.__array__",
    Tensor.tolist: "Tensor.tolist",
    Tensor.data_ptr: "Tensor.data_ptr",
    Tensor.__dlpack__: "Tensor.__dlpack__",
    Tensor.__cuda_array_interface__.__get__: OF_CUDA,
}
"""Ways for values, or for their address, to leave PyTorch, and how they are reported."""
ADDRESSES = frozenset({"Tensor.data_ptr", "Tensor.__dlpack__", OF_CUDA})
"""Those that give an address: whoever has it may read and write, whatever the dtype."""
BELOW: dict[Callable[..., Any], str] = {
    Tensor.untyped_storage: "Tensor.untyped_storage",
    Tensor.storage: "Tensor.storage",
}
"""Ways to look below a tensor, where a run on shapes has nothing to show."""

_ASKED_FOR_DATA = (
    "data is not allocated yet",
    "Cannot access data pointer",
    "Cannot pack tensors on meta",
    "doesn't have storage",
)
"""What PyTorch says to a kernel that asks a tensor without data for its address."""


def asked_for_data(err: BaseException) -> bool:
    """Tell whether an exception is PyTorch's to a kernel that it does not know."""
    return isinstance(err, (RuntimeError, BufferError)) and any(sign in str(err) for sign in _ASKED_FOR_DATA)


_INSIDE_TORCH = (torch.overrides.__file__, torch._tensor.__file__)


def is_known(frame: types.FrameType) -> bool:
    """Tell whether the code that called a function is PyTorch's or our own: it computes nothing unseen."""
    while frame.f_code.co_filename in _INSIDE_TORCH and frame.f_back is not None:
        frame = frame.f_back
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] in ("torch", "pytest_flops")


def _names(*kinds: str) -> frozenset[str]:
    return frozenset(name.partition(".")[0] for kind in kinds for name in ZERO_BY_KIND[kind].split())


_RESERVES = _names("creation") & {name for name in _names("creation") if "empty" in name}
_CLEARS = frozenset({"zeros", "zeros_like", "new_zeros"})
_MOVES = _names("copies and casts", "layout")
_OF_VALUES = """
    item _local_scalar_dense is_nonzero bernoulli normal multinomial poisson binomial _standard_gamma
    _sample_dirichlet
"""
_OF_SHAPES = _names("creation", "random numbers", "questions about the tensor") - {*_OF_VALUES.split()}
"""Ops that look at the shape of an argument, not at its values."""


class _Made(NamedTuple):
    """A storage that was made without contents."""

    storage: weakref.ref[torch.UntypedStorage]
    is_clear: bool
    """Whether it was all zeros, not just reserved."""
    is_loose: bool
    """Whether it was made outside of all functions: by an extension."""


class Unwritten:
    """The storages that were made without contents in a run, and that no op has written yet."""

    def __init__(self) -> None:
        self.made: dict[int, _Made] = {}

    def are_read(self, call: Call) -> bool:
        """Tell whether a call reads what no op wrote; what it writes itself is written from now on."""
        namespace, _, name = call.func._schema.name.partition("::")
        self.written(call.mutated)
        if namespace != "aten":
            self.written(call.tensors)  # an op of somebody's own may write what its schema does not say
            return False
        if call.func.is_view or name in _OF_SHAPES or (name in _MOVES and self._are_all(call.tensors)):
            return False
        return any(self._has_unseen(key) for key in self._keys(call.tensors))

    def are_returned(self, tensors: Iterable[Tensor]) -> bool:
        """Tell whether one of the tensors is what an extension made, and no op wrote."""
        keys = [key for key in self._keys(tensors) if self.made[key].is_loose]
        return any(self._has_unseen(key) for key in keys)

    def note(self, call: Call, results: Iterable[Tensor], step: object) -> None:
        """Note the storages that an op made without contents in a step, or by moving what has none.

        In a function of PyTorch other than those that make such a tensor, PyTorch itself may write it.
        """
        name = call.func._schema.name.removeprefix("aten::")
        is_clear, is_loose = name in _CLEARS, getattr(step, "is_loose", True)
        if is_clear or name in _RESERVES:
            if not is_loose and getattr(step, "name", "") not in _RESERVES | _CLEARS:
                return
        elif self.made and name in _MOVES and self._are_all(call.tensors):
            moved = [self.made[key] for key in self._keys(call.tensors)]
            is_clear, is_loose = all(one.is_clear for one in moved), all(one.is_loose for one in moved)
        else:
            return
        for tensor in results:
            if tensor.numel() and not tensor.is_meta and (key := storage_key(tensor)):
                storage = weakref.ref(tensor.untyped_storage(), partial(self._forget, key))
                self.made[key] = _Made(storage, is_clear, is_loose)

    def written(self, tensors: Iterable[Tensor]) -> None:
        """Note that an op wrote these tensors, or somebody whose work is known."""
        for tensor in tensors:
            self._forget(storage_key(tensor))

    def _keys(self, tensors: Iterable[Tensor]) -> set[int]:
        return {storage_key(tensor) for tensor in tensors if tensor.numel()} & self.made.keys()

    def _are_all(self, tensors: Iterable[Tensor]) -> bool:
        full = [tensor for tensor in tensors if tensor.numel()]
        return bool(full) and all(storage_key(tensor) in self.made for tensor in full)

    def _has_unseen(self, key: int) -> bool:
        """Tell whether a storage has contents that nobody was seen to write. It is told once."""
        storage, is_clear, _ = self.made.pop(key)
        alive = storage()
        return not is_clear or (alive is not None and _has_contents(alive))

    def _forget(self, key: int, _: object = None) -> None:
        self.made.pop(key, None)


def _has_contents(storage: torch.UntypedStorage) -> bool:
    """Tell whether a storage that was all zeros is so no more."""
    with torch._C._DisableTorchDispatch():  # private: no mode of anybody is to see it
        return bool(torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage).any())
