"""A counter that asks the formulas alone: no memo, no meta tensors, no tracer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_flops.formulas import formula_for
from pytest_flops.metrics import Cost


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: the whole of a sampled table; `pytest -m slow` runs it")


class Tally(TorchDispatchMode):
    """Adds up the cost of every ATen op by its formula, or over what it decomposes to.

    Under `torch.inference_mode` composite ops arrive whole; under `no_grad` only their parts do.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # saves the import of torch._dynamo
        return False

    def __init__(self) -> None:
        super().__init__()
        self.cost = Cost(0)
        self.by_op: dict[torch._ops.OpOverload, int] = {}
        self.unsupported: Counter[str] = Counter()
        self.decomposed: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = formula_for(func)
        if formula is not None:
            out = func(*args, **kwargs)
            cost = formula(*args, **{**kwargs, "out": out})
            if cost is not NotImplemented:
                self._add(func, cost)
                return out
        with self:
            out = func.decompose(*args, **kwargs)
        if out is not NotImplemented:
            self.decomposed.add(str(func))
            return out
        self.unsupported[str(func)] += 1
        return func(*args, **kwargs)

    def _add(self, func: Any, cost: Cost | int) -> None:
        flops, macs = cost.arithmetic[:2] if isinstance(cost, Cost) else (cost, 0)
        assert type(flops) is int, f"{func} counted {flops!r}"
        assert type(macs) is int, f"{func} counted {macs!r} MACs"
        assert flops >= macs >= 0, f"{func} counted {flops} FLOPs, {macs} MACs"
        self.cost += Cost(flops, macs)
        self.by_op[func] = self.by_op.get(func, 0) + flops


@pytest.fixture
def count() -> Callable[..., Cost]:
    """Return what a call costs, the same for composite ops and for their parts."""

    def count(run: Callable[[], Any], *, parts: bool = True) -> Cost:
        with torch.inference_mode(), Tally() as whole:
            run()
        assert not whole.unsupported
        if parts:
            with torch.no_grad(), Tally() as taken_apart:
                run()
            assert not taken_apart.unsupported
            assert taken_apart.cost == whole.cost
        return whole.cost

    return count
