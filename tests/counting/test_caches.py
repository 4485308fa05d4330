"""What a cache of `functools` holds does not change a count, and what is in it is there afterwards."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_flops import trace
from tests.counting import cached_helpers as helpers
from tests.counting.cached_helpers import Tables, closed_table, through_another
from tests.counting.cached_helpers import table as imported

X = torch.randn(3, 8)
LINEAR, TABLE, PRODUCT = 3 * 8 * 16, 2 * 8, 3 * 8
FLOPS = LINEAR + TABLE + PRODUCT


@functools.lru_cache(maxsize=1)
def local(n: int) -> Tensor:
    return torch.arange(n).float().mul(2.0).add(1.0)


class Scaled(nn.Module):
    """A layer whose result is scaled by a table; subclasses say where that comes from."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x) * self.scale(8)

    def scale(self, n: int) -> Tensor:
        raise NotImplementedError


class Method(Scaled):
    @functools.lru_cache  # noqa: B019
    def scale(self, n: int) -> Tensor:
        return torch.arange(n).float().mul(2.0).add(1.0)


class Inherited(Method): ...


class MethodWithoutTorch(Scaled):
    @functools.cache  # noqa: B019
    def scale(self, n: int) -> Tensor:
        return self.lin.bias.detach() * 2 + 1


class Static(Scaled):
    scale = staticmethod(functools.cache(lambda n: torch.arange(n).float().mul(2.0).add(1.0)))


class Partial(Scaled):
    def __init__(self) -> None:
        super().__init__()
        self.scale = functools.partial(local)


class OfInstance(Scaled):
    def __init__(self) -> None:
        super().__init__()
        self.scale = functools.lru_cache(self.compute)

    def compute(self, n: int) -> Tensor:
        return torch.arange(n).float().mul(2.0).add(1.0)


class Property(Scaled):
    table = property(functools.lru_cache(lambda self: torch.arange(8).float().mul(2.0).add(1.0)))

    def scale(self, n: int) -> Tensor:
        return self.table


class CachedProperty(Scaled):
    @functools.cached_property
    def table(self) -> Tensor:
        return torch.arange(8).float().mul(2.0).add(1.0)

    def scale(self, n: int) -> Tensor:
        return self.table


class Decorated(Scaled):
    @torch.no_grad()
    @helpers.cached_by_hand
    def scale(self, n: int) -> Tensor:
        return torch.arange(n).float().mul(2.0).add(1.0)


class WholeForward(Scaled):
    @functools.lru_cache  # noqa: B019
    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x) * imported(8)


class Dispatched(Scaled):
    @functools.singledispatchmethod
    def scale(self, n: int) -> Tensor:
        return local(n)


class Meta(type):
    @functools.cache  # noqa: B019
    def table(cls) -> Tensor:
        return torch.arange(8).float().mul(2.0).add(1.0)


class OfMetaclass(Scaled, metaclass=Meta):
    def scale(self, n: int) -> Tensor:
        return type(self).table()


class Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, n: Tensor) -> Tensor:
        return n * local(8)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * local(8)


class OfFunction(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return Function.apply(self.lin(x))


class Hooked(Scaled):
    def __init__(self) -> None:
        super().__init__()
        self.lin.register_forward_hook(lambda module, args, output: output * local(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x)


class Holder:
    def __init__(self) -> None:
        self.tables = Tables()


class InObject(Scaled):
    def __init__(self) -> None:
        super().__init__()
        self.holder = Holder()

    def scale(self, n: int) -> Tensor:
        return self.holder.tables.computed


BY_NAME, IN_ORDER = {"table": local}, (None, local)
GIVEN: dict[str, Callable[[int], Tensor]] = {
    "a function of this module": lambda n: local(n),
    "an imported function": lambda n: imported(n),
    "a function of an imported module": lambda n: helpers.table(n),
    "a function that calls it": lambda n: through_another(n),
    "a closure": lambda n: closed_table(n),
    "a static method": lambda n: Tables.static(n),
    "a class method": lambda n: Tables.of_class(n),
    "a container": lambda n: BY_NAME["table"](n),
    "a tuple": lambda n: IN_ORDER[1](n),
    "an attribute by its name": lambda n: getattr(helpers, "table")(n),  # noqa: B009
}


def import_late(n: int) -> Tensor:
    from tests.counting.cached_helpers import table

    return table(n)


class Given(Scaled):
    def __init__(self, scale: Callable[[int], Tensor]) -> None:
        super().__init__()
        self.scale = scale


MODELS: dict[str, Callable[[], nn.Module]] = {
    **{
        kind.__name__: kind
        for kind in (
            *(Method, Inherited, MethodWithoutTorch, Static, Partial, OfInstance, Property, CachedProperty),
            *(Decorated, WholeForward, Dispatched, OfMetaclass, OfFunction, Hooked, InObject),
        )
    },
    **{name: functools.partial(Given, scale) for name, scale in GIVEN.items()},
    "an import inside": functools.partial(Given, import_late),
}


def forget() -> None:
    for cache in (local, imported, Tables.static):
        cache.cache_clear()


@pytest.mark.parametrize("execute", ["meta", "real"])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_count_does_not_depend_on_what_ran_before(make: Callable[[], nn.Module], execute: Any) -> None:
    forget()
    model = make()
    counts = [trace(model, X, execute=execute).flops for _ in range(2)]
    model(X)  # fills the caches as the user would
    counts += [trace(model, X, execute=execute).flops for _ in range(2)]
    assert counts == [FLOPS] * 4


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_the_users_own_training_goes_on_after_a_trace_on_real_tensors(make: Callable[[], nn.Module]) -> None:
    forget()
    model = make()
    trace(model, X, execute="real")
    trace(model, X)
    model(X).sum().backward()
    assert model.lin.weight.grad is not None


class OfInput(Scaled):
    def forward(self, x: Tensor, tables: Tables) -> Tensor:
        return self.lin(x) * tables.computed


def test_an_input_may_have_a_cache() -> None:
    model, tables = OfInput(), Tables()
    assert [trace(model, (X, tables)).flops for _ in range(2)] == [FLOPS] * 2
    assert vars(tables) == {}
    before = tables.computed
    assert trace(model, (X, tables), execute="real").flops == FLOPS
    assert tables.computed is before


def test_what_was_in_a_cache_is_there_afterwards() -> None:
    forget()
    model, before = Given(lambda n: local(n)), local(8)
    info = local.cache_info()
    trace(model, X)
    trace(model, X, execute="real")
    assert local.cache_info() == info
    assert local(8) is before


def test_what_a_property_has_computed_is_there_afterwards() -> None:
    model = CachedProperty()
    before = model.table
    trace(model, X)
    assert model.table is before
    fresh = CachedProperty()
    trace(fresh, X)
    assert "table" not in vars(fresh)


def test_within_one_run_a_cache_does_its_work() -> None:
    forget()
    assert trace(Given(lambda n: local(n) + local(n)), X).flops == FLOPS + 8
    assert trace(Given(lambda n: local(n) + local(n - 1).sum() + local(n)), X).flops == (
        FLOPS + (8 + 8) + 2 * 7 + 6 + 2 * 8  # it holds one entry: the second call for 8 computes again
    )


def test_a_function_is_counted_like_a_model() -> None:
    forget()
    layer = nn.Linear(8, 8)

    def run(x: Tensor) -> Tensor:
        return layer(x) * helpers.table(8)

    assert [trace(run, X).flops for _ in range(2)] == [FLOPS] * 2
    run(X)
    assert trace(run, X).flops == FLOPS


CALLS: list[str] = []


@functools.lru_cache
def say_once(text: str) -> None:
    CALLS.append(text)


def test_a_cache_of_other_things_is_left_alone() -> None:
    say_once("hello")
    for _ in range(2):
        trace(Given(lambda n: say_once("hello") or local(n)), X)
    assert CALLS == ["hello"]


@functools.lru_cache
def double(x: Any) -> Any:
    return operator.mul(x, 2)


def test_a_cache_that_nobody_would_take_for_one_of_tensors_keeps_none() -> None:
    double.cache_clear()
    model = Given(lambda n: double(local(n)))
    assert [trace(model, X, execute="real").flops for _ in range(2)] == [FLOPS + 8] * 2
    assert double.cache_info().currsize == 0
    model(X)
    assert double.cache_info().currsize == 1
    assert trace(model, X).flops == FLOPS + 8
    assert double.cache_info().currsize == 1


@functools.cache
def make_layer() -> nn.Module:
    return nn.Linear(8, 8)


def test_a_model_that_is_made_when_first_asked_for_is_not_made_again() -> None:
    layer = make_layer()
    report = trace(lambda x: make_layer()(x), X)
    assert (report.flops, report.params) == (LINEAR, 72)
    assert make_layer() is layer


def test_a_cache_that_comes_later_is_found() -> None:
    model = Given(lambda n: later(n))
    assert trace(model, X).flops == FLOPS
    cached = functools.cache(later)
    globals()["later"], plain = cached, later
    try:
        model(X)
        assert trace(model, X).flops == FLOPS
    finally:
        globals()["later"] = plain


def later(n: int) -> Tensor:
    return torch.arange(n).float().mul(2.0).add(1.0)


def test_a_model_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.DINOv3ViTConfig(**sizes, image_size=32, patch_size=16)
    model, image = transformers.DINOv3ViTModel(config).eval(), torch.randn(1, 3, 32, 32)
    counts = [trace(model, image).flops]
    model(image)
    counts += [trace(model, image).flops, trace(model, image, execute="real").flops]
    assert len(set(counts)) == 1
    model(image).last_hidden_state.sum().backward()
