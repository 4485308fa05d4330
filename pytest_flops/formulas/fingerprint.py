"""What a user's formula says, in a few letters: another formula has others, another layout of it has not."""

from __future__ import annotations

import hashlib
import inspect
import io
import tokenize
from collections.abc import Iterator
from typing import Any

from pytest_flops.formulas.registry import Formula, users_formulas

_LAYOUT = frozenset(
    (
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENCODING,
        tokenize.ENDMARKER,
    )
)


def fingerprint_for(op: str) -> str | None:
    """Return the fingerprint of the formula that a user gave an op, "mylib.op.default"; None without one."""
    namespace, name, overload = op.split(".", 2)
    given = users_formulas()
    for each in (name, name.removesuffix("_")):  # in place it is the formula of the op without the underscore
        for qualified in (f"{namespace}::{each}.{overload}", f"{namespace}::{each}"):
            if qualified in given:
                return fingerprint(given[qualified])
    return None


def fingerprint(formula: Formula) -> str:
    """Return eight letters for the source of a formula without comments, or for its code without source.

    What a formula calls is not in it.
    """
    try:
        text = " ".join(_tokens(inspect.getsource(formula)))
    except (OSError, TypeError, SyntaxError, tokenize.TokenError):
        code: Any = getattr(formula, "__code__", None)
        text = repr((code.co_code, code.co_consts, code.co_names)) if code else type(formula).__qualname__
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _tokens(source: str) -> Iterator[str]:
    for token in tokenize.generate_tokens(io.StringIO(inspect.cleandoc(source)).readline):
        if token.type not in _LAYOUT:
            yield token.string
