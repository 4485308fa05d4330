"""The names that a piece of code uses: of globals, of attributes, of what it imports."""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Callable
from typing import NamedTuple


class Names(NamedTuple):
    """The names in a piece of code and in the functions that it defines."""

    loaded: frozenset[str]
    """Globals that it may load."""
    used: frozenset[str]
    """All names, and texts that may be one: `getattr(self, "head")`."""
    imported: frozenset[str]
    """Modules that it imports."""


def names_in(code: types.CodeType, *, exact: bool) -> Names:
    """Return the names in code. To tell globals from attributes, as `exact` does, takes much longer."""
    return (_exact_names if exact else _rough_names)(code)


@functools.lru_cache(maxsize=8192)
def _rough_names(code: types.CodeType) -> Names:
    texts = [const for const in code.co_consts if isinstance(const, str) and const.isidentifier()]
    loaded = frozenset(code.co_names)
    own = Names(loaded, loaded.union(texts), _operands(code, "IMPORT_NAME"))
    return _with_inner(code, own, _rough_names)


@functools.lru_cache(maxsize=8192)
def _exact_names(code: types.CodeType) -> Names:
    loaded = _operands(code, "LOAD_GLOBAL", "LOAD_NAME")
    return _with_inner(code, _rough_names(code)._replace(loaded=loaded), _exact_names)


def _operands(code: types.CodeType, *operations: str) -> frozenset[str]:
    """Return the names that the instructions of these kinds take."""
    if not {dis.opmap[name] for name in operations}.intersection(code.co_code[::2]):
        return frozenset()  # the quick answer: to decode the instructions is slow
    return frozenset(i.argval for i in dis.get_instructions(code) if i.opname in operations)


def _with_inner(code: types.CodeType, own: Names, names: Callable[[types.CodeType], Names]) -> Names:
    inner = [names(const) for const in code.co_consts if isinstance(const, types.CodeType)]
    return Names(*(part.union(*(found[i] for found in inner)) for i, part in enumerate(own)))
