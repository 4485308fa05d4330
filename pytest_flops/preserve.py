"""Leaving a model and its process as they were found, also when the model raises.

A trace runs the user's code, which may assign attributes, register hooks, draw random numbers or change
defaults. What it writes *into* tensors is put back by `shapes.UndoLog`; the rest is put back here.
"""

from __future__ import annotations

import collections
import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
import torch
from torch import Tensor, nn

_CONTAINERS = (dict, list, set, collections.OrderedDict, collections.defaultdict, collections.deque)


@contextmanager
def untouched(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put back, at the end of the block, all that running these modules may have changed around the tensors.

    Attributes (and the contents of containers kept as attributes), hooks, train and eval flags, the storage,
    gradient and `requires_grad` of parameters and buffers; the random states of torch, Python and NumPy; the
    default dtype and device; the fast path of attention.
    """
    attributes = [(module.__dict__, dict(module.__dict__)) for module in modules]
    containers = [
        (value, value.copy() if value else None)
        for _, values in attributes
        for value in values.values()
        if type(value) in _CONTAINERS
    ]
    tensors = [
        # `.data` is an alias with a life of its own: assigning to `parameter.data` leaves it at the old storage.
        (tensor, tensor.data, tensor.grad if tensor.is_leaf else None, tensor.requires_grad)
        for _, values in attributes
        for store in ("_parameters", "_buffers")
        for tensor in values[store].values()
        if tensor is not None
    ]
    with ExitStack() as stack:
        stack.callback(_restore_tensors, tensors)
        stack.callback(_restore_containers, containers)
        stack.callback(_restore_attributes, attributes)
        _preserve_process(stack)
        yield


def _restore_attributes(attributes: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    for found, saved in attributes:
        found.clear()
        found.update(saved)


def _restore_containers(containers: list[tuple[Any, Any]]) -> None:
    for found, saved in containers:
        if found or saved:
            found.clear()
            (found.extend if isinstance(found, (list, collections.deque)) else found.update)(saved or ())


def _restore_tensors(tensors: list[tuple[Tensor, Tensor, Tensor | None, bool]]) -> None:
    for tensor, data, grad, requires_grad in tensors:
        if tensor.data_ptr() != data.data_ptr() or tensor.shape != data.shape:
            tensor.data = data
        if tensor.requires_grad != requires_grad:
            tensor.requires_grad_(requires_grad)
        if grad is not None and tensor.grad is not grad:
            tensor.grad = grad


def _preserve_process(stack: ExitStack) -> None:
    stack.enter_context(torch.random.fork_rng(devices=_cuda_devices()))
    stack.callback(random.setstate, random.getstate())
    if (numpy := sys.modules.get("numpy")) is not None:
        stack.callback(numpy.random.set_state, numpy.random.get_state())
    stack.callback(torch.set_default_dtype, torch.get_default_dtype())
    stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
    stack.callback(_restore_default_device, torch.get_default_device())


def _restore_default_device(device: torch.device) -> None:
    if torch.get_default_device() != device:
        torch.set_default_device(None if device.type == "cpu" else device)


def _cuda_devices() -> list[int]:
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
