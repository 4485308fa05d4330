"""Steps have the names, kinds and order that `torch.fx` gives them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_flops import trace
from pytest_flops.counting.fx_names import Names, is_leaf
from pytest_flops.results.report import base_name

IMAGE = torch.randn(1, 3, 224, 224)


@pytest.mark.parametrize(
    "name",
    ["resnet18", "vit_tiny_patch16_224", "convnext_atto", "efficientnet_b0", "densenet121", "resnest14d"],
)
def test_arithmetic_reads_as_in_fx(name: str) -> None:
    """fx also records attribute access and integer arithmetic; every step with FLOPs is there, in order."""
    timm = pytest.importorskip("timm")
    model = timm.create_model(name).eval()
    try:
        graph = torch.fx.symbolic_trace(model).graph
    except TypeError as err:
        pytest.skip(f"symbolic_trace of torch {torch.__version__} refuses it: {err}")
    ours = [(node.name, node.op) for node in trace(model, IMAGE).nodes if node.flops]
    in_fx = {(node.name, node.op): i for i, node in enumerate(graph.nodes)}
    assert len(ours) > 60
    assert [step for step in ours if step not in in_fx] == []
    places = [in_fx[step] for step in ours]
    assert places == sorted(places)


def test_names_agree_with_fx_on_awkward_ones() -> None:
    wanted = [
        "sum",
        "sum",
        "relu",
        "relu",
        "relu_1",
        "layers.0.Conv",
        "0",
        "max",
        "and_",
        "torch",
        "AvgPool",
        "a_2",
    ]
    wanted += ["a", "a", "device", "_assert", "layer1_0", "layer1"]
    graph, names = torch.fx.Graph(), Names()
    assert [names.unique(name) for name in wanted] == [
        graph.create_node("call_module", name).name for name in wanted
    ]


WRITTEN: dict[str, Callable[[Any, Any], Any]] = {
    "neg": lambda x, y: -x,
    "invert": lambda x, y: ~x,
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "truediv": lambda x, y: x / y,
    "floordiv": lambda x, y: x // y,
    "mod": lambda x, y: x % y,
    "pow": lambda x, y: x**y,
    "matmul": lambda x, y: x @ y,
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: x != y,
    "lt": lambda x, y: x < y,
    "gt": lambda x, y: x > y,
    "le": lambda x, y: x <= y,
    "ge": lambda x, y: x >= y,
    "and_": lambda x, y: x & y,
    "or_": lambda x, y: x | y,
    "xor": lambda x, y: x ^ y,
    "lshift": lambda x, y: x << y,
    "rshift": lambda x, y: x >> y,
    "getitem": lambda x, y: x[0],
}


@pytest.mark.parametrize("name", WRITTEN)
def test_operators_are_functions_as_fx_sees_them(name: str) -> None:
    whole = name in ("invert", "and_", "or_", "xor", "lshift", "rshift")
    x = torch.ones(3, 3, dtype=torch.long if whole else torch.float)
    step = trace(WRITTEN[name], (x, x)).nodes[2]
    assert (base_name(step.name), step.op, step.target) == (
        name,
        "call_function",
        str(getattr(operator, name)),
    )


def reflected(x: Tensor) -> Tensor:
    return 2 ** (1 / (3 - x))


def test_reflected_operators_too() -> None:
    steps = trace(reflected, torch.ones(3)).nodes[1:-1]
    assert [(step.name, step.op) for step in steps] == [
        ("sub", "call_function"),
        ("truediv", "call_function"),
        ("pow_1", "call_function"),
    ]


def in_place(x: Tensor) -> Tensor:
    y = x + 0
    y += 1.0
    y *= 2
    return y


def test_augmented_assignment_is_the_operator() -> None:
    steps = trace(in_place, torch.ones(3)).nodes[1:-1]
    assert [(step.name, step.op, step.target) for step in steps] == [
        ("add", "call_function", "<built-in function add>"),
        ("add_1", "call_function", "<built-in function add>"),
        ("mul", "call_function", "<built-in function mul>"),
    ]


def test_methods_and_functions() -> None:
    def forward(x: Tensor) -> Tensor:
        x = x.add(1).mul_(2).softmax(0)
        return torch.flatten(torch.nn.functional.relu(x))

    steps = trace(forward, torch.ones(3, 3)).nodes[1:-1]
    assert [(step.name, step.op, step.target) for step in steps] == [
        ("add", "call_method", "add"),
        ("mul_", "call_method", "mul_"),
        ("softmax", "call_method", "softmax"),
        ("relu", "call_function", "torch.nn.functional.relu"),
        ("flatten", "call_function", "torch.flatten"),
    ]


def test_metadata_is_no_step() -> None:
    def forward(x: Tensor) -> Tensor:
        assert x.dim() == 2
        assert x.size(0) == x.shape[0] == len(x)
        assert x.dtype.is_floating_point
        assert not x.requires_grad
        return x

    assert [node.op for node in trace(forward, torch.ones(3, 3)).nodes] == ["placeholder", "output"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")  # scripted helpers are still about
def test_an_op_that_no_function_shows_is_a_step_of_its_own() -> None:
    scripted = torch.jit.script(multiply_and_view)
    report = trace(lambda x: scripted(x) + 1, torch.ones(3, 5))
    assert [(node.name, node.target, node.flops) for node in report.nodes[1:-1]] == [
        ("mul", "aten.mul.Tensor", 15),
        ("add", "<built-in function add>", 15),
    ]


def multiply_and_view(x: Tensor) -> Tensor:
    return (x * x).view(5, 3)


def test_ops_called_by_name() -> None:
    report = trace(lambda x: torch.ops.aten.mul.Tensor(x, x), torch.ones(3, 5))
    assert report.functions == {("", "mul_tensor"): 15}


def test_leaves_are_fx_leaves() -> None:
    tracer = torch.fx.Tracer()
    for module in (
        nn.Linear(1, 1),
        nn.Sequential(),
        nn.ReLU(),
        nn.ModuleList(),
        nn.TransformerEncoderLayer(4, 1),
    ):
        assert is_leaf(type(module)) == tracer.is_leaf_module(module, "")


def test_module_calls_go_through_the_attribute_that_recording_sets() -> None:
    """If PyTorch renames the private attribute behind `module.compile()`, this says so first."""
    assert "_compiled_call_impl" in nn.Module.__dict__
    module = nn.Linear(1, 1)
    module.__dict__["_compiled_call_impl"] = lambda x: "recorded"
    assert module(torch.ones(1)) == "recorded"
