"""Which module's code is running, told from the Python stack.

A module that is called says so itself (`recorder.recording`). One whose methods are called by themselves,
`self.head.forward(x)` or `self.vae.encode(x)`, does not: only the frame of the method shows it.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterable, Iterator, Mapping

from torch import nn

Place = tuple[str, str]
"""The path of a module and its class name."""

_CALL = nn.Module._call_impl.__code__  # private: what runs a module that is called, `forward` and its hooks


class Methods:
    """The methods of a model's modules, told by their code."""

    def __init__(self, modules: Mapping[str, nn.Module], end: types.CodeType) -> None:
        """Take modules by path; `end` is the code of a frame that is outside of the model."""
        self._places = {id(module): (path, type(module).__name__) for path, module in modules.items()}
        kinds: set[type] = {type(module) for module in modules.values()}
        self._code = {id(code) for kind in kinds for code in _methods_of(kind)}
        self._end = end

    def place(self, frame: types.FrameType | None, called: Place) -> Place:
        """Return the module whose method a frame is in, else `called`, the one that was called last."""
        while frame is not None and (code := frame.f_code) is not _CALL and code is not self._end:
            back = frame.f_back
            if id(code) in self._code:  # code objects are slow to hash
                if back is not None and back.f_code is _CALL:
                    break
                if (place := self._places.get(id(_first_argument(frame)))) is not None:
                    return place
            frame = back
        return called


@functools.lru_cache(maxsize=4096)
def _methods_of(kind: type) -> frozenset[types.CodeType]:
    """Return the code of what a class of modules defines, without what all modules have."""
    bases = [base for base in kind.__mro__ if base not in (nn.Module, object)]
    return frozenset(_code_of(value for base in bases for value in vars(base).values()))


def _code_of(values: Iterable[object]) -> Iterator[types.CodeType]:
    for value in values:
        function = value.fget if isinstance(value, property) else value
        code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
        # A function that asks for its `locals()` is left alone: `_first_argument` would empty them.
        if code is not None and code.co_argcount and "locals" not in code.co_names:
            yield code


def _first_argument(frame: types.FrameType) -> object:
    found = frame.f_locals
    first = found.get(frame.f_code.co_varnames[0])
    if isinstance(found, dict):  # before Python 3.13 a copy that the frame keeps: it would keep tensors alive
        found.clear()
    return first
