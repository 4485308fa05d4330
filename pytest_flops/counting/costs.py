"""What one op costs by its formula, and what it moves."""

from __future__ import annotations

from typing import Any

from torch._ops import OpOverload  # the type of `torch.ops.aten.add.Tensor`; torch publishes no alias

from pytest_flops.counting.calls import Call, traits_of
from pytest_flops.counting.memo import Outcome
from pytest_flops.counting.traffic import new_bytes, with_traffic
from pytest_flops.errors import FormulaError
from pytest_flops.formulas import formula_for
from pytest_flops.formulas.registry import is_others
from pytest_flops.metrics import Cost


def by_formula(call: Call, result: Any, new: int | None = None) -> Outcome | None:
    """Return what the formula of an op says of a call and its result; None where there is none, or no answer.

    `new` are the bytes that the result has anew, where that does not show in it.
    """
    formula = formula_for(call.func)
    if formula is None:
        return None
    outs = traits_of(call.func).outs
    kwargs = {name: value for name, value in call.kwargs.items() if name not in outs}
    cost = formula(*call.args, out=result, **kwargs)
    if cost is NotImplemented:
        return None
    moved = with_traffic(call, _checked(call.func, cost), new_bytes(call, result) if new is None else new)
    return Outcome(None, moved, None, by_others={str(call.func): 1} if is_others(call.func) else None)


def _checked(func: OpOverload, cost: Any) -> Cost:
    """Return the cost that a formula gave; raise FormulaError for what is none."""
    found = cost if isinstance(cost, Cost) else Cost(cost)
    if not all(isinstance(number, int) and number >= 0 for number in found):
        raise FormulaError(
            f"The formula of {func} returned {cost!r}: it must return an int, or a Cost of ints."
        )
    return found
