"""What is remembered of ops: no more than so many bytes of it, whatever the ops are given."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
import torch

from pytest_flops import trace
from pytest_flops.counting import memo as memo_module
from pytest_flops.counting import shapes
from pytest_flops.counting.calls import Call
from pytest_flops.counting.memo import MEMO_BYTES, Memo, Outcome
from pytest_flops.counting.op_results import Several, View, contiguous
from pytest_flops.metrics import Cost

MIB = 1 << 20
aten = torch.ops.aten
Entry = tuple[tuple[object, ...], Outcome]


def empty(*size: int) -> torch.Tensor:
    return torch.empty(size, device="meta")


def joined(number: int, count: int = 4000) -> Entry:
    tensors = [empty(300 + number, 700)] * count
    return Call.of(aten.cat.default, (tensors,), {}).key, Outcome(contiguous((9,), torch.half), Cost(), None)


def written(number: int) -> Entry:
    call = Call.of(aten._foreach_add_.Scalar, ([empty(300 + number, 1, 2) for _ in range(1000)], 1.0), {})
    return call.key, Outcome(None, Cost(10**9), {"aten.some.op": 1000}, 0, call.written)


def taken_apart(number: int) -> Entry:
    views = (View(0, torch.Size([300 + number]), (1,), 300 * each) for each in range(1000))
    key = Call.of(aten.unbind.int, (empty(1000, 300 + number),), {}).key
    return key, Outcome(Several(list, tuple(views)), Cost(), None)


def split(number: int) -> Entry:
    sizes = [1000 + number + each for each in range(1000)]
    return Call.of(aten.split_with_sizes.default, (empty(9), sizes), {}).key, Outcome(None, Cost(), None)


def spelled(number: int) -> Entry:
    return Call.of(aten.einsum.default, (f"{number}" * 5000, []), {}).key, Outcome(None, Cost(), None)


def convolved(number: int) -> Entry:
    tensors = empty(2, 300 + number, 560, 560), empty(600, 300 + number, 3, 3), empty(600)
    key = Call.of(aten.conv2d.default, (*tensors, [2, 2], [1, 1], [1, 1], 1), {}).key
    cost = Cost(10**9 + number, 10**8 + number)
    return key, Outcome(contiguous((2, 600, 280, 280 + number), torch.float32), cost, None)


@pytest.fixture
def allocated() -> Iterator[Callable[[], int]]:
    """Return a function that tells how many bytes Python has allocated since."""
    gc.collect()
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("make", "count"),
    [(joined, 5), (written, 10), (taken_apart, 10), (split, 10), (spelled, 50), (convolved, 500)],
)
def test_the_memo_knows_how_much_memory_it_takes(make, count, allocated) -> None:
    memo = Memo()
    make(0)  # what a first call imports and caches
    before = allocated()
    for number in range(1, count + 1):
        memo.store(*make(number))
    assert len(memo.outcomes) == count
    assert 0.9 < memo.nbytes / (allocated() - before) < 2.5


def test_lists_of_thousands_of_tensors_do_not_fill_the_memory(monkeypatch, allocated) -> None:
    monkeypatch.setattr(memo_module, "MEMO_BYTES", 4 * MIB)
    memo, most = Memo(), 0
    before = allocated()
    for number in range(24):  # some 0.9 MB each
        memo.store(*joined(number))
        most = max(most, allocated() - before)
    assert most < 4 * MIB
    assert joined(23)[0] in memo.outcomes  # the last, and others beside it
    assert len(memo.outcomes) > 1


def test_an_outcome_that_fills_the_memo_alone_is_not_kept(monkeypatch) -> None:
    monkeypatch.setattr(memo_module, "MEMO_BYTES", MIB)
    memo = Memo()
    memo.store(*joined(1, 40_000))
    assert not memo.outcomes
    memo.store(*convolved(1))
    assert [*memo.outcomes] == [convolved(1)[0]]
    memo.clear()
    assert (memo.outcomes, memo.nbytes) == ({}, 0)


def test_a_memo_that_is_full_counts_the_same(monkeypatch) -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        for length in range(2, 12):
            x = torch.cat([x[:1]] * length)
        return x * 2.0

    flops = trace(forward, empty(3, 5)).flops
    monkeypatch.setattr(memo_module, "MEMO_BYTES", 3000)
    shapes.forget()
    assert [trace(forward, empty(3, 5)).flops for _ in range(2)] == [flops, flops] == [11 * 5] * 2
    assert shapes.memo.nbytes <= 3000


def test_a_hundred_models_fit_into_the_memo() -> None:
    shapes.forget()
    model = torch.nn.Sequential(*(torch.nn.Conv2d(3 + i, 4 + i, 3, padding=1) for i in range(50)))
    trace(model, empty(1, 3, 8, 8))
    assert len(shapes.memo.outcomes) >= 50
    assert 100 * shapes.memo.nbytes < MEMO_BYTES <= 64 * MIB
    shapes.forget()
