"""What is counted: the modules that a function reaches are treated like a model's."""

from __future__ import annotations

import contextvars
import dataclasses
import functools
import operator
import sys
import threading
import types
import weakref
from collections import OrderedDict, UserDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from pytest_flops import TraceError, trace

X = torch.randn(4, 8)
LINEAR, DROPOUT = 4 * 8 * 16, 2 * 4 * 8  # 8x8 on 4 rows; a mask times a scale, then the product
PARAMS = 8 * 8 + 8


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))


NET, IN_LIST, SPARE = net(), [net()], net()
VARIABLE: contextvars.ContextVar[nn.Module] = contextvars.ContextVar("VARIABLE", default=NET)


class Runner:
    of_class = net()

    def __init__(self) -> None:
        self.net, self.spare = net(), net()

    def __call__(self, x: Tensor) -> Tensor:
        return self.step(x)

    def step(self, x: Tensor) -> Tensor:
        return self.best(x)

    @property
    def best(self) -> nn.Module:
        return self.net

    @classmethod
    def shared(cls, x: Tensor) -> Tensor:
        return cls.of_class(x)

    @staticmethod
    def plain(x: Tensor) -> Tensor:
        return NET(x)


class Slotted:
    __slots__ = ("net",)

    def __init__(self) -> None:
        self.net = net()

    def __call__(self, x: Tensor) -> Tensor:
        return self.net(x)


class Delegating:
    def __init__(self) -> None:
        self._parts = {"net": net()}

    def __getattr__(self, name: str) -> Any:
        if name != "net":
            raise AttributeError(name)
        return self._parts[name]

    def __call__(self, x: Tensor) -> Tensor:
        return self.net(x)


class Applied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return NET(x)


class Called(type):
    def __call__(cls, x: Tensor) -> Tensor:
        return NET(x)


class OfMetaclass(metaclass=Called): ...


class Block(Slotted):
    def __enter__(self) -> nn.Module:
        return self.net

    def __exit__(self, *error: object) -> None: ...


def in_block(x: Tensor) -> Tensor:
    with BLOCK as net:
        return net(x)


BLOCK, LOCAL = Block(), threading.local()
LOCAL.net = NET


def helper(x: Tensor) -> Tensor:
    return NET(x)


def called(module: Callable[..., Any], x: Tensor) -> Any:
    return module(x)


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


def with_attribute(x: Tensor) -> Tensor:
    return with_attribute.net(x)  # type: ignore[attr-defined]


with_attribute.net = NET  # type: ignore[attr-defined]


def closing_over(value: Any, run: Callable[[Any, Tensor], Any]) -> Callable[[Tensor], Any]:
    return lambda x: run(value, x)


class Pair(NamedTuple):
    number: int
    net: nn.Module


@dataclasses.dataclass
class Batch:
    model: nn.Module
    x: Tensor


RUNNER = Runner()
# What is counted, its arguments, and what the path of the module is.
WAYS: dict[str, tuple[Callable[..., Any], Any, str]] = {
    "a global": (lambda x: NET(x), X, "NET"),
    "a global of a helper": (lambda x: helper(x), X, "NET"),
    "a list": (lambda x: IN_LIST[0](x), X, "IN_LIST.0"),
    "a closure": (closing_over(NET, lambda m, x: m(x)), X, "value"),
    "containers in a closure": (closing_over({"a": [NET]}, lambda m, x: m["a"][0](x)), X, "value.a.0"),
    "a default": (lambda x, m=NET: m(x), X, "m"),
    "a keyword default": (lambda x, *, m=NET: m(x), X, "m"),
    "an inner function": (lambda x: (lambda y: NET(y))(x), X, "NET"),
    "a decorated function": (decorated(helper), X, "NET"),
    "torch's decorator": (torch.no_grad()(helper), X, "NET"),
    "a partial": (functools.partial(called, NET), X, "module"),
    "a keyword of a partial": (functools.partial(called, x=X), NET, "module"),
    "a method": (RUNNER.step, X, "net"),
    "a callable object": (RUNNER, X, "net"),
    "an object in a global": (lambda x: RUNNER.step(x), X, "RUNNER.net"),
    "a class method": (Runner.shared, X, "of_class"),
    "a static method": (Runner.plain, X, "NET"),
    "a class": (lambda x: Runner.of_class(x), X, "Runner.of_class"),
    "slots": (Slotted(), X, "net"),
    "__getattr__": (Delegating(), X, "_parts.net"),
    "a namespace": (closing_over(types.SimpleNamespace(m=NET), lambda n, x: n.m(x)), X, "value.m"),
    "an attribute of a function": (with_attribute, X, "net"),
    "a weak reference": (closing_over(weakref.ref(NET), lambda r, x: r()(x)), X, "value"),
    "a context variable": (lambda x: VARIABLE.get()(x), X, "VARIABLE"),
    "a thread's own": (lambda x: LOCAL.net(x), X, "LOCAL.net"),
    "a dict of the library": (closing_over(UserDict(a=NET), lambda d, x: d["a"](x)), X, "value.data.a"),
    "a named tuple": (closing_over(Pair(1, NET), lambda p, x: p.net(x)), X, "value.net"),
    "a context manager": (in_block, X, "BLOCK.net"),
    "an autograd function": (lambda x: Applied.apply(x), X, "NET"),
    "a metaclass": (lambda x: OfMetaclass(x), X, "NET"),
    "globals()": (lambda x: globals()["NET"](x), X, "NET"),
    "a bound forward": (closing_over(NET.forward, called), X, "value"),
    "a compiled module": (closing_over(torch.compile(NET), called), X, "value"),
    "an argument": (called, (NET, X), "module"),
    "a list of arguments": (lambda nets, x: nets[0](x), ([NET], X), "nets.0"),
    "an object as argument": (lambda batch: batch.model(batch.x), Batch(NET, X), "batch.model"),
    "a C function": (operator.methodcaller("forward", X), NET, "args.0"),
}


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("was_training", [False, True], ids=["from eval", "from train"])
@pytest.mark.parametrize("way", WAYS)
def test_a_function_counts_like_the_module_that_it_runs(way: str, was_training: bool, train: bool) -> None:
    run, args, path = WAYS[way]
    for module in (NET, IN_LIST[0], Runner.of_class, RUNNER.net):
        module.train(was_training)
    report = trace(run, args, train=train)
    assert {path: total.flops for path, total in report.modules.items()} == {
        "": LINEAR + DROPOUT * train,
        path: LINEAR + DROPOUT * train,
        f"{path}.0": LINEAR,
        f"{path}.1": DROPOUT * train,
    }
    assert (report.params, report.parameter_memory) == (PARAMS, 4 * PARAMS)
    assert report.executed == "meta"
    assert all(module.training == was_training for module in (NET, IN_LIST[0], Runner.of_class, RUNNER.net))


def test_the_nodes_are_those_of_the_module() -> None:
    of_module, of_function = trace(NET, X, train=True), trace(lambda x: NET(x), X, train=True)
    assert [(node.name, node.op, node.module) for node in of_function.nodes] == [
        ("x", "placeholder", ""),
        ("net_0", "call_module", "NET.0"),
        ("net_1", "call_module", "NET.1"),
        ("output", "output", ""),
    ]
    assert [(node.cost, node.peak_memory) for node in of_function.nodes] == [
        (node.cost, node.peak_memory) for node in of_module.nodes
    ]


def test_several_modules_and_their_parts() -> None:
    body, head = net(), nn.Linear(8, 3)
    tied = body[0]
    report = trace(lambda x: head(tied(body(x))), X)
    assert {path: total.flops for path, total in report.modules.items()} == {
        "": 2 * LINEAR + 4 * 3 * 16,
        "body": 2 * LINEAR,
        "body.0": 2 * LINEAR,  # as a part of `body`: the outermost module has the say
        "body.1": 0,
        "head": 4 * 3 * 16,
    }
    assert report.params == PARAMS + 8 * 3 + 3


def test_what_code_does_not_name_is_not_reached() -> None:
    assert trace(RUNNER.step, X).params == PARAMS  # and not those of `RUNNER.spare`


def test_what_is_reached_by_no_name_is_all_that_may_be() -> None:
    name = "net"
    report = trace(lambda x: getattr(RUNNER, name)(x), X)
    assert set(report.modules) >= {"RUNNER.net", "RUNNER.spare"}


def test_an_attribute_is_no_global_of_its_name() -> None:
    holder = types.SimpleNamespace(NET=nn.Linear(8, 3))
    assert trace(lambda x: holder.NET(x), X).params == 8 * 3 + 3


def test_modules_with_one_name() -> None:
    first = closing_over(nn.Linear(8, 8), called)
    second = closing_over(nn.Linear(8, 3), called)
    report = trace(lambda x: second(first(x)), X)
    assert {path: total.flops for path, total in report.modules.items()} == {
        "": LINEAR + 4 * 3 * 16,
        "value": LINEAR,
        "value_1": 4 * 3 * 16,
    }


def test_a_loose_parameter_is_a_parameter() -> None:
    weight = nn.Parameter(torch.randn(8, 3))
    report = trace(lambda x: x @ weight, X)
    assert (report.flops, report.params, report.parameter_memory) == (4 * 3 * 15, 24, 96)


class Teaching(nn.Module):
    """A model that is given another one, under the name that a part of its own has."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Linear(8, 3)

    def forward(self, x: Tensor, teacher: nn.Module) -> Tensor:
        return self.teacher(teacher(x))


def test_a_module_among_the_arguments_of_a_module() -> None:
    report = trace(Teaching(), (X, net()))
    assert {path: total.flops for path, total in report.modules.items()} == {
        "": LINEAR + 4 * 3 * 16,
        "teacher": 4 * 3 * 16,
        "teacher_1": LINEAR,
        "teacher_1.0": LINEAR,
        "teacher_1.1": 0,
    }


class Hiding(nn.Module):
    """A model that hides another from `modules()`, as one does with a teacher that is not to be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(8, 8)
        self.hidden = [net().eval()]

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(self.hidden[0](x))


def test_what_a_model_hides_stays_as_it_is() -> None:
    report = trace(Hiding(), X, train=True)
    assert (report.flops, report.params, list(report.modules)) == (2 * LINEAR, PARAMS, ["", "lin"])


def test_a_partial_of_a_module_is_the_module() -> None:
    report = trace(functools.partial(NET), X)
    assert list(report.modules) == ["", "0", "1"]
    assert (report.flops, report.params) == (LINEAR, PARAMS)


def test_lazy_modules_of_a_function_are_refused() -> None:
    lazy = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(TraceError, match=r"module 'lazy\.0' \(LazyLinear\) has parameters that take"):
        trace(lambda x: lazy(x), X)


# -- what is looked at does not run -----------------------------------------------------------------------

RAN: list[str] = []


class Watching:
    """Notes whoever asks it for anything."""

    def __init__(self) -> None:
        object.__setattr__(self, "net", nn.Linear(8, 3))

    def __getattribute__(self, name: str) -> Any:
        RAN.append(name)
        return object.__getattribute__(self, name)

    @property
    def best(self) -> nn.Module:
        RAN.append("best")
        return nn.Linear(8, 3)


class Proxy:
    """Pretends to be what it stands for, as lazy objects do, and makes that when first asked."""

    __slots__ = ()

    @property
    def __class__(self) -> type:  # type: ignore[override]
        RAN.append("__class__")
        return nn.Module

    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("not now")

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("not now")


class Registry(OrderedDict[str, Any]):
    """Imports whatever it is asked for, as the registries of transformers do."""

    def items(self) -> Any:
        RAN.append("items")
        return [("all", nn.Linear(8, 3))]

    __iter__ = values = __getitem__ = __len__ = items  # type: ignore[assignment]


STRANGE = (Watching(), Proxy(), Registry(a=nn.Linear(8, 2)))


def looks(x: Tensor) -> Tensor:
    if x.ndim == 3:
        return STRANGE[0].best(x), STRANGE[0].net(x)
    return NET(x)


class Keeping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.strange = net(), [*STRANGE]

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@pytest.mark.parametrize("run", [looks, Keeping(), lambda x, given=STRANGE: NET(x)])
def test_looking_for_modules_runs_nothing(run: Callable[..., Any]) -> None:
    RAN.clear()
    assert trace(run, X).flops == LINEAR
    report = trace(run, X, backward=True)
    assert report.flops - report.backward_flops == LINEAR
    assert RAN == []


def test_nor_does_it_import_anything() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=11
    )
    model, ids = transformers.BertModel(config), torch.ones(1, 4, dtype=torch.long)
    before = trace(model, ids).flops
    loaded = set(sys.modules)
    assert trace(model.forward, ids).flops == before
    assert trace(lambda ids: model(ids) if transformers else transformers.AutoModel(ids), ids).flops == before
    assert set(sys.modules) == loaded
