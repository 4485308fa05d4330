"""`TorchFLOPsByFX`: the interface, the tables and the integers of torch_flops.

Every number called `seed` was printed by torch_flops 0.4.1 itself on torch 2.15, with `torch.cuda`'s memory
functions replaced by constants (it cannot run without a GPU) and, where a model has no parameters, one lent
to it (it asks the first one for its device).
"""

from __future__ import annotations

import csv
import runpy
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.autograd.profiler import profile

from pytest_flops import FlopsError, MeasurementError, TorchFLOPsByFX, TraceError, trace
from pytest_flops.measuring.propagate import measurements_of
from pytest_flops.measuring.ready import Ready
from tests.fakes import Script
from tests.nets import Toy

EXAMPLES = Path(__file__).parent.parent / "examples" / "torch_flops"
IMAGE = torch.randn(1, 3, 224, 224)


class Calls(nn.Module):
    """A model whose forward is a function of its first input."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def counted(model: nn.Module, *args: Any, **options: Any) -> TorchFLOPsByFX:
    counter = TorchFLOPsByFX(model, **options)
    counter.propagate(*args)
    return counter


def flops(counter: TorchFLOPsByFX) -> int:
    return counter.print_total_flops(show=False)


def first_columns(counter: TorchFLOPsByFX) -> list[list[Any]]:
    return [row[:5] for row in counter.print_result_table(show=False)]


# -- the integers of torch_flops: models ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "seed", "pooled"),
    [
        ("resnet18", 3_639_085_056, 64 * 56**2),
        ("squeezenet1_0", 1_643_470_576, 96 * 54**2 + 256 * 27**2 + 512 * 13**2),
    ],
)
def test_models_whose_every_operation_torch_flops_knows(name, seed, pooled):
    model = torchvision.models.get_model(name, weights=None)
    assert flops(counted(model, IMAGE)) == seed
    assert trace(model, IMAGE).flops == seed + 6 * pooled  # 8, not 2, comparisons per 3x3 window


@pytest.mark.parametrize(
    ("name", "seed", "unknown"),
    [
        ("convnext_tiny", 8_913_245_184, {"layer_norm", "gelu", "mul"}),
        ("swin_tiny_patch4_window7_224", 9_005_389_514, {"mod", "contiguous", "softmax", "roll", "mean"}),
    ],
)
def test_models_of_which_torch_flops_knows_a_part(name, seed, unknown, monkeypatch):
    """What torch_flops calls "not_recognized" it leaves out; the drop-in counts it. The rest is equal."""
    monkeypatch.setattr("timm.layers.config._USE_FUSED_ATTN", 0)
    rows = first_columns(counted(timm.create_model(name), IMAGE))

    def is_unknown(row: list[Any]) -> bool:
        name, op, _, module_type, _ = row
        if op == "call_module":
            return module_type.lower() in unknown
        kinds = {"call_method": {"mul", "contiguous", "mean"}}.get(op, unknown - {"mul", "mean"})
        return name.rstrip("0123456789").rstrip("_") in kinds & unknown

    assert sum(row[4] for row in rows if not is_unknown(row)) == seed
    assert sum(row[4] for row in rows if is_unknown(row)) > 0


# -- the integers of torch_flops: operations ------------------------------------------------------------

WEIGHT = torch.randn(6, 2, 3, 5)
BIAS = torch.randn(6)

# model, shape of its input, what torch_flops says, what trace says where that differs
OPERATIONS: dict[str, tuple[nn.Module | Callable[[Tensor], Any], tuple[int, ...], int, int | None]] = {
    "max-pool 1d": (nn.MaxPool1d(3, 2, 1), (2, 4, 11), 96, None),
    "max-pool by a tuple": (nn.MaxPool2d((3, 2)), (2, 4, 11, 8), 480, None),
    "max-pool by an int": (nn.MaxPool2d(3, 2, 1, ceil_mode=True), (2, 4, 11, 8), 480, 1920),
    "max-pool 3d by an int": (nn.MaxPool3d(2), (2, 4, 6, 8, 10), 480, 3360),
    "average pool 1d": (nn.AvgPool1d(3), (2, 4, 11), 72, None),
    "average pool by a tuple": (
        nn.AvgPool2d((3, 2), padding=(1, 1), count_include_pad=False),
        (2, 4, 11, 8),
        960,
        None,
    ),
    "average pool by an int": (nn.AvgPool2d(3, ceil_mode=True), (2, 4, 11, 8), 288, 864),
    "average pool 3d by an int": (nn.AvgPool3d(2), (2, 4, 6, 8, 10), 960, 3840),
    "adaptive average, even windows": (nn.AdaptiveAvgPool2d(1), (2, 4, 11, 8), 704, None),
    "adaptive average 1d": (nn.AdaptiveAvgPool1d(3), (2, 4, 11), 72, 104),
    "adaptive average 2d": (nn.AdaptiveAvgPool2d((3, 4)), (2, 4, 11, 8), 576, 832),
    "adaptive average without batch": (nn.AdaptiveAvgPool2d((3, 4)), (4, 11, 8), 96, 416),
    "adaptive average 3d": (nn.AdaptiveAvgPool3d((2, 3, 4)), (2, 4, 6, 9, 10), 5184, None),
    "adaptive max 1d": (nn.AdaptiveMaxPool1d(3), (2, 4, 11), 48, 80),
    "adaptive max 2d": (nn.AdaptiveMaxPool2d((3, 4)), (2, 4, 11, 8), 480, 736),
    "adaptive max 3d": (nn.AdaptiveMaxPool3d((2, 3, 4)), (2, 4, 6, 9, 10), 4992, None),
    "layer norm": (nn.LayerNorm(5), (2, 3, 5), 120, None),
    "layer norm, not affine": (nn.LayerNorm(5, elementwise_affine=False), (2, 3, 5), 120, 60),
    "layer norm without bias": (nn.LayerNorm(5, bias=False), (2, 3, 5), 120, 90),
    "batch norm": (nn.BatchNorm3d(4), (2, 4, 7, 3, 5), 3360, None),
    "instance norm": (nn.InstanceNorm2d(4, affine=True), (2, 4, 7, 3), 672, None),
    "group norm": (nn.GroupNorm(2, 4), (2, 4, 7), 224, None),
    "grouped convolution": (nn.Conv1d(4, 6, 3, groups=2), (2, 4, 7), 720, None),
    "convolution": (nn.Conv2d(4, 6, (3, 5), 2, 1, bias=False), (2, 4, 9, 7), 21420, None),
    "linear of a vector": (nn.Linear(5, 3), (5,), 30, None),
    "leaky relu": (nn.LeakyReLU(), (2, 3), 24, None),
    "sum of Python numbers": (
        lambda x: x * (x.shape[1] * x.shape[0] - 1 + x.size(0) / 2),
        (2, 3),
        10,
        6,
    ),
    "broadcast": (lambda x: x + x[0], (2, 3), 6, None),
    "add with alpha": (lambda x: torch.add(x, x, alpha=2), (2, 3), 6, 12),
    "floor division": (lambda x: x // 2, (2, 3), 0, 6),
    "comparison": (lambda x: x == x[0], (2, 3), 6, None),
    "dot product": (lambda x: torch.matmul(x[0], x[1]), (4, 5), 9, None),
    "matmul, broadcast": (lambda x: x @ x[0].transpose(-1, -2), (2, 4, 3, 5), 648, None),
    "functional linear": (lambda x: F.linear(x, torch.ones(7, 5), bias=torch.ones(7)), (2, 3, 5), 420, None),
    "functional convolution": (lambda x: F.conv2d(x, WEIGHT, bias=BIAS, groups=2), (2, 4, 9, 7), 15120, None),
    "its bias by position": (lambda x: F.conv2d(x, WEIGHT, BIAS, 2, 1, 1, 2), (2, 4, 9, 7), 10620, 10800),
    "its groups without bias": (lambda x: F.conv2d(x, WEIGHT, groups=2), (2, 4, 9, 7), 14616, 14868),
    "functional leaky relu": (lambda x: F.leaky_relu(x, 0.2), (2, 3), 24, None),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x, x), (2, 3, 5, 7), 4410, None),
    "causal attention": (
        lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
        (2, 3, 5, 7),
        4560,
        None,
    ),
    "attention with mask and dropout": (
        lambda x: F.scaled_dot_product_attention(x, x[..., :4, :], x[..., :4, :2], torch.zeros(5, 4), 0.1),
        (2, 3, 5, 7),
        2670,
        None,
    ),
    "sum": (lambda x: x.sum(), (2, 3, 5), 29, None),
    "sum over one dimension": (lambda x: x.sum(1), (2, 3, 5), 27, 20),
    "sum over two dimensions": (lambda x: x.sum((0, 2), keepdim=True), (2, 3, 5), 20, 27),
    "sum beside a dimension of 1": (lambda x: x.sum(-1), (1, 3, 5), 10, 12),
    "softmax": (lambda x: x.softmax(dim=1), (2, 3, 5), 80, None),
    "division rounded": (lambda x: x.div(2, rounding_mode="floor"), (2, 3), 6, None),
    "power": (lambda x: x.pow(2), (2, 3), 0, 6),
    "clone": (lambda x: x.clone(), (2, 3), 0, None),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_count_as_in_torch_flops(name):
    operation, shape, seed, ours = OPERATIONS[name]
    model = nn.Sequential(operation) if isinstance(operation, nn.Module) else Calls(operation)
    x = torch.randn(shape)
    assert flops(counted(model, x)) == seed
    assert trace(model, x).flops == (seed if ours is None else ours)


@pytest.mark.parametrize(
    ("operation", "seed", "ours"),
    [
        pytest.param(lambda x: x**2, 0, 6, id="not recognized"),
        pytest.param(lambda x: F.interpolate(x, (8, 6)), 48, 0, id="interpolate: the product of the size"),
        pytest.param(
            lambda x: F.interpolate(x, scale_factor=3.0), 6 * 3**2, 0, id="interpolate: scale ** batch"
        ),
    ],
)
def test_what_is_not_reproduced(operation, seed, ours):
    x = torch.randn(2, 3) if ours else torch.randn(2, 3, 1, 1)
    assert flops(counted(Calls(operation), x)) == ours != seed


@pytest.mark.parametrize(
    "module", [nn.BatchNorm1d(3, affine=False), nn.InstanceNorm1d(3), nn.GroupNorm(3, 3, affine=False)]
)
def test_what_torch_flops_fails_on_counts(module):
    assert flops(counted(nn.Sequential(module), torch.randn(2, 3, 7))) == 2 * 42


# -- tables ---------------------------------------------------------------------------------------------


def test_the_first_table_of_the_readme():
    counter = counted(Toy(), torch.randn(1, 5))
    assert first_columns(counter) == [
        ["x", "placeholder", "x", "", 0],
        ["layer", "call_module", "layer", "Linear", 40],
        ["output", "output", "output", "", 0],
    ]
    assert flops(counter) == 40


def test_the_second_table_of_the_readme(capsys):
    counter = counted(Toy(add_one=True), torch.randn(1, 5))
    for row in counter.result_table:
        row[5:] = 0.0625, None, None, None
    counter.print_result_table()
    edge = "  ".join("=" * n for n in (11, 13, 23, 21, 7, 10, 15, 14, 11))
    expected = [
        edge,
        "node_name    node_op        op_target                nn_module_stack[-1]      flops    time(ms)",
        edge,
        "x            placeholder    x                                                     0       0.062",
        "layer        call_module    layer                    Linear                      40       0.062",
        "add          call_function  <built-in function add>                               4       0.062",
        "output       output         output                                                0       0.062",
        edge,
    ]
    lines = capsys.readouterr().out.splitlines()
    memory = "  mem_before_op    mem_after_op    mem_delta"
    assert [line.removesuffix(memory).rstrip() for line in lines] == expected
    assert flops(counter) == 44


def test_the_table_shows_memory_and_its_sign(capsys, monkeypatch):
    readings(monkeypatch)
    counted(Toy(add_one=True), torch.randn(1, 5), mem_func_name="memory_allocated").print_result_table()
    lines = capsys.readouterr().out.splitlines()
    assert lines[4].split()[-5:] == ["40", "2.500", "1,000", "1,400", "+400"]
    assert lines[5].split()[-5:] == ["4", "1.000", "1,400", "1,300", "-100"]


def test_rows_are_the_nodes_of_the_graph():
    counter = counted(Calls(lambda x: torch.cat([x, x * (x.shape[1] + 1)]).reshape(-1)), torch.randn(2, 3))
    assert first_columns(counter) == [
        ["x", "placeholder", "x", "", 0],
        ["getattr_1", "call_function", "<built-in function getattr>", "", 0],
        ["getitem", "call_function", "<built-in function getitem>", "", 0],
        ["add", "call_function", "<built-in function add>", "", 1],
        ["mul", "call_function", "<built-in function mul>", "", 6],
        ["cat", "call_function", "<built-in method cat>", "", 0],
        ["reshape", "call_method", "reshape", "", 0],
        ["output", "output", "output", "", 0],
    ]
    assert [row[0] for row in counter.result_table] == [node.name for node in counter.graph_model.graph.nodes]


def test_time_is_of_the_nodes_that_run():
    rows = {row[0]: row for row in counted(Toy(add_one=True), torch.randn(1, 5)).result_table}
    assert rows["layer"][5] > 0
    assert rows["add"][5] > 0
    assert rows["x"][5] == rows["output"][5] == 0.0


def test_the_csv_file(tmp_path, monkeypatch):
    readings(monkeypatch)
    path = tmp_path / "flops.csv"
    counter = counted(Toy(add_one=True), torch.randn(1, 5))
    counter.save_result_to_csv(path, "w")
    counter.save_result_to_csv(str(path))
    once = (
        "node_name,node_op,op_target,nn_module_stack[-1],flops,time(ms),mem_before_op,mem_after_op,mem_delta\r\n"
        "x,placeholder,x,,0,0.0,,,\r\n"
        "layer,call_module,layer,Linear,40,2.5,1000,1900,900\r\n"
        "add,call_function,<built-in function add>,,4,1.0,1400,1600,200\r\n"
        "output,output,output,,0,0.0,,,\r\n"
        "\n"
    )
    assert path.read_bytes().decode() == once * 2
    counter.save_result_to_csv(path, "w")
    with path.open(newline="") as file:
        assert [len(row) for row in csv.reader(file)] == [9, 9, 9, 9, 9, 0]


# -- totals ---------------------------------------------------------------------------------------------


def readings(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = ((0.0, 1000, 1000), (2.5, 1400, 1900)), ((4.0, 1400, 1400), (5.0, 1300, 1600))
    probe = Script(*first, *second)

    def measured(model, args):
        return measurements_of(Ready.of(model, args, None), probe, probe)

    monkeypatch.setattr("pytest_flops.torch_flops.propagate", measured)


def test_the_totals_are_printed_and_returned(capsys, monkeypatch):
    readings(monkeypatch)
    counter = counted(Toy(add_one=True), torch.randn(1234, 5))
    assert counter.print_total_flops() == 1234 * 44
    assert counter.print_total_time() == 3.5
    assert counter.print_max_memory() == 1900
    said = "total_flops = 54,296\ntotal_time = 3.500 ms\nmax_memory = 1,900 Bytes\n"
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(("function", "most"), [("memory_allocated", 1400), ("max_memory_allocated", 1900)])
def test_mem_func_name_chooses_the_reading(monkeypatch, function, most):
    readings(monkeypatch)
    counter = counted(Toy(add_one=True), torch.randn(1, 5), mem_func_name=function)
    assert counter.print_max_memory(show=False) == most


def test_memory_on_the_cpu_is_what_the_run_allocates(capsys):
    counter = counted(Toy(), torch.randn(16, 5))
    assert counter.print_max_memory() == 16 * 4 * 4
    assert capsys.readouterr().out == "max_memory = 256 Bytes\n"


def test_memory_is_not_measured_under_a_profiler(capsys):
    with profile():
        counter = counted(Toy(), torch.randn(1, 5))
    assert counter.print_max_memory() is None
    assert capsys.readouterr().out == "max_memory = not measured\n"


def test_nothing_is_printed_unless_asked(capsys):
    counter = counted(Toy(), torch.randn(1, 5))
    for method in ("result_table", "total_flops", "total_time", "max_memory"):
        getattr(counter, f"print_{method}")(show=False)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("method", ["total_flops", "total_time", "max_memory"])
def test_totals_before_propagate_are_an_error(method):
    with pytest.raises(MeasurementError, match=r"Nothing was measured yet: call propagate\(\.\.\.\) first\."):
        getattr(TorchFLOPsByFX(Toy()), f"print_{method}")()


def test_the_second_propagate_replaces_the_first():
    counter = counted(Toy(), torch.randn(1, 5))
    counter.propagate(torch.randn(3, 5))
    assert flops(counter) == 120


# -- options --------------------------------------------------------------------------------------------


def test_an_unknown_memory_function_is_an_error():
    with pytest.raises(FlopsError) as caught:
        TorchFLOPsByFX(Toy(), "memory")
    expected = "mem_func_name='memory': choose 'memory_allocated' or 'max_memory_allocated'."
    assert str(caught.value) == expected


def test_an_ignored_function_counts_zero(capsys):
    counter = counted(Toy(add_one=True), torch.randn(1, 5), ignore_ops="add")
    assert [row[4] for row in counter.result_table] == [0, 40, 0, 0]
    counter.print_total_flops()
    assert capsys.readouterr().out == "total_flops = 40\n"


def test_an_ignored_module_class_is_marked(capsys):
    counter = counted(Toy(add_one=True), torch.randn(1, 5), ignore_ops=["Linear"])
    assert [row[4] for row in counter.result_table] == [0, "ignored", 4, 0]
    counter.print_total_flops()
    assert capsys.readouterr().out == "total_flops = 4 (1 operations are ignored or not recognized)\n"
    assert counter.print_total_time(show=False) > 0


def test_an_ignored_method_counts_zero():
    model = Calls(lambda x: (x + 1).softmax(-1).exp())
    assert flops(counted(model, torch.randn(2, 3))) == 6 + 2 * 8 + 6
    assert flops(counted(model, torch.randn(2, 3), ignore_ops=("softmax", "exp"))) == 6


def test_ignored_operations_of_a_model_without_a_graph():
    class Choosing(Toy):
        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + 1 if x.sum() > -1e9 else x

    model = Choosing()
    full = flops(counted(model, torch.randn(1, 5)))
    assert flops(counted(model, torch.randn(1, 5), ignore_ops=("add",))) == full - 4
    assert flops(counted(model, torch.randn(1, 5), ignore_ops=("Linear",))) == full - 40


def test_what_nobody_can_count_is_said(capsys):
    with torch.library._scoped_library("torch_flops_test", "FRAGMENT") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x * 2, "CPU")
        library.impl("twice", lambda x: torch.empty_like(x), "Meta")
        model = Calls(lambda x: torch.ops.torch_flops_test.twice(x) + 1)
        counted(model, torch.randn(2, 3)).print_total_flops()
    assert capsys.readouterr().out == "total_flops = 6 (1 operations are ignored or not recognized)\n"


# -- graphs ---------------------------------------------------------------------------------------------


def test_the_graph_model_computes_what_the_model_does():
    model, x = Toy(add_one=True), torch.randn(2, 5)
    counter = TorchFLOPsByFX(model)
    assert isinstance(counter.graph_model, torch.fx.GraphModule)
    assert counter.graph_model is counter.graph_model
    assert torch.equal(counter.graph_model(x), model(x))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 4)

    def forward(self, x: Tensor, times: int = 1) -> Tensor:
        for _ in range(times):
            x = self.layer(x)
        return x if x.shape[0] > 2 else x + 1


def test_a_model_without_a_graph_says_so_and_counts():
    counter = TorchFLOPsByFX(Branching())
    with pytest.raises(TraceError) as caught:
        _ = counter.graph_model
    assert str(caught.value).startswith(
        "torch.fx cannot trace Branching, so it has no graph_model (TypeError: "
    )
    assert str(caught.value).endswith("). propagate counts it all the same.")
    counter.propagate(torch.randn(2, 5))
    assert first_columns(counter) == [
        ["x", "placeholder", "x", "", 0],
        ["layer", "call_module", "layer", "Linear", 80],
        ["add", "call_function", "<built-in function add>", "", 8],
        ["output", "output", "output", "", 0],
    ]


class Masked(nn.Module):
    """fx takes the branch with a mask, whatever it is called with: a proxy is not None."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x + 1 if mask is None else x + mask * 2


def test_a_branch_that_fx_froze_is_not_believed():
    counter = TorchFLOPsByFX(Masked())
    assert [node.name for node in counter.graph_model.graph.nodes] == ["x", "mask", "mul", "add", "output"]
    counter.propagate(torch.randn(2, 3))
    assert [row[0] for row in counter.result_table] == ["x", "add", "output"]
    assert flops(counter) == 6


class Optional(nn.Module):
    """The branch that fx takes runs without the second input too, and does more."""

    def forward(self, x: Tensor, extra: Tensor | None = None) -> Any:
        return x * 2 if extra is None else (x * 2 + 1, extra)


def test_a_graph_that_does_more_than_the_model_is_not_believed():
    counter = counted(Optional(), torch.randn(2, 3))
    assert [row[0] for row in counter.result_table] == ["x", "mul", "output"]
    assert flops(counter) == 6
    assert flops(counted(Optional(), torch.randn(2, 3), torch.randn(4))) == 12


def test_keyword_inputs():
    counter = TorchFLOPsByFX(Masked())
    counter.propagate(torch.randn(2, 3), mask=torch.randn(3))
    assert [row[0] for row in counter.result_table] == ["x", "mask", "mul", "add", "output"]
    counter.propagate(mask=torch.randn(3), x=torch.randn(2, 3))
    assert flops(counter) == 3 + 6


class Shifted(nn.Module):
    def forward(self, x: Tensor, scale: float = 2.0, shift: Tensor | None = None) -> Tensor:
        return x * scale + shift


def test_a_keyword_input_after_one_left_out():
    counter = TorchFLOPsByFX(Shifted())
    counter.propagate(torch.randn(2, 3), shift=torch.randn(3))
    assert [row[0] for row in counter.result_table] == ["x", "scale", "shift", "mul", "add", "output"]
    assert flops(counter) == 12


def test_the_model_is_left_as_found():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout()).train()
    found = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    counted(model, torch.randn(2, 3, 5, 7))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, found[name]) for name, tensor in model.state_dict().items())
    assert not any("_compiled_call_impl" in module.__dict__ for module in model.modules())


def test_errors_of_the_model_are_its_own():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        TorchFLOPsByFX(Toy()).propagate(torch.randn(1, 6))


# -- the examples ---------------------------------------------------------------------------------------


@pytest.fixture
def run_example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run an example as `python EXAMPLE OPTION ...` does, but in this process; return what it prints."""
    monkeypatch.setattr("timm.layers.config._USE_FUSED_ATTN", 1)  # an example may change it

    def run(name: str, *options: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *options])
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_example1_prints_what_the_readme_of_torch_flops_says(run_example):
    assert run_example("example1.py") == (
        "========== vit_base16 ==========\n"
        "total_flops = 35,164,979,282\n"
        "========== resnet50 ==========\n"
        "total_flops = 8,227,340,288\n"
    )


def test_example2_counts_an_attention_block(run_example):
    output = run_example("example2.py")
    assert output.startswith("*" * 120 + "\nopcode ")  # print_tabular
    assert "\nmatmul_1                call_function  <built-in function matmul>         Attention " in output
    # torch_flops: 2,908,971,738 without the two layer norms, which timm's own class hides from it
    assert f"\ntotal_flops = {2_908_971_738 + 2 * 4 * 197 * 768:,}\n" in output
    # with a mask: one addition for each of two heads and 197 x 197 scores
    assert output.endswith(f"\ntotal_flops = {2_908_971_738 + 2 * 4 * 197 * 768 + 2 * 197 * 197:,}\n")


PEERS = ("torch_flops", "thop", "ptflops", "fvcore", "torchinfo", "calflops")


@pytest.mark.parametrize(
    ("options", "ours", "torchs"),
    [
        ((), 40, 40),
        (("--add_one",), 44, 40),
        (("--linear_no_bias",), 36, 40),
        (("--add_one", "--linear_no_bias"), 40, 40),
    ],
)
def test_compare_shows_every_counter(run_example, options, ours, torchs):
    lines = run_example("compare.py", *options).splitlines()
    assert f"pytest_flops: {ours} FLOPs" in lines
    assert f"torch.utils.flop_counter: {torchs} FLOPs" in lines
    for peer in PEERS:
        said = next(line for line in lines if line.startswith(f"{peer}: "))
        assert (said == f"{peer}: not installed") == (find_spec(peer) is None)
