"""Leaving a model and its process as they were found, also when the model raises or a signal ends the run.

A trace runs the user's code, which may assign attributes, register hooks, draw random numbers or change
defaults. What it writes *into* tensors is put back by `UndoLog`, the rest by `Untouched`. Either can be
told to any number of times: an exception from outside may come at any moment, putting back included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from itertools import chain
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from pytest_flops.counting.belongings import belongings_of
from pytest_flops.counting.caches import FreshCaches
from pytest_flops.counting.places import Slot, is_same, picker, put_back, put_items_back
from pytest_flops.counting.process import ProcessState, end_broken_contexts
from pytest_flops.counting.reach import CONTAINERS, Reached, slots_of

_stores_of = picker(name for name, value in vars(nn.Module()).items() if type(value) in CONTAINERS)
_tensors_of = picker(["_parameters", "_buffers"])


class Untouched:
    """Put back, at the end of a block, all that running modules in it may have changed around the tensors.

    Attributes (and the containers and plain objects reachable from them), hooks, train and eval flags, the
    storage, gradient and `requires_grad` of parameters and buffers, what the modules' code leads to
    elsewhere, and the state of the process. Inside the block every draw of a random number is the same each
    time, so that a layer dropped at random does not make two counts differ, and the caches of `functools`
    are empty.

    `also` is what may be changed besides what belongs to the modules; `set_up` is called at the start.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        also: Reached | None = None,
        set_up: Callable[[Untouched], object] | None = None,
    ) -> None:
        self.modules, found = belongings_of(modules, also)
        """The modules, and those that they hide from `nn.Module.modules`."""
        found.add(also or Reached())
        self.places = found.places
        """Where else tensors are that want a gradient."""
        self.process = ProcessState()
        """The state of the process, to be entered and left through."""
        self._attributes = [(module.__dict__, module.__dict__.copy()) for module in self.modules]
        own = chain.from_iterable(map(_stores_of, (values for _, values in self._attributes)))
        containers = [*own, *(held for held in found.stores if type(held) in CONTAINERS)]
        self._filled = [(held, held.copy()) for held in containers if held]
        self._empty = [held for held in containers if not held]
        self._slots = [(slot, slot.get()) for slot in [*found.places, *_slots_in(found.stores)]]
        self._tensors = [*map(_kept, found.tensors), *self._parameters_and_buffers()]
        self._generators = [_state_of(generator) for generator in found.generators]
        self._caches = FreshCaches(found.caches, found.computed)
        self._set_up = set_up
        self._is_done = False

    def _parameters_and_buffers(self) -> list[_Kept]:
        return [
            _kept(tensor)
            for _, values in self._attributes
            for store in _tensors_of(values)
            for tensor in store.values()
            if tensor is not None
        ]

    def __enter__(self) -> Untouched:
        try:
            self.process.start_afresh()
            self._caches.empty()
            if self._set_up is not None:
                self._set_up(self)
        except BaseException:
            self.restore()
            raise
        return self

    def __exit__(self, kind: object, error: object, traceback: TracebackType | None) -> None:
        try:
            end_broken_contexts(traceback)
            self.restore()
        finally:
            self.restore()

    def restore(self) -> None:
        """Put all back, if that is not done."""
        if self._is_done:
            return
        with ExitStack() as stack:  # each of them, even if one raises; the last one first
            stack.callback(self._restore_tensors)
            stack.callback(self._restore_places)
            stack.callback(self._restore_attributes)
            stack.callback(self._caches.restore)
            stack.callback(self.process.restore)
        self._is_done = True

    def _restore_attributes(self) -> None:
        for found, saved in self._attributes:
            put_items_back(found, saved)

    def _restore_places(self) -> None:
        for found, saved in self._filled:
            if not is_same(found, saved):
                put_back(found, saved)
        for found in self._empty if any(self._empty) else ():
            found.clear()
        for slot, value in self._slots:
            if slot.get() is not value:
                slot.put(value)

    def _restore_tensors(self) -> None:
        for write, state in self._generators:
            write(state)
        for tensor, data, address, grad, requires_grad in self._tensors:
            if tensor.shape != data.shape or (address is not None and tensor.data_ptr() != address):
                tensor.data = data
            if tensor.requires_grad != requires_grad:
                tensor.requires_grad_(requires_grad)
            if tensor.is_leaf and tensor.grad is not grad:
                tensor.grad = grad


_Kept = tuple[Tensor, Tensor, int | None, Tensor | None, bool]


def _kept(tensor: Tensor) -> _Kept:
    """Return a tensor, its data and where that is, its gradient and whether it wants one."""
    data = tensor.data  # an alias of its own: assigning to `parameter.data` leaves it at the old storage
    address = data.data_ptr() if data.layout is torch.strided else None
    return tensor, data, address, tensor.grad if tensor.is_leaf else None, tensor.requires_grad


def _slots_in(stores: Iterable[Any]) -> list[Slot]:
    """Return the places in objects that have no `__dict__`."""
    kinds: list[tuple[Any, type]] = [(held, type(held)) for held in stores]
    return [Slot(held, name) for held, kind in kinds if kind not in CONTAINERS for name in slots_of(kind)]


def _state_of(generator: Any) -> tuple[Callable[[Any], object], Any]:
    """Return how to set the state of a generator of random numbers, and the state that it has."""
    for source in (generator, getattr(generator, "bit_generator", None)):
        for read, write in (("get_state", "set_state"), ("getstate", "setstate")):
            if hasattr(source, read):
                return getattr(source, write), getattr(source, read)()
        if source is not None and hasattr(source, "state"):
            return partial(setattr, source, "state"), source.state
    return lambda state: None, None


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
            if (
                storage.nbytes() == contents.nbytes()
            ):  # else the run has let it go, and will not want it filled
                storage.copy_(contents)
        self._saved.clear()


def storage_address(tensor: Tensor) -> int:
    """Return the address of a tensor's data; 0 where it has none of its own (meta, empty, sparse)."""
    try:
        return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else 0
    except RuntimeError:  # wrapped by torch.func
        return 0
