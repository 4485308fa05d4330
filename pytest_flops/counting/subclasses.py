"""Tensor subclasses: seeing the work that the code of their own does.

A quantised weight is a tensor whose `__torch_dispatch__` takes an op apart: dequantise, multiply, scale. That
is the work, not the op that the model asked for. So an op that meets such a tensor is handed over to it, and
the mode that counts stays on.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload  # the type of `torch.ops.aten.add.Tensor`; torch publishes no alias

_STAND_INS = frozenset({"torch._subclasses.fake_tensor", "torch._subclasses.functional_tensor"})
"""Where PyTorch keeps its own tensors without data. They do no work of their own: an op's metadata is all."""


@functools.cache
def has_code(kind: type) -> bool:
    """Tell whether tensors of a class say themselves what an op does to them."""
    # Private: a class says with this that it wants no part in ops, as `Tensor` and `nn.Parameter` do.
    takes_part = kind.__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl  # type: ignore[attr-defined]
    return takes_part and kind.__module__ not in _STAND_INS


def hand_over(
    mode: AbstractContextManager[Any],
    functions: AbstractContextManager[Any],
    func: OpOverload,
    types: Iterable[Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Let the subclasses among an op's arguments answer it under a mode, and under one that sees functions.

    In inference mode a composite arrives whole, which a class may not know that has always met its parts.
    """
    with mode:
        try:
            with functions:
                for kind in types:
                    result = kind.__torch_dispatch__(func, types, args, kwargs)
                    if result is not NotImplemented:
                        return result
        except Exception:
            if (result := _taken_apart(func, args, kwargs)) is NotImplemented:
                raise
            return result
        return _taken_apart(func, args, kwargs)


def _taken_apart(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with torch._C.DisableTorchFunction():  # whose mode would call the op whole
        return func.decompose(*args, **kwargs)


def like_its_class(tensor: Tensor, plain: Tensor) -> Tensor:
    """Return a plain tensor as one of the class of another, with its attributes."""
    kind = type(tensor)
    if kind is type(plain) or kind.__module__ in _STAND_INS or issubclass(kind, nn.Parameter):
        return plain
    made = plain.as_subclass(kind)
    vars(made).update(vars(tensor))
    return made


def with_parts(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors, and after them what holds the data of those that are subclasses with code."""
    if not any(map(has_code, {type(tensor) for tensor in tensors})):
        return [*tensors]
    return [*tensors, *(part for tensor in tensors for part in parts_of(tensor))]


def parts_of(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the plain tensors that hold the data of a subclass with code: those it names, else attributes."""
    if not has_code(type(tensor)):
        return
    named = getattr(tensor, "__tensor_flatten__", None)
    held = [getattr(tensor, name) for name in named()[0]] if named else _held(vars(tensor))
    for part in held:
        if isinstance(part, Tensor):
            yield from [part, *parts_of(part)]


def _held(attributes: Mapping[str, Any]) -> Iterator[Any]:
    for value in attributes.values():
        yield from value if isinstance(value, (list, tuple)) else [value]


_REFUSED = re.compile(r"Creating a new Tensor subclass (\S+) but the raw Tensor object is already associated")


def classes_refused(failure: BaseException | None) -> list[type[Tensor]]:
    """Return the subclasses whose constructor PyTorch refuses to run under a mode, by what it said."""
    refused = _REFUSED.search(str(failure))
    if refused is None:
        return []
    named = [kind for kind in _subclasses(Tensor) if kind.__name__ == refused[1]]
    return [kind for kind in named if kind.__new__ is Tensor.__new__]


def _subclasses(kind: type[Tensor]) -> Iterator[type[Tensor]]:
    subclass: type[Tensor]
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def make_constructible(kinds: Sequence[type[Tensor]]) -> None:
    """Let the constructor that classes have from `Tensor` run without modes: it is no work."""

    def new(cls: type[Tensor], *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and isinstance(args[0], Tensor):
            return args[0].as_subclass(cls)
        with torch._C._DisableTorchDispatch():  # private, for want of a public way to run without modes
            return Tensor.__new__(cls, *args, **kwargs)

    for kind in kinds:
        kind.__new__ = new  # type: ignore[method-assign,assignment]


def take_constructors_back(kinds: Sequence[type[Tensor]]) -> None:
    """Give classes the constructor of `Tensor` again, as far as that is not done."""
    for kind in kinds:
        if "__new__" in vars(kind):
            del kind.__new__
