"""A formula given for an op that PyTorch composes of others is honoured under autograd too, or reported."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from pytest_flops import FormulaError, register_flop_formula, trace
from pytest_flops.counting.whole import counting_composites_whole
from pytest_flops.formulas import DECOMPOSE, registry
from pytest_flops.formulas.composites import different_in_parts
from pytest_flops.results.report import Report

GIVEN = 400_000


@pytest.fixture(autouse=True)
def _untouched_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_formulas", dict(registry._formulas))


@pytest.fixture
def doubled() -> Iterator[Any]:
    """A custom op that is composed of others: twice its argument, and once more."""
    with torch.library._scoped_library("flops_whole", "FRAGMENT") as library:
        library.define("doubled(Tensor x) -> Tensor")
        library.impl("doubled", lambda x: x * 2 + x, "CompositeImplicitAutograd")
        yield torch.ops.flops_whole.doubled


def give(op: Any, cost: Any = GIVEN) -> None:
    register_flop_formula(op, override=True)(lambda *_, **__: cost)


def forward(report: Report) -> int:
    return report.flops - report.backward_flops


def t(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


# By op: what calls it how many times
CALLS: dict[str, tuple[Callable[[], Any], tuple[Tensor, ...], int]] = {
    "aten::linear": (lambda: nn.Linear(5, 7), (t(3, 5),), 1),
    "aten::linear.default": (lambda: F.linear, (t(3, 5), t(7, 5), t(7)), 1),
    "aten::conv2d": (lambda: nn.Conv2d(3, 4, 2), (t(1, 3, 5, 6),), 1),
    "aten::conv2d.padding": (lambda: nn.Conv2d(3, 4, 3, padding="same"), (t(1, 3, 5, 6),), 1),
    "aten::conv_transpose1d": (lambda: nn.ConvTranspose1d(3, 4, 2), (t(1, 3, 5),), 1),
    "aten::layer_norm": (lambda: nn.LayerNorm(5), (t(3, 5),), 1),
    "aten::group_norm": (lambda: nn.GroupNorm(2, 6), (t(2, 6, 3),), 1),
    "aten::batch_norm": (lambda: nn.BatchNorm1d(6), (t(2, 6, 3),), 1),
    "aten::instance_norm": (lambda: nn.InstanceNorm1d(6), (t(2, 6, 3),), 1),
    "aten::rms_norm": (lambda: nn.RMSNorm(5), (t(3, 5),), 1),
    "aten::einsum": (lambda: lambda a, b: torch.einsum("ij,kj->ik", a, b), (t(2, 3), t(4, 3)), 1),
    "aten::matmul": (lambda: lambda a, b: a @ b @ b, (t(2, 3, 4), t(4, 4)), 2),
    "aten::softmax": (lambda: nn.Softmax(-1), (t(3, 5),), 1),
    "aten::dropout": (lambda: nn.Dropout(), (t(3, 5),), 1),
    "aten::dropout_": (lambda: lambda x: F.dropout(x * 1, inplace=True), (t(3, 5),), 1),
    "aten::max_pool2d": (lambda: nn.MaxPool2d(2), (t(1, 3, 4, 6),), 1),
    "aten::square": (lambda: torch.square, (t(3, 5),), 1),
    "aten::lstm": (lambda: nn.LSTM(3, 4), (t(5, 2, 3),), 1),
    "aten::scaled_dot_product_attention": (
        lambda: F.scaled_dot_product_attention,
        (t(2, 3, 4), t(2, 5, 4), t(2, 5, 4)),
        1,
    ),
}
EITHER = pytest.mark.parametrize("execute", ["meta", "real"])


@EITHER
@pytest.mark.parametrize("name", CALLS)
def test_a_formula_given_for_a_composite_counts_in_a_training_step(name: str, execute: Any) -> None:
    build, args, calls = CALLS[name]
    model, dropout = build(), name.endswith("dropout_") * 15  # `x * 1`
    parts = trace(model, args, train=True, backward=True, execute=execute)
    give(name)
    forward_only = trace(model, args, train=True, execute=execute)
    assert forward_only.flops - dropout == calls * GIVEN
    whole = trace(model, args, train=True, backward=True, execute=execute)
    assert forward(whole) == forward_only.flops
    assert whole.backward_flops == parts.backward_flops
    assert whole.backward_macs == parts.backward_macs
    assert whole.peak_memory == parts.peak_memory
    assert not whole.unsupported


@EITHER
def test_a_custom_composite(doubled: Any, execute: Any) -> None:
    give("flops_whole::doubled", 7)
    report = trace(lambda x: doubled(x), t(3, 5), backward=True, execute=execute)
    assert (forward(report), report.backward_flops) == (7, 15 + 15)  # the product's gradient, and their sum


def test_inside_a_leaf_every_call_counts() -> None:
    give("aten::linear")
    model, x = Heads(), torch.randn(2, 3, 8)
    attention = 2 * (3 * 3 * 7 + 3 * 3 + 3 * 8 + 3 * 4 * 5) * 2
    assert trace(model, x).flops == 2 * GIVEN + attention
    report = trace(model, x, backward=True)
    assert forward(report) == 2 * GIVEN + attention
    assert report.modules["attention"].flops == report.flops


@EITHER
def test_the_outermost_formula_counts(execute: Any) -> None:
    """A recurrent layer is linear maps to autograd, but has a formula of its own, as in inference mode."""
    model, x = nn.GRU(3, 4), torch.randn(5, 2, 3)
    before = trace(model, x).flops
    give("aten::linear")
    assert trace(model, x, execute=execute).flops == before
    assert forward(trace(model, x, backward=True, execute=execute)) == before


@EITHER
def test_a_formula_may_leave_the_op_to_its_parts(execute: Any) -> None:
    report = trace(nn.Linear(5, 7), t(3, 5), backward=True, execute=execute)
    give("aten::linear", DECOMPOSE)
    again = trace(nn.Linear(5, 7), t(3, 5), backward=True, execute=execute)
    assert (again.flops, again.macs) == (report.flops, report.macs)


def test_what_a_checkpoint_runs_again_counts_again() -> None:
    class Saved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(lambda x: self.linear(x).exp(), x, use_reentrant=False)

    x = torch.randn(3, 5)
    parts = trace(Saved(), x, backward=True)
    give("aten::linear")
    linear = 15 * (2 * 5 - 1) + 15
    assert trace(Saved(), x, backward=True).backward_flops == parts.backward_flops - linear + GIVEN


def test_a_call_in_a_backward_pass_counts() -> None:
    class Mapped(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
            ctx.save_for_backward(weight)
            return x * 1

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            return F.linear(grads[0], *ctx.saved_tensors), None

    give("aten::linear")
    report = trace(Mapped.apply, (t(3, 5), torch.randn(5, 5)), backward=True)
    assert (forward(report), report.backward_flops) == (15, GIVEN)


def test_inside_of_a_transform_the_parts_count_and_the_op_is_reported() -> None:
    layer = nn.Linear(5, 7)

    def gradient(x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: layer(x).sum())(x)

    before = trace(gradient, torch.randn(3, 5))
    give("aten::linear")
    report = trace(gradient, torch.randn(3, 5))
    assert report.unsupported == {"aten.linear.default in a transform": 1}
    assert (report.flops, report.macs) == (before.flops, before.macs)
    assert trace(torch.vmap(layer), torch.randn(3, 5)).unsupported == report.unsupported


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated"
)  # PyTorch's own, at the first dual number
def test_under_forward_differentiation_the_parts_count_and_the_op_is_reported() -> None:
    class Tangent(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            with forward_ad.dual_level():
                return super().forward(forward_ad.make_dual(x, torch.ones_like(x)))

    model = Tangent(5, 7)
    before = trace(model, t(3, 5), backward=True)
    assert before.macs - before.backward_macs >= 2 * 3 * 5 * 7
    give("aten::linear")
    report = trace(model, t(3, 5), backward=True)
    assert report.unsupported == {**before.unsupported, "aten.linear.default in a transform": 1}
    assert (report.flops, report.macs) == (before.flops, before.macs)


def test_autograd_switched_on_in_forward() -> None:
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        with torch.inference_mode(False):
            return F.linear(x.clone(), weight)

    give("aten::linear")
    assert trace(forward, (torch.randn(3, 5), torch.randn(7, 5)), execute="real").flops == GIVEN


@pytest.mark.parametrize("tracked", [True, False])
@EITHER
def test_ours_are_whole_where_their_parts_say_otherwise(tracked: bool, execute: Any) -> None:
    model = nn.InstanceNorm1d(6, affine=True, track_running_stats=tracked)
    x = t(2, 6, 4)
    for train in (True, False):
        report = trace(model, x, train=train, backward=True, execute=execute)
        assert forward(report) == trace(model, x, train=train, execute=execute).flops == 4 * 48


def first(result: Any) -> Tensor:
    return result if isinstance(result, Tensor) else result[0]


ATTENTION = [torch.ops.aten.scaled_dot_product_attention, torch.ops.aten._scaled_dot_product_attention_math]


@pytest.mark.parametrize("op", ATTENTION, ids=str)
def test_attention_by_its_operator(op: Any) -> None:
    args = (t(2, 3, 4), t(2, 5, 4), t(2, 5, 4))
    expected = trace(F.scaled_dot_product_attention, args, backward=True)
    report = trace(lambda *args: first(op(*args)), args, backward=True)
    assert (report.flops, report.macs) == (expected.flops, expected.macs)
    assert report.backward_flops == expected.backward_flops


def test_a_lookup_by_class_is_free_although_its_range_is_checked() -> None:
    def classes(x: Tensor, index: Tensor) -> Tensor:
        return x * F.one_hot(index, 5)

    args = (t(3, 5), torch.tensor([0, 2, 4]))
    for execute in ("meta", "real"):
        assert forward(trace(classes, args, backward=True, execute=execute)) == 15


# -- the dispatcher is as before -----------------------------------------------------------------------------


def autograd_kernels() -> set[str]:
    found = set()
    for func in (*different_in_parts(), torch.ops.aten.linear.default):
        table = torch._C._dispatch_dump(func.name())
        found |= {
            f"{func}: {line}" for line in table.splitlines() if "Autograd" in line or "FuncTorch" in line
        }
    return found


def test_the_dispatcher_is_put_back() -> None:
    before = autograd_kernels()
    give("aten::linear")
    trace(nn.Linear(5, 7), t(3, 5), backward=True)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        trace(nn.Linear(5, 7), t(3, 4), backward=True)
    assert autograd_kernels() == before


def test_other_threads_are_not_counted() -> None:
    class Busy(nn.Module):
        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            other = threading.Thread(target=F.linear, args=(torch.randn(2, 3), torch.randn(4, 3)))
            other.start()
            other.join()
            return F.linear(x, weight)

    give("aten::linear")
    assert forward(trace(Busy(), (t(3, 5), t(7, 5)), backward=True)) == GIVEN


def test_a_kernel_of_somebody_elses_is_named() -> None:
    give("aten::linear")
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("linear", lambda *args: torch.ops.aten.linear.default.decompose(*args), "AutogradCPU")
        with pytest.raises(FormulaError) as info:
            trace(nn.Linear(5, 7), t(3, 5))
    assert str(info.value) == (
        "The formula of aten.linear.default cannot be honoured: somebody else gave the op a kernel at "
        "AutogradCPU."
    )


def test_nothing_is_done_where_nothing_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.library, "_scoped_library", None)
    with counting_composites_whole(None, under_autograd=False):  # type: ignore[arg-type]  # nobody counts
        pass
