"""Counting composites by their formula where autograd takes them apart, before a dispatch mode sees them.

While a run lasts, PyTorch's dispatcher has a kernel of ours for these ops at the keys of autograd: it runs
the composite's own kernel, whose parts count for memory and have a backward pass as ever, and asks the
formula for the cost. Inside `torch.func`, and under forward-mode differentiation, parts do work that no
formula knows of: there a user's formula is not asked, the parts are counted, and the op is reported as
unsupported.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._C import DispatchKey  # what `has_kernel_for_dispatch_key` takes; torch publishes no other name
from torch._ops import OpOverload  # the type of `torch.ops.aten.add.Tensor`; torch publishes no alias
from torch.autograd import forward_ad

from pytest_flops.counting.calls import Call
from pytest_flops.counting.costs import by_formula
from pytest_flops.counting.recorder import Recorder
from pytest_flops.counting.tally import Tally
from pytest_flops.errors import FormulaError
from pytest_flops.formulas.composites import different_in_parts, with_any_formula, with_users_formula

_BACKENDS = ["CPU", "CUDA", "Meta", *(["MPS"] if torch.backends.mps.is_built() else [])]
_TRANSFORMS = "FuncTorchDynamicLayerFrontMode"
"""The dispatch key by which `torch.func` takes over, whatever the transform is."""


@contextmanager
def counting_composites_whole(recorder: Recorder, *, under_autograd: bool) -> Iterator[None]:
    """Let formulas of composites be honoured until the end of the block.

    Those are the formulas of users; with `under_autograd` also those of ours that say other than the parts.
    Where a user gave one, all composites with a formula are whole, so that the outermost is the one to count,
    as in inference mode.
    """
    given = with_users_formula()
    whole = dict.fromkeys(different_in_parts()) if under_autograd else {}
    whole |= dict.fromkeys((*given, *with_any_formula())) if given else {}
    with ExitStack() as stack:
        for func in whole:
            composite = _Composite(func, func in given, recorder, threading.get_ident())
            stack.enter_context(_kernels(func, _keys(func, refuse=func in given), composite.run))
            if func in given:
                stack.enter_context(_kernels(func, [_TRANSFORMS], composite.report))
        yield


def _keys(func: OpOverload, *, refuse: bool) -> list[str]:
    """Return the keys of autograd at which a composite is taken apart: where no backend has it whole.

    One at which somebody gave it a kernel is left to them, or refused.
    """
    keys = [f"Autograd{backend}" for backend in _BACKENDS if not _has_kernel(func, backend)]
    if refuse and (taken := [key for key in keys if _has_kernel(func, key)]):
        raise FormulaError(
            f"The formula of {func} cannot be honoured: somebody else gave the op a kernel at {taken[0]}."
        )
    return [key for key in keys if not _has_kernel(func, key)]


def _has_kernel(func: OpOverload, key: str) -> bool:
    # Private: the method of the op itself says yes where there is a decomposition in Python, for other uses
    name: str = func.name()  # type: ignore[no-untyped-call]
    return torch._C._dispatch_has_kernel_for_dispatch_key(name, key)


@contextmanager
def _kernels(func: OpOverload, keys: list[str], kernel: Callable[..., Any]) -> Iterator[None]:
    # Private, and what PyTorch's own tests use: the public `Library` has no public way to end
    with torch.library._scoped_library(func.namespace, "IMPL") as library:
        _in_place.append(library)
        for key in keys:
            library.impl(func, kernel, key)
        yield
    if library in _in_place:
        _in_place.remove(library)


_in_place: list[torch.library.Library] = []


def kernels_in_place() -> int:
    """Return how many libraries of kernels there are in the dispatcher."""
    return len(_in_place)


def take_kernels_away(before: int) -> None:
    """Take away those that are more than there were before, because something broke their end off."""
    while len(_in_place) > before:
        _in_place[-1]._destroy()  # type: ignore[no-untyped-call]
        _in_place.pop()


@dataclass(frozen=True)
class _Composite:
    """What stands in for a composite during a run: on the run's own thread its calls are counted."""

    func: OpOverload
    is_users: bool
    recorder: Recorder
    thread: int

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the op, and count it by its formula instead of its parts."""
        if threading.get_ident() != self.thread:
            return self._take_apart(args, kwargs)
        if forward_ad._current_level >= 0:  # private: nothing public tells whether tangents are computed
            return self.report(*args, **kwargs)
        meter = self.recorder.meter
        outer, tally = meter.tally, meter.tally or self.recorder.open_loose(self.func)
        meter.tally = parts = Tally()
        try:
            result = self._take_apart(args, kwargs)
        finally:
            meter.tally = outer
        tally.add(by_formula(Call.of(self.func, args, kwargs), result) or parts)
        return result

    def report(self, *args: Any, **kwargs: Any) -> Any:
        """Run the op, count its parts, and report that the formula of a user was not asked."""
        if self.is_users and threading.get_ident() == self.thread:
            tally = self.recorder.meter.tally or self.recorder.open_loose(self.func)
            tally.note_unsupported({f"{self.func} in a transform": 1})
        return self._take_apart(args, kwargs)

    def _take_apart(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Private: `decompose` may take another way, which PyTorch's compiler has in Python
        return self.func._op_dk(DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
