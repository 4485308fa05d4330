"""Einstein summation by one rule: operands are contracted two at a time, from left to right.

That is the order that PyTorch takes by itself; with opt_einsum installed it takes another one, and the count
would change with what is installed. An index is summed as soon as no later operand and no output needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import Tensor

from pytest_flops.formulas.contraction import dots
from pytest_flops.formulas.registry import real_parts, register_flop_formula
from pytest_flops.metrics import Cost

Sizes = dict[str, int]


@register_flop_formula("aten::einsum")
def einsum(equation: str, tensors: Sequence[Tensor], *_: Any, **__: Any) -> Cost:
    """Count the pairwise contractions from left to right, whatever `path` says."""
    operands, output = _parse(equation, tensors)
    parts = max(map(real_parts, tensors))
    cost = Cost(0)
    left = operands[0]
    for position, right in enumerate(operands[1:], start=2):
        needed = set(output).union(*operands[position:])
        step, left = _contract(left, right, needed, parts)
        cost += step
    summed = {index: size for index, size in left.items() if index in output}
    return cost + (prod(left.values()) - prod(summed.values())) * parts


def _contract(a: Sizes, b: Sizes, needed: set[str], parts: int) -> tuple[Cost, Sizes]:
    """Contract two operands over what both have (at more than length 1) and nothing needs.

    An index that only one of the two has, and nothing needs, is summed in that operand before.
    """
    cost = Cost(0)
    lone = {index for index in {*a, *b} - needed if min(a.get(index, 1), b.get(index, 1)) == 1}
    for operand in (a, b):
        kept = {index: size for index, size in operand.items() if index not in lone}
        cost += (prod(operand.values()) - prod(kept.values())) * parts
    a, b = ({i: size for i, size in operand.items() if i not in lone} for operand in (a, b))
    merged = {index: max(a.get(index, 1), b.get(index, 1)) for index in {**a, **b}}
    outer = {index: size for index, size in merged.items() if index in needed}
    shared = prod(size for index, size in merged.items() if index not in needed)
    if merged.keys() == outer.keys():  # nothing to sum: a product per element, no contraction
        return cost + prod(outer.values()) * (1 if parts == 1 else 6), outer
    return cost + dots(prod(outer.values()), shared, parts=parts), outer


def _parse(equation: str, tensors: Sequence[Tensor]) -> tuple[list[Sizes], str]:
    """Return the size of every index of each operand, and the output's indices.

    An ellipsis stands for indices of its own, named by digits from the right, as it broadcasts.
    """
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    hidden = [x.ndim - len(term.replace("...", "")) for term, x in zip(terms, tensors, strict=True)]
    terms = [term.replace("...", _digits(n)) for term, n in zip(terms, hidden, strict=True)]
    ellipsis = _digits(max(hidden) if "..." in inputs else 0)
    if not arrow:
        letters = "".join(terms)
        output = "..." + "".join(sorted(c for c in {*letters} if c.isalpha() and letters.count(c) == 1))
    return [_sizes(term, x) for term, x in zip(terms, tensors, strict=True)], output.replace("...", ellipsis)


def _sizes(term: str, x: Tensor) -> Sizes:
    return dict(zip(term, x.shape, strict=True))


def _digits(n: int) -> str:
    # Private-use characters: an ellipsis may stand for more indices than there are digits
    return "".join(chr(0xE000 + i) for i in reversed(range(n)))
