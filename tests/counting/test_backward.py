"""Training steps: what the backward pass costs, and which module it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from pytest_flops import TraceError, trace
from pytest_flops.results.report import Report

X = torch.randn(3, 5)
BOTH = pytest.mark.parametrize("execute", ["auto", "real"])


def step(model: Any, args: Any, execute: Any = "auto") -> Report:
    return trace(model, args, train=True, backward=True, execute=execute)


def macs(report: Report) -> dict[str, tuple[int, int]]:
    """Forward and backward MACs of every module step, by module path; repeated calls are added up."""
    found: dict[str, tuple[int, int]] = {}
    for node in report.nodes:
        if node.op == "call_module":
            forward, backward = found.get(node.module, (0, 0))
            found[node.module] = (
                forward + node.macs - node.backward_macs,
                backward + node.backward_macs,
            )
    return found


class Two(nn.Module):
    """Linear(5, 7) and Linear(7, 5); `first` says how the first of them is run."""

    def __init__(self, first: Callable[[nn.Module, Tensor], Tensor] = lambda layer, x: layer(x)) -> None:
        super().__init__()
        self.a = nn.Linear(5, 7)
        self.b = nn.Linear(7, 5)
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.first(self.a, x))


A = B = 3 * 5 * 7  # MACs of one product with either layer's weight


@BOTH
def test_a_layer_costs_one_product_forward_and_two_backward(execute: str) -> None:
    report = step(Two(), X, execute)
    # The input needs no gradient: the first layer's backward has the product for its weight alone.
    assert macs(report) == {"a": (A, A), "b": (B, 2 * B)}
    assert report.mode == "train with backward"
    assert report.backward_macs == A + 2 * B
    assert report.macs == report.modules[""].macs == 2 * A + 3 * B
    assert report.backward_flops == sum(node.backward_flops for node in report.nodes) < report.flops


@BOTH
def test_an_input_that_requires_a_gradient_gets_one(execute: str) -> None:
    assert macs(step(Two(), X.clone().requires_grad_(), execute))["a"] == (A, 2 * A)


GROWN = torch.randn(4, 4, requires_grad=True)


@BOTH
@pytest.mark.parametrize(
    ("forward", "args", "cost"),
    [
        # Two products backward, a sum of both, and a comparison each way
        (lambda x: (x := x.relu_()) @ x, (GROWN.clone(),), 3 * 4 * 4 * 7 + 16 + 2 * 16),
        (lambda x: x.view(-1).mul_(2.0), (GROWN.clone(),), 2 * 16),
        (lambda x: x.mul_(2.0), (GROWN.clone()[0],), 2 * 4),
        (lambda a, b: a.mul_(2.0) + b, (GROWN[0], GROWN[1]), 3 * 4),
        (lambda given: given["x"].mul_(2.0), ({"x": GROWN * 1.0},), 2 * 16),
        (lambda x: x * 1.0 if x.is_leaf else x * 1.0 * 1.0, (GROWN.clone(),), 4 * 16),
        (lambda x: x * 1.0 if x.is_leaf else x * 1.0 * 1.0, (GROWN,), 2 * 16),
    ],
)
def test_an_input_that_is_no_leaf_is_none_in_the_run(forward, args, cost, execute):
    kept = [arg.detach().clone() for arg in args if isinstance(arg, Tensor)]
    assert step(forward, args, execute).flops == cost
    assert all(torch.equal(arg, was) for arg, was in zip(args, kept, strict=False) if isinstance(arg, Tensor))
    assert GROWN.grad is None


@BOTH
def test_a_leaf_that_is_written_into_is_refused_as_by_pytorch(execute):
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
        step(lambda x: x.relu_(), (GROWN,), execute)


@BOTH
def test_frozen_parameters(execute: str) -> None:
    model = Two()
    model.a.requires_grad_(False)
    assert macs(step(model, X, execute)) == {"a": (A, 0), "b": (B, B)}


def without_grad(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return layer(x)


@BOTH
def test_a_no_grad_region_has_no_backward(execute: str) -> None:
    assert macs(step(Two(without_grad), X, execute)) == {"a": (A, 0), "b": (B, B)}


@BOTH
def test_a_checkpoint_runs_its_module_again(execute: str) -> None:
    def twice(layer: nn.Module, x: Tensor) -> Tensor:
        return layer(F.relu(layer.again(x)))

    def checkpointed(layer: nn.Module, x: Tensor) -> Tensor:
        return checkpoint(twice, layer, x, use_reentrant=False)

    def plain() -> Two:
        model = Two(twice)
        model.a.again = nn.Linear(5, 5)
        return model

    kept, again = plain(), plain()
    again.first = checkpointed
    extra = step(again, X, execute).backward_macs - step(kept, X, execute).backward_macs
    assert extra == 3 * 5 * 5  # the first of its two products: the second's result is not needed again


@BOTH
def test_a_reentrant_checkpoint_runs_all_of_it_again(execute: str) -> None:
    def checkpointed(layer: nn.Module, x: Tensor) -> Tensor:
        return checkpoint(layer, x, use_reentrant=True)

    report = step(Two(checkpointed), X.clone().requires_grad_(), execute)
    assert macs(report) == {"a": (A, 3 * A), "b": (B, 2 * B)}


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(5, 5)
        self.b = self.a

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


@BOTH
def test_a_shared_module_has_the_backward_of_both_calls(execute: str) -> None:
    report = step(Shared(), X, execute)
    assert [(n.name, n.macs - n.backward_macs, n.backward_macs) for n in report.nodes if n.macs] == [
        ("a", 75, 75),
        ("a_1", 75, 150),
    ]


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * 2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] * 2 * torch.exp(x)


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Calls()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.inner(x))


class Calls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return Double.apply(self.lin(x))


@BOTH
def test_a_custom_function_belongs_to_the_module_that_calls_it(execute: str) -> None:
    report = step(Custom(), X, execute)
    steps = {n.name: (n.module, n.flops - n.backward_flops, n.backward_flops) for n in report.nodes}
    assert steps["mul"] == ("inner", 15, 0)
    assert steps["double_backward"] == ("inner", 0, 3 * 15)
    assert steps["relu"] == ("", 15, 15)


@BOTH
def test_a_loss_that_the_model_returns_is_what_is_differentiated(execute: str) -> None:
    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(5, 5)
            self.unused = nn.Linear(5, 5)

        def forward(self, x: Tensor, target: Tensor) -> dict[str, Tensor]:
            logits = self.lin(x)
            return {"loss": F.cross_entropy(logits, target), "extra": self.unused(x)}

    report = step(WithLoss(), (X, torch.tensor([0, 1, 2])), execute)
    assert macs(report) == {"lin": (75, 75), "unused": (75, 0)}
    loss = next(node for node in report.nodes if node.name == "cross_entropy")
    assert loss.flops > loss.backward_flops > 0


@BOTH
def test_nothing_of_the_users_changes(execute: str) -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5), nn.LSTM(5, 5))
    model[0].weight.grad = torch.full((5, 5), 3.0)
    weights = {name: (parameter, parameter.data_ptr()) for name, parameter in model.named_parameters()}
    flat = list(model[2]._flat_weights)
    x = X.clone().requires_grad_()
    step(model, x, execute)
    assert {name: (p, p.data_ptr()) for name, p in model.named_parameters()} == weights
    assert all(a is b for a, b in zip(flat, model[2]._flat_weights, strict=True))
    assert model[0].weight.grad.tolist() == [[3.0] * 5] * 5
    assert model[0].bias.grad is None
    assert x.grad is None
    assert model[1].running_mean.tolist() == [0.0] * 5
    assert torch.backends.mkldnn.enabled
    assert not torch.is_inference_mode_enabled()


def test_the_table_shows_both_passes() -> None:
    lines = step(nn.Sequential(nn.Linear(5, 5, bias=False)), X).table().splitlines()
    assert lines[1].split() == [
        "node_name",
        "node_op",
        "op_target",
        "nn_module_stack[-1]",
        "flops",
        "macs",
        "memory_traffic",
        "ops",
        "of",
        "it",
        "backward",
    ]
    assert lines[4].split() == ["_0", "call_module", "0", "Linear", "260", "150", "440", "2", "125"]
    # 15 numbers in, 25 weights, 15 out; back the inputs, 15 gradients, and 25 of the weights
    assert lines[-2:] == [
        "Sequential (train with backward): 260 FLOPs, 150 MACs, 25 params, 100 bytes of parameter memory, "
        "440 bytes of memory traffic, 2 ops, 220 bytes of peak memory",
        "Of it backward: 125 FLOPs, 75 MACs, 220 bytes of memory traffic, 1 ops",
    ]


def test_a_model_without_a_backward_pass() -> None:
    with pytest.raises(TraceError) as info:
        step(Two().requires_grad_(False), X)
    assert str(info.value) == (
        "Two has no backward pass to count: no output depends on a parameter that requires a gradient."
    )


def test_the_forward_part_is_what_a_forward_trace_counts() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    x = torch.randn(2, 3, 8)
    forward, both = trace(model, x, train=True), step(model, x)
    assert both.flops - both.backward_flops == forward.flops
    assert both.macs - both.backward_macs == forward.macs


def counted_by_torch(model: nn.Module, x: Tensor) -> tuple[int, int]:
    """Forward and backward MACs by torch's own counter; attention taken apart as we do."""
    device = "meta" if x.is_floating_point() else "cpu"
    model = model.to(device).train()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        output = model(x.to(device))
        output = output if isinstance(output, Tensor) else output[0]
        forward = counter.get_total_flops()
        output.sum().backward()
    return forward // 2, (counter.get_total_flops() - forward) // 2


def timm_model(name: str) -> Callable[[], nn.Module]:
    return lambda: pytest.importorskip("timm").create_model(name)


def transformers_model(name: str, **sizes: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        library = pytest.importorskip("transformers")
        config = getattr(library, f"{name.partition('For')[0].removesuffix('LMHeadModel')}Config")
        return getattr(library, name)(
            config(vocab_size=50, bos_token_id=0, eos_token_id=0, pad_token_id=0, **sizes)
        )

    return build


def torchvision_model(name: str) -> Callable[[], nn.Module]:
    return lambda: pytest.importorskip("torchvision").models.get_model(name)


IDS = torch.arange(14).view(2, 7)
AGREE: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "resnet18": (timm_model("resnet18"), torch.randn(2, 3, 64, 64)),
    "vit_tiny_patch16_224": (timm_model("vit_tiny_patch16_224"), torch.randn(1, 3, 224, 224)),
    "swin_tiny_patch4_window7_224": (timm_model("swin_tiny_patch4_window7_224"), torch.randn(1, 3, 224, 224)),
    "mixer_s16_224": (timm_model("mixer_s16_224"), torch.randn(1, 3, 224, 224)),
    "torchvision vit_b_16": (torchvision_model("vit_b_16"), torch.randn(1, 3, 224, 224)),
    "torchvision densenet121": (torchvision_model("densenet121"), torch.randn(1, 3, 64, 64)),
    "bert": (
        transformers_model(
            "BertForMaskedLM",
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=40,
        ),
        IDS,
    ),
    "gpt2": (transformers_model("GPT2LMHeadModel", n_embd=24, n_layer=2, n_head=4, use_cache=False), IDS),
    "llama": (
        transformers_model(
            "LlamaForCausalLM",
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            use_cache=False,
        ),
        IDS,
    ),
    "lstm": (lambda: nn.LSTM(5, 7, 2, bidirectional=True), torch.randn(4, 2, 5)),
    "gru": (lambda: nn.GRU(5, 7), torch.randn(4, 2, 5)),
    "encoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
        torch.randn(2, 3, 8),
    ),
}


@pytest.mark.parametrize("name", AGREE)
def test_macs_agree_with_torchs_counter(name: str) -> None:
    build, x = AGREE[name]
    model = build()
    report = step(model, x)
    assert not report.unsupported
    assert step(model, x, "real").flops == report.flops
    assert (report.macs - report.backward_macs, report.backward_macs) == counted_by_torch(model, x)


def test_grouped_convolution_where_torchs_counter_ignores_the_groups() -> None:
    model = nn.Conv2d(8, 8, 3, groups=4)
    x = torch.randn(2, 8, 6, 6).requires_grad_()
    forward = 2 * 8 * 4 * 4 * 2 * 9
    report = step(model, x)
    assert (report.macs, report.backward_macs) == (3 * forward, 2 * forward)
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    assert counter.get_total_flops() > 2 * report.macs
