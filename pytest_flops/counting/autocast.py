"""Autocast that a model asks for in its forward pass.

PyTorch casts what is on the device that autocast is for, and on shapes activations are on meta: weights would
be cast and activations not. So what PyTorch does to the arguments of an op is learned from a call with empty
tensors on the real device, and done to the op's own. Under autograd, which a cast has to go through, it is
done to the arguments of the functions that the model calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._ops import OpOverload  # the type of `torch.ops.aten.add.Tensor`; torch publishes no alias
from torch.utils._python_dispatch import TorchDispatchMode  # documented for extending; no public alias yet
from torch.utils._pytree import tree_flatten, tree_unflatten  # private, for want of a public one

from pytest_flops.counting.calls import Call
from pytest_flops.counting.devices import Devices

_TO = torch.ops.aten.to.dtype
_CASTS = frozenset({_TO, torch.ops.aten._to_copy.default})


class Mode(Protocol):
    """What answers the ops of a run: `ShapeMode`."""

    autocast: Autocast | None

    def answer(self, call: Call) -> Any:
        """Answer an op."""


class Autocast:
    """What autocast does in one run."""

    def __init__(self, devices: Devices, mode: Mode, *, real: bool) -> None:
        self._devices = devices
        self._mode = mode
        self._real = real
        self._dtype = torch.float32
        self._weights: dict[int, tuple[Tensor, Tensor]] = {}

    @cached_property
    def _device(self) -> torch.device:
        return self._devices.main

    @cached_property
    def _key(self) -> Any:
        return getattr(torch._C.DispatchKey, f"Autocast{self._device.type.upper()}", None)

    @property
    def is_on(self) -> bool:
        """Whether the model has switched autocast on for its device."""
        return torch.is_autocast_enabled(self._device.type) and self._key is not None

    def around(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that the model called so that its ops are cast here and not by PyTorch."""
        if not torch.is_grad_enabled():
            return partial(self._run, func)
        return func if self._real else partial(self._run_under_autograd, func)

    def _run(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self._taken_over():
            outer, self._mode.autocast = self._mode.autocast, self
            try:
                return func(*args, **kwargs)
            finally:
                self._mode.autocast = outer

    def _run_under_autograd(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self._taken_over():
            args, kwargs = self._cast_arguments(func, args, kwargs)
            return func(*args, **kwargs)

    @contextmanager
    def _taken_over(self) -> Iterator[None]:
        kind = self._device.type
        self._dtype = torch.get_autocast_dtype(kind)
        torch.set_autocast_enabled(kind, False)
        try:
            yield
        finally:
            torch.set_autocast_enabled(kind, True)

    def answer(self, call: Call) -> Any:
        """Answer an op in the open function: one that autocast knows with its arguments cast."""
        mode = self._mode
        if not self._knows(call.func):
            # It is not cast itself, but what it is made of may be: its outcome is another than without.
            return mode.answer(call._replace(key=(*call.key, self._key, self._dtype)))
        mode.autocast = None
        try:
            return mode.answer(self._cast(call))
        finally:
            mode.autocast = self

    def _knows(self, func: OpOverload) -> bool:
        try:
            return func not in _CASTS and func.has_kernel_for_dispatch_key(self._key)
        except RuntimeError:  # an overload that is TorchScript's alone
            return False

    # What it does to arguments ---------------------------------------------------------------------------

    def _cast(self, call: Call) -> Call:
        """Return the call that autocast makes of a call."""
        empty = call.on([*map(self._empty, call.tensors)], self._device)
        seen = self._seen(call.func, empty.args, empty.kwargs)
        if seen is None or len(seen.tensors) != len(call.tensors):
            return call
        pairs = zip(call.tensors, seen.tensors, strict=True)
        cast = seen.on([self._to(tensor, like.dtype) for tensor, like in pairs], self._device)
        return Call.of(cast.func, cast.args, cast.kwargs)

    def _cast_arguments(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of a function that is one op, cast as autocast casts those of the op."""
        packet = getattr(torch.ops.aten, func.__name__.strip("_"), None)
        overloads = [getattr(packet, name) for name in packet.overloads()] if packet is not None else []
        if not any(map(self._knows, overloads)):
            return args, kwargs
        leaves, structure = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        empty = [self._empty(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        seen = self._seen(func, *tree_unflatten(empty, structure))
        if seen is None or seen.func not in overloads or len(seen.tensors) != len(tensors):
            return args, kwargs
        dtypes = iter([tensor.dtype for tensor in seen.tensors])
        cast = [self._to(leaf, next(dtypes)) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = tree_unflatten(cast, structure)
        return args, kwargs

    def _empty(self, tensor: Tensor) -> Tensor:
        with torch._C._DisableTorchDispatch():  # private: no mode is to see it, and have it on meta
            return torch.empty(0, dtype=tensor.dtype, device=self._device)

    def _seen(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Call | None:
        """Return the first call that arrives below autocast; None where none does."""
        keeps = torch.is_autocast_cache_enabled()
        try:
            with torch.inference_mode(), torch._C.DisableTorchFunction(), _Below():  # type: ignore[no-untyped-call]
                torch.set_autocast_enabled(self._device.type, True)
                func(*args, **kwargs)
        except _ArrivedError as arrived:
            return arrived.call
        finally:
            torch.set_autocast_enabled(self._device.type, False)
            torch.set_autocast_cache_enabled(keeps)
        return None

    def _to(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a tensor as another dtype; the cast of a weight may be kept until the end of autocast."""
        if tensor.dtype is dtype:
            return tensor
        if id(tensor) in self._weights:
            return self._weights[id(tensor)][1]
        if torch.is_grad_enabled():
            cast = tensor.to(dtype)
        else:
            cast = self._mode.answer(Call.of(_TO, (tensor, dtype), {}))
        if self._is_kept(tensor, dtype):
            self._weights[id(tensor)] = tensor, cast
        return cast

    def _is_kept(self, tensor: Tensor, dtype: torch.dtype) -> bool:
        is_weight = tensor.requires_grad and tensor.is_leaf and not tensor._is_view()
        is_lower = dtype is self._dtype and tensor.dtype is torch.float32
        keeps = torch.is_autocast_cache_enabled() and not torch.is_inference_mode_enabled()
        return is_weight and is_lower and keeps

    def forget_weights(self) -> None:
        """Let go of the casts of weights."""
        self._weights.clear()


class _ArrivedError(Exception):
    """A call has come through autocast."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call


class _Below(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees what autocast makes of a call."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as in ShapeMode

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _CASTS:
            return func(*args, **(kwargs or {}))
        raise _ArrivedError(Call.of(func, args, kwargs or {}))


# The model's switch -----------------------------------------------------------------------------------------


class Casts(Protocol):
    """What a run shows whatever casts in PyTorch's place, while the model has autocast on: a recorder."""

    autocast: Autocast | None

    @property
    def is_here(self) -> bool:
        """Whether it records the thread that asks."""


def tell_of_autocast(recorder: Casts, autocast: Autocast) -> None:
    """Tell a recorder from now on when the model switches autocast on; `process.ProcessState` ends it.

    `torch.autocast` calls both functions by these names. To ask in every function whether it is on takes
    longer.
    """
    switch, clear = torch.set_autocast_enabled, torch.clear_autocast_cache

    def switch_and_tell(*args: Any) -> None:
        switch(*args)
        if recorder.is_here:  # each thread has a switch of its own
            recorder.autocast = autocast if autocast.is_on else None

    def clear_all() -> None:
        clear()
        autocast.forget_weights()

    torch.set_autocast_enabled = switch_and_tell  # type: ignore[assignment]
    torch.clear_autocast_cache = clear_all
