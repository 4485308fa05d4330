"""One model has one count, whatever it is counted under; random networks hold what every count must."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pytest_flops import Report, trace
from tests.settings import default_dtype, deterministic, fast_path, precision, threads

# -- the same model, counted under everything that changes what PyTorch runs --------------------------------


class Mixed(nn.Module):
    """A bit of all that PyTorch runs in more than one way."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.rnn = nn.LSTM(8, 6, batch_first=True)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm(self.stem(x))).flatten(2).transpose(1, 2)
        x = self.encoder(x)
        x = F.scaled_dot_product_attention(x, x, x, is_causal=True)
        x = torch.einsum("bij,kj,bkl->bil", x, x[0], x)  # its cheapest order is not from left to right
        return self.head(self.rnn(x)[0])


@pytest.fixture(scope="module")
def mixed() -> nn.Module:
    torch.manual_seed(0)
    return Mixed()


def image() -> Tensor:
    return torch.zeros(2, 3, 10, 12)


@contextmanager
def work_on_every_module() -> Iterator[None]:
    """What a profiler does, or a test that forgot to take its hook away."""
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: output * 1.0)
    try:
        yield
    finally:
        handle.remove()


CIRCUMSTANCES: dict[str, Callable[[], Any]] = {
    "no opt_einsum": lambda: torch.backends.opt_einsum.flags(enabled=False, strategy=None),
    "opt_einsum optimal": lambda: torch.backends.opt_einsum.flags(enabled=True, strategy="optimal"),
    "opt_einsum greedy": lambda: torch.backends.opt_einsum.flags(enabled=True, strategy="greedy"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "one thread": lambda: threads(1),
    "two threads": lambda: threads(2),
    "math attention": lambda: sdpa_kernel(SDPBackend.MATH),
    "flash attention": lambda: sdpa_kernel(SDPBackend.FLASH_ATTENTION),
    "fast path": lambda: fast_path(True),
    "no fast path": lambda: fast_path(False),
    "no oneDNN": lambda: torch.backends.mkldnn.flags(enabled=False),
    "float64 by default": lambda: default_dtype(torch.float64),
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
    "no gradients": torch.no_grad,
    "inference mode": torch.inference_mode,
    "deterministic": deterministic,
    "looking for anomalies": lambda: torch.autograd.set_detect_anomaly(True),
    "a hook on every module": work_on_every_module,
    "another precision": lambda: precision("medium"),
    "on meta by default": lambda: torch.device("meta"),
}


ABOUT_TF32 = pytest.mark.filterwarnings("ignore:TF32 acceleration")  # so says the switch of oneDNN


@ABOUT_TF32
@pytest.mark.parametrize("execute", ["meta", "real"])
@pytest.mark.parametrize("circumstance", CIRCUMSTANCES.values(), ids=CIRCUMSTANCES)
def test_the_circumstances_do_not_count(
    mixed: nn.Module, circumstance: Callable[[], Any], execute: Any
) -> None:
    expected, x = trace(mixed, (image(),)), image()
    with circumstance():
        found = trace(mixed, (x,), execute=execute)
    assert cost_of(found) == cost_of(expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_precision_does_not_count(dtype: torch.dtype) -> None:
    expected = trace(Mixed(), (image(),))
    assert cost_of(trace(Mixed().to(dtype), (image().to(dtype),))) == cost_of(expected)


BACKWARD = [
    "no opt_einsum",
    "opt_einsum greedy",
    "math attention",
    "autocast",
    "no oneDNN",
    "two threads",
    "deterministic",
    "looking for anomalies",
    "a hook on every module",
]


@ABOUT_TF32
@pytest.mark.parametrize("circumstance", BACKWARD)
def test_the_backward_pass_neither(mixed: nn.Module, circumstance: str) -> None:
    expected = trace(mixed, (image(),), backward=True)
    with CIRCUMSTANCES[circumstance]():
        found = trace(mixed, (image(),), backward=True)
    assert cost_of(found) == cost_of(expected)
    assert found.backward_flops == expected.backward_flops > 0


def test_the_memory_format_does_not_count() -> None:
    expected = trace(Mixed(), (image(),))
    model, x = Mixed(), image().to(memory_format=torch.channels_last)
    assert cost_of(trace(model.to(memory_format=torch.channels_last), (x,))) == cost_of(expected)


def cost_of(report: Report) -> list[tuple[str, int, int]]:
    assert not report.unsupported
    return [(path, total.flops, total.macs) for path, total in report.modules.items()]


# -- random networks ----------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Attention(nn.Module):
    """Pixels attend to one another."""

    def __init__(self, channels: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(channels, 3 * channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.qkv(x.flatten(2).transpose(1, 2))
        q, k, v = tokens.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return mixed.transpose(1, 2).flatten(2).transpose(1, 2).unflatten(2, x.shape[2:])


class Scan(nn.Module):
    """A recurrent layer reads the pixels in turn."""

    def __init__(self, kind: type[nn.Module], channels: int, both: bool) -> None:
        super().__init__()
        self.rnn = kind(channels, channels, batch_first=True, bidirectional=both)
        self.both = both

    def forward(self, x: Tensor) -> Tensor:
        read = self.rnn(x.flatten(2).transpose(1, 2))[0]
        read = sum(read.chunk(2, dim=2)) if self.both else read
        return read.transpose(1, 2).unflatten(2, x.shape[2:])


NORMS: list[Callable[[int], nn.Module]] = [nn.BatchNorm2d, nn.InstanceNorm2d, lambda c: nn.GroupNorm(2, c)]
ACTIVATIONS = [nn.ReLU, nn.GELU, nn.Sigmoid, nn.Hardswish, nn.LeakyReLU, nn.Softplus]
RECURRENT = [nn.LSTM, nn.GRU, nn.RNN]
POOLS: list[Callable[[], nn.Module]] = [
    lambda: nn.MaxPool2d(2, ceil_mode=True),
    lambda: nn.AvgPool2d(2, ceil_mode=True),
    lambda: nn.AdaptiveAvgPool2d(1),
    lambda: nn.AdaptiveMaxPool2d((2, 3)),
]


@st.composite
def layers(draw: Any, channels: int) -> tuple[nn.Module, int]:
    """Draw a layer that takes (batch, channels, height, width); return it with the channels it gives."""
    kind = draw(
        st.sampled_from(["conv", "transposed", "norm", "activation", "pool", "residual", "attention", "scan"])
    )
    if kind == "conv":
        to, groups = draw(st.sampled_from([4, 6])), draw(st.sampled_from([1, 2]))
        size, stride = draw(st.integers(1, 3)), draw(st.integers(1, 2))
        bias = draw(st.booleans())
        return nn.Conv2d(channels, to, size, stride, padding=size - 1, groups=groups, bias=bias), to
    if kind == "transposed":
        to = draw(st.sampled_from([4, 6]))
        return nn.ConvTranspose2d(channels, to, 2, bias=draw(st.booleans())), to
    if kind == "norm":
        return draw(st.sampled_from(NORMS))(channels), channels
    if kind == "activation":
        return draw(st.sampled_from(ACTIVATIONS))(), channels
    if kind == "pool":
        return draw(st.sampled_from(POOLS))(), channels
    if kind == "attention":
        return Attention(channels, draw(st.sampled_from([1, 2])), draw(st.booleans())), channels
    if kind == "scan":
        return Scan(draw(st.sampled_from(RECURRENT)), channels, draw(st.booleans())), channels
    return Residual(nn.Conv2d(channels, channels, 3, padding=1)), channels


@st.composite
def networks(draw: Any) -> nn.Sequential:
    channels, body = 4, []
    for _ in range(draw(st.integers(1, 5))):
        layer, channels = draw(layers(channels))
        body.append(layer)
    return nn.Sequential(
        *body, nn.Flatten(2), nn.AdaptiveAvgPool1d(3), nn.Flatten(), nn.Linear(3 * channels, 5)
    )


def parts_of(report: Report, path: str) -> int:
    """What a module's direct children and its own functions cost."""
    children = [p for p in report.modules if p and p.rpartition(".")[0] == path]
    functions = sum(n.flops for n in report.nodes if n.module == path and n.op != "call_module")
    return functions + sum(report.modules[child].flops for child in children)


@settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
@given(network=networks(), batch=st.integers(1, 3), height=st.integers(3, 7), width=st.integers(3, 7))
def test_a_random_network(network: nn.Sequential, batch: int, height: int, width: int) -> None:
    x = torch.zeros(batch, 4, height, width)
    shapes, real = trace(network, (x,), execute="meta"), trace(network, (x,), execute="real")
    assert cost_of(shapes) == cost_of(real)
    assert (sum(n.flops for n in real.nodes), sum(n.macs for n in real.nodes)) == (real.flops, real.macs)
    for path, total in real.modules.items():
        leaf = sum(n.flops for n in real.nodes if n.op == "call_module" and n.module == path)
        assert total.flops == (leaf or parts_of(real, path))
        assert total.flops >= total.macs >= 0
    tripled = trace(network, (torch.zeros(3 * batch, 4, height, width),))
    assert (tripled.flops, tripled.macs) == (3 * real.flops, 3 * real.macs)  # eval: samples are apart


@settings(
    max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
@given(network=networks())
def test_a_random_training_step(network: nn.Sequential) -> None:
    x = torch.zeros(2, 4, 5, 6)
    forward = trace(network, (x,), train=True)
    shapes = trace(network, (x,), train=True, backward=True, execute="meta")
    assert shapes.flops - shapes.backward_flops == forward.flops
    assert shapes.macs - shapes.backward_macs == forward.macs
    assert shapes.backward_macs > 0
    real = trace(network, (x,), train=True, backward=True, execute="real")
    assert cost_of(shapes) == cost_of(real)
