"""Tensor subclasses: the work that the code of their own does is seen, wherever they come from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right, causal_upper_left
from torch.utils._pytree import tree_map

from pytest_flops import TraceError, trace
from pytest_flops.counting.live_memory import stored_bytes

aten = torch.ops.aten
X = torch.randn(3, 4)
WHOLE = torch.ones(6, 4, dtype=torch.int8)
PRODUCT = 3 * 6 * 7  # 3x4 by 4x6
FORWARD = {"meta": {}, "real": {"execute": "real"}}


class Dequantised(Tensor):
    """A weight that multiplies itself `n` times whenever it is used; it names no inner tensors."""

    @staticmethod
    def __new__(cls, q: Tensor, n: int) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, q.shape, dtype=torch.float32, device=q.device)

    def __init__(self, q: Tensor, n: int) -> None:
        self.q, self.n = q, n

    def plain(self) -> Tensor:
        out = self.q.float()
        for _ in range(self.n):
            out = out * 2
        return out

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func in (aten.detach.default, aten.clone.default):
            return cls(args[0].q, args[0].n)
        args, kwargs = tree_map(
            lambda value: value.plain() if isinstance(value, cls) else value, (args, kwargs or {})
        )
        return func(*args, **kwargs)


class Scaled(Tensor):
    """As in torchao: whole numbers and a scale per row, `F.linear` of its own, and few ops besides."""

    @staticmethod
    def __new__(cls, q: Tensor, scale: Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, q.shape, dtype=scale.dtype, device=q.device)

    def __init__(self, q: Tensor, scale: Tensor) -> None:
        self.q, self.scale = q, scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["q", "scale"], None

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is F.linear:
            x, weight, bias = args
            y = (x @ weight.q.to(x.dtype).t()) * weight.scale
            return y if bias is None else y + bias
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func in (aten.detach.default, aten._to_copy.default):
            return cls(*(func(part, **(kwargs or {})) for part in (args[0].q, args[0].scale)))
        raise NotImplementedError(f"{func}")


class Halved(Tensor):
    """Knows the parts of a linear layer, and no composite: it has never met one outside of inference mode."""

    @staticmethod
    def __new__(cls, q: Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, q.shape, dtype=torch.float32, device=q.device)

    def __init__(self, q: Tensor) -> None:
        self.q = q

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func in (aten.detach.default, aten.t.default):
            return cls(func(args[0].q))
        if func in (aten.mm.default, aten.addmm.default):
            return func(*(value.q.float() * 0.5 if isinstance(value, cls) else value for value in args))
        raise NotImplementedError(f"{func}")


class Layer(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, None)


def scaled() -> Tensor:
    return Scaled(WHOLE, torch.ones(6))


@pytest.mark.parametrize("way", FORWARD)
@pytest.mark.parametrize(
    ("make", "flops"),
    [
        (lambda: Dequantised(WHOLE, 1), PRODUCT + 24),
        (lambda: Dequantised(WHOLE, 5), PRODUCT + 5 * 24),
        (scaled, PRODUCT + 18),
        (lambda: Halved(WHOLE), PRODUCT + 24),
    ],
)
def test_the_work_of_a_weight(make: Callable[[], Tensor], flops: int, way: str) -> None:
    report = trace(Layer(make()), X, **FORWARD[way])  # type: ignore[arg-type]
    assert (report.executed, report.flops, report.macs, report.unsupported) == (way, flops, 3 * 6 * 4, {})


@pytest.mark.parametrize("make", [lambda: Dequantised(WHOLE, 2), scaled, lambda: Halved(WHOLE)])
def test_no_arithmetic_is_done_on_shapes(make: Callable[[], Tensor]) -> None:
    seen: list[Tensor] = []
    trace(lambda x, w: seen.append(F.linear(x, w, None)), (X, make()))
    assert seen[0].is_meta


class Buffered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", Dequantised(WHOLE, 2))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.table.mT


class Adapted(nn.Module):
    """A frozen quantised layer, and two small ones that are trained beside it."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.base = Layer(weight)
        self.down, self.up = nn.Linear(4, 2, bias=False), nn.Linear(2, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def test_it_does_not_matter_where_it_comes_from() -> None:
    twice = Dequantised(WHOLE, 2)
    for model, args in [
        (Layer(twice), X),
        (Buffered(), X),
        (lambda x, w: x @ w.mT, (X, twice)),
        (lambda x, ws: x @ ws["w"].mT, (X, {"w": twice})),
        (lambda x: x @ Dequantised(WHOLE, 2).mT, X),
        (lambda x: x @ twice.mT, X),
    ]:
        for options in FORWARD.values():
            assert trace(model, args, **options).flops == PRODUCT + 2 * 24  # type: ignore[arg-type]


@pytest.mark.parametrize(("make", "dequantising"), [(scaled, 18), (lambda: Halved(WHOLE), 24)])
def test_training_beside_a_quantised_weight(make: Callable[[], Tensor], dequantising: int) -> None:
    down, up, add = 3 * 2 * 7, 3 * 6 * 3, 18
    gradients = 2 * 6 * 5 + 3 * 2 * 11 + 4 * 2 * 5  # of `up` (k = 3), of what comes in (k = 6), of `down`
    report = trace(Adapted(make()), X, train=True, backward=True)
    assert (report.executed, report.unsupported) == ("meta", {})
    assert report.flops == PRODUCT + dequantising + down + up + add + gradients


def test_memory_is_that_of_what_is_stored() -> None:
    assert stored_bytes(scaled()) == 24 + 6 * 4
    assert trace(Layer(scaled()), X).parameter_memory == 24 + 6 * 4


def test_a_model_on_meta_counts_the_same() -> None:
    assert trace(Layer(scaled()).to("meta"), X).flops == PRODUCT + 18


class Doubled(Tensor):
    """Has a `__torch_function__` alone: an addition doubles what comes out of it."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*args, **(kwargs or {}))
            return (out * 2).as_subclass(cls) if func in (Tensor.add, Tensor.__add__) else out


class Named(Tensor):
    """Has neither, but attributes."""

    tags: dict[str, int]


@pytest.mark.parametrize("way", FORWARD)
def test_a_subclass_that_only_sees_functions(way: str) -> None:
    for model, x in [
        (lambda x: x.add(1), X.as_subclass(Doubled)),
        (lambda x: x.as_subclass(Doubled).add(1), X),
        (lambda x: Doubled(x).add(1), X),
    ]:
        report = trace(model, x, **FORWARD[way])  # type: ignore[arg-type]
        assert (report.executed, report.flops) == (way, 2 * 12)


def test_an_input_keeps_its_class_and_attributes() -> None:
    x = X.as_subclass(Named)
    x.tags = {"times": 3}

    def forward(x: Any) -> Tensor:
        for _ in range(x.tags["times"]):
            x = x * 2
        return x

    report = trace(forward, x)
    assert (report.executed, report.flops) == ("meta", 3 * 12)


# Constructors that PyTorch refuses under a mode -------------------------------------------------------------

SCORES = 2 * 5 * 7  # two heads, five queries, seven keys of 8
ATTENTION = SCORES * 15 + SCORES + SCORES + (3 * SCORES - 10) + 2 * 5 * 8 * 13  # QK, scale, mask, softmax, AV


@pytest.mark.parametrize("way", FORWARD)
@pytest.mark.parametrize("bias", [causal_lower_right, causal_upper_left])
def test_a_causal_bias(bias: Callable[[int, int], Tensor], way: str) -> None:
    q, k = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 7, 8)
    made, options = bias(5, 7), FORWARD[way]
    for model, args in [
        (lambda q, k: F.scaled_dot_product_attention(q, k, k, bias(5, 7)), (q, k)),
        (lambda q, k: F.scaled_dot_product_attention(q, k, k, made), (q, k)),
        (lambda q, k, b: F.scaled_dot_product_attention(q, k, k, b), (q, k, made)),
    ]:
        report = trace(model, args, **options)  # type: ignore[arg-type]
        assert (report.executed, report.flops) == (way, ATTENTION)
    assert "__new__" not in vars(type(made))  # it is as it was


def test_classes_of_one_s_own_made_in_forward() -> None:
    class Other(Tensor):
        pass

    def forward(x: Tensor) -> Tensor:
        for kind in (Named, Other, Named):
            x = kind(x) * kind([1.0, 2.0, 3.0, 4.0])
        return x

    report = trace(forward, X)
    assert (report.executed, report.flops) == ("meta", 3 * 12)


def test_a_constructor_with_code_of_its_own_gets_a_sentence() -> None:
    class Odd(Tensor):
        def __new__(cls, x: Tensor, extra: int) -> Any:
            return super().__new__(cls, x)

    with pytest.raises(TraceError) as info:
        trace(lambda x: Odd(x, 1) * 2, X)
    assert str(info.value).startswith(
        "<lambda> makes a tensor of its own class in a way that PyTorch refuses while a count runs: let the "
        "class use torch.Tensor._make_subclass in its __new__ (in its own forward: Creating a new Tensor "
        "subclass Odd"
    )
