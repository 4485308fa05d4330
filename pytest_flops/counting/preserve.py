"""Leaving a model and its process as they were found, also when the model raises.

A trace runs the user's code, which may assign attributes, register hooks, draw random numbers or change
defaults. What it writes *into* tensors is put back by `UndoLog`, the rest by `untouched`.
"""

from __future__ import annotations

import collections
import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

_CONTAINERS = frozenset(
    {dict, list, set, collections.OrderedDict, collections.defaultdict, collections.deque}
)
_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size})
_STANDARD = frozenset(vars(nn.Module()))
_STORES = tuple(name for name, value in vars(nn.Module()).items() if type(value) in _CONTAINERS)
_NOT_THE_USERS = frozenset({"torch", "numpy", *sys.stdlib_module_names})
"""Packages whose objects are left alone: loggers, locks, functions, optimizers."""


@contextmanager
def untouched(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put back, at the end of the block, all that running these modules may have changed around the tensors.

    Attributes (and the containers and plain objects reachable from them), hooks, train and eval flags, the
    storage, gradient and `requires_grad` of parameters and buffers; the random states of torch, Python and
    NumPy; the default dtype and device; the fast path of attention. Inside the block every draw is the same
    each time, so that a layer dropped at random does not make two counts differ.
    """
    attributes = [(module.__dict__, dict(module.__dict__)) for module in modules]
    own = [values[name] for _, values in attributes for name in _STORES if name in values]
    users = [value for _, values in attributes for name, value in values.items() if name not in _STANDARD]
    containers = [*own, *_reachable(users)]
    filled = [(found, found.copy()) for found in containers if found]
    empty = [found for found in containers if not found]
    tensors = [
        # `.data` is an alias of its own: assigning to `parameter.data` leaves it at the old storage.
        (tensor, tensor.data, tensor.grad if tensor.is_leaf else None, tensor.requires_grad)
        for _, values in attributes
        for store in ("_parameters", "_buffers")
        for tensor in values[store].values()
        if tensor is not None
    ]
    with ExitStack() as stack:
        stack.callback(_restore_tensors, tensors)
        stack.callback(_restore_containers, filled, empty)
        stack.callback(_restore_attributes, attributes)
        _preserve_process(stack)
        yield


def _reachable(values: Iterable[Any]) -> Iterator[Any]:
    """Yield the containers that can be reached from values, and the `__dict__` of plain objects."""
    seen: set[int] = set()
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        kind = type(value)
        if kind in _ATOMS or isinstance(value, (Tensor, nn.Module)) or id(value) in seen:
            continue
        seen.add(id(value))
        if kind in _CONTAINERS:
            yield value
            waiting.extend(value.values() if isinstance(value, dict) else value)
        elif kind is tuple:
            waiting.extend(value)
        elif kind.__module__.partition(".")[0] not in _NOT_THE_USERS:
            own = getattr(value, "__dict__", None)
            if isinstance(own, dict):  # of a class it is a proxy
                yield own
                waiting.extend(own.values())


def _restore_attributes(attributes: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    for found, saved in attributes:
        found.clear()
        found.update(saved)


def _restore_containers(filled: list[tuple[Any, Any]], empty: list[Any]) -> None:
    for found, saved in filled:
        if not _is_same(found, saved):
            found.clear()
            (found.extend if isinstance(found, (list, collections.deque)) else found.update)(saved)
    for found in empty:
        if found:
            found.clear()


def _is_same(found: Any, saved: Any) -> bool:
    """Tell whether a container holds the very objects that it held, in their order."""
    if len(found) != len(saved):
        return False
    if isinstance(found, dict) and not all(map(is_, found.values(), saved.values())):
        return False
    return all(map(is_, found, saved))


def _restore_tensors(tensors: list[tuple[Tensor, Tensor, Tensor | None, bool]]) -> None:
    for tensor, data, grad, requires_grad in tensors:
        is_strided = tensor.layout is torch.strided
        if tensor.shape != data.shape or (is_strided and tensor.data_ptr() != data.data_ptr()):
            tensor.data = data
        if tensor.requires_grad != requires_grad:
            tensor.requires_grad_(requires_grad)
        if tensor.is_leaf and tensor.grad is not grad:
            tensor.grad = grad


def _preserve_process(stack: ExitStack) -> None:
    stack.enter_context(torch.random.fork_rng(devices=_cuda_devices()))
    torch.default_generator.manual_seed(0)
    if _cuda_devices():
        torch.cuda.manual_seed_all(0)
    stack.callback(random.setstate, random.getstate())
    random.seed(0)
    if (numpy := sys.modules.get("numpy")) is not None:
        stack.callback(numpy.random.set_state, numpy.random.get_state())
        numpy.random.seed(0)
    stack.callback(torch.set_default_dtype, torch.get_default_dtype())
    stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
    stack.callback(_restore_default_device, _default_device())


def _default_device() -> torch.device:
    try:
        return torch.get_default_device()
    except AttributeError:  # torch 2.5, once the default has been set back to None
        return torch.device("cpu")


def _restore_default_device(device: torch.device) -> None:
    if _default_device() != device:
        torch.set_default_device(None if device.type == "cpu" else device)


def _cuda_devices() -> list[int]:
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]


class UndoLog:
    """Puts back what a run writes into tensors that were there before it: buffers, inputs, attributes."""

    def __init__(self) -> None:
        self._own: set[int] = set()
        self._saved: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def remember(self, tensors: Iterable[Tensor]) -> None:
        """Save the contents of tensors that are about to be written, unless this run made them."""
        for tensor in tensors:
            address = storage_address(tensor)
            if address and address not in self._own and address not in self._saved:
                storage = tensor.untyped_storage()
                self._saved[address] = (storage, storage.clone())  # type: ignore[no-untyped-call]

    def created(self, results: Iterable[Tensor], arguments: Iterable[Tensor]) -> None:
        """Note the storages that an op made, other than its arguments': nobody needs their contents back."""
        made = {storage_address(tensor) for tensor in results}
        self._own |= made - {storage_address(tensor) for tensor in arguments}

    def restore(self) -> None:
        """Write the saved contents back; call it outside the mode."""
        for storage, contents in self._saved.values():
            storage.copy_(contents)
        self._saved.clear()


def storage_address(tensor: Tensor) -> int:
    """Return the address of a tensor's data; 0 where it has none of its own (meta, empty, sparse)."""
    try:
        return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else 0
    except RuntimeError:  # wrapped by torch.func
        return 0
