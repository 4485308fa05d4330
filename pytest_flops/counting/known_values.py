"""Values of tensors on meta, where a run on shapes under autograd knows them.

What `forward` makes out of nothing symbolic (masks, positions, random draws) has values, so that
`mask.all()` and `.item()` work. Autograd minds the device of a gradient, so whatever might get one has to be
on meta, where activations and parameters are. Hence such a tensor is on meta, and another storage
has its values, until something symbolic is written into it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor

from pytest_flops.counting.live_memory import storage_key
from pytest_flops.counting.op_results import is_plain, meta_like


class KnownValues:
    """The values of storages on meta, as long as these are alive and their values known."""

    def __init__(self) -> None:
        self._values: dict[int, tuple[weakref.ref[torch.UntypedStorage], torch.UntypedStorage]] = {}

    def __bool__(self) -> bool:
        return bool(self._values)

    def keep(self, value: Tensor) -> Tensor:
        """Return a tensor on meta in place of a new one with values; one of whole numbers stays itself."""
        has_gradients = value.is_floating_point() or value.is_complex()
        if not has_gradients or value.is_meta or not is_plain(value) or value.storage_offset():
            return value
        made = meta_like(value)
        key, storage = storage_key(made), made.untyped_storage()
        self._values[key] = weakref.ref(storage, partial(self._forget, key)), value.untyped_storage()
        return made

    def of(self, tensor: Tensor) -> Tensor | None:
        """Return the values of a tensor on meta, if they are known; views share them."""
        found = self._values.get(storage_key(tensor))
        if found is None or not is_plain(tensor):
            return None
        with torch._C._DisableTorchDispatch():  # private: values are asked for where no op is being answered
            value = torch.empty(0, dtype=tensor.dtype, device="cpu")
            return value.set_(found[1], tensor.storage_offset(), tensor.size(), tensor.stride())

    def lose(self, tensors: Iterable[Tensor]) -> None:
        """Take note that something was written into tensors whose values nobody has."""
        for tensor in tensors:
            self._values.pop(storage_key(tensor), None)

    def _forget(self, key: int, storage: weakref.ref[torch.UntypedStorage]) -> None:
        if key in self._values and self._values[key][0] is storage:
            del self._values[key]
