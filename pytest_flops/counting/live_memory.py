"""How much memory a run's tensors take: the storages that are alive, from birth to death.

A run on shapes holds its tensors exactly as long as a run on real ones does, for it is the same Python code
that holds them. So a storage is seen by a weak reference, views and in-place results need no care, and a
temporary is gone when Python lets go of it.

What is not seen: what a kernel takes for itself while it works (workspaces, copies in another layout), and
what an allocator adds by rounding.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pytest_flops.counting.subclasses import parts_of


class _Stored(weakref.ref[torch.UntypedStorage]):
    """A storage that is alive as long as this says so, its size in bytes and its place in the account."""

    __slots__ = ("key", "nbytes")
    key: int
    nbytes: int


class _Moment(NamedTuple):
    """When so many bytes were alive: after so many events, with so many of the own of an op of `owner`."""

    nbytes: int
    events: int
    workspace: int
    owner: object


class LiveMemory:
    """The account of one run: bytes alive `now`, and the most since `peak` was last set to `now`.

    `owner` is whom the storages made from now on belong to: something with a `module`. `is_seen` is False of
    an account that nobody reads: of what ops do there only the arithmetic counts.
    """

    is_seen = True

    def __init__(self) -> None:
        self.now = 0
        self.peak = 0
        self.owner: object = None
        self._alive: dict[int, _Stored] = {}
        self._log: list[tuple[int, int, object]] = []
        self._highest = _Moment(0, 0, 0, None)

    def born(self, tensor: Tensor, nbytes: int) -> None:
        """Take a tensor just made into the account, with a storage of its own of so many bytes."""
        self._enter(tensor.untyped_storage(), nbytes)

    def hold(self, nbytes: int) -> torch.UntypedStorage:
        """Take bytes that no tensor has into the account, for as long as somebody holds the result."""
        storage = torch.UntypedStorage(nbytes, device="meta")  # type: ignore[no-untyped-call]
        self._enter(storage, nbytes)
        return storage

    def _enter(self, storage: torch.UntypedStorage, nbytes: int) -> None:
        stored = _Stored(storage, self._died)
        stored.key = key = storage._cdata  # private: what tells a storage from all others alive, also on meta
        stored.nbytes = nbytes
        self._alive[key] = stored
        self._log.append((key, nbytes, self.owner))
        self.now += nbytes
        if self.now > self.peak:
            self.peak = self.now
            if self.now > self._highest.nbytes:
                self._highest = _Moment(self.now, len(self._log), 0, None)

    def made(self, results: Iterable[Tensor], arguments: Iterable[Tensor]) -> None:
        """Take the results of an op into the account, less those that share storage with an argument.

        Of a storage that is in it already the size may have changed.
        """
        known: set[int] | None = None
        for tensor in _stored_parts(results):
            if not (key := storage_key(tensor)):
                continue
            nbytes = tensor.untyped_storage().nbytes()
            if key in self._alive:
                self.now += nbytes - self._alive[key].nbytes
                self._alive[key].nbytes = nbytes
                self._log.append((key, nbytes, self.owner))
                self.reach(0)
                continue
            known = {*map(storage_key, _stored_parts(arguments))} if known is None else known
            if key not in known:
                self.born(tensor, nbytes)

    def reach(self, workspace: int) -> None:
        """Note that so many bytes more were alive for a moment."""
        self.peak = max(self.peak, nbytes := self.now + workspace)
        if nbytes > self._highest.nbytes:
            self._highest = _Moment(nbytes, len(self._log), workspace, self.owner)

    def owners(self) -> dict[str, int]:
        """Return the bytes alive when most were, by the path of the module that made them, most first."""
        alive: dict[int, tuple[int, object]] = {-1: (self._highest.workspace, self._highest.owner)}
        for key, nbytes, owner in self._log[: self._highest.events]:  # one that died has 0 bytes
            alive[key] = nbytes, owner
        found: dict[str, int] = {}
        for nbytes, owner in alive.values():
            module = getattr(owner, "module", "")
            found[module] = found.get(module, 0) + nbytes
        return {module: found[module] for module in sorted(found, key=lambda m: -found[m]) if found[module]}

    def _died(self, stored: weakref.ref[torch.UntypedStorage]) -> None:
        assert isinstance(stored, _Stored)
        self._log.append((stored.key, 0, None))
        self.now -= stored.nbytes
        del self._alive[stored.key]

    def close(self) -> None:
        """Stop counting: tensors that are freed after the run change nothing any more."""
        self._alive.clear()


# `Tensor.nbytes` is that of the dense equivalent, or raises: these are the parts that a sparse tensor stores.
_PARTS = {
    torch.sparse_coo: ("_indices", "_values"),  # private: the public ones refuse what is not coalesced
    **dict.fromkeys((torch.sparse_csr, torch.sparse_bsr), ("crow_indices", "col_indices", "values")),
    **dict.fromkeys((torch.sparse_csc, torch.sparse_bsc), ("ccol_indices", "row_indices", "values")),
}


_PLAIN = frozenset({Tensor, nn.Parameter})


def stored_bytes(tensor: Tensor) -> int:
    """Return the size of what a tensor stores in bytes: of a sparse one, its indices and values.

    A quantised weight stores other tensors than the one that it says it is.
    """
    is_plain = type(tensor) in _PLAIN
    if is_plain and tensor.layout is torch.strided:  # as most are
        return tensor.nbytes
    held = [tensor] if is_plain else [*parts_of(tensor)] or [tensor]
    return sum(part.nbytes for part in _stored_parts(held))


def _stored_parts(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield the tensors that hold the data: a dense one itself, the indices and values of a sparse one."""
    for tensor in tensors:
        if (parts := _PARTS.get(tensor.layout)) is None:
            yield tensor
        else:
            yield from [getattr(tensor, part)() for part in parts]


def keep_alive(storage: torch.UntypedStorage, holder: torch.UntypedStorage) -> None:
    """Keep a storage alive as long as another one is."""
    weakref.finalize(holder, _let_go, storage).atexit = False


def _let_go(storage: torch.UntypedStorage) -> None: ...


def storage_key(tensor: Tensor) -> int:
    """Return what tells a tensor's storage from all others alive, also on meta; 0 where it has none."""
    try:
        return int(tensor.untyped_storage()._cdata) if tensor.layout is torch.strided else 0
    except RuntimeError:  # wrapped by torch.func
        return 0
