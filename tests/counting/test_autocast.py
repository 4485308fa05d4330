"""Autocast written in `forward`: FLOPs as without, and the memory of the tensors that it casts."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pytest_flops import trace
from pytest_flops.counting import shapes
from tests.counting.test_live_memory import allocated

X, IMAGE = torch.randn(4, 100, 64), torch.randn(2, 3, 32, 32)
ROWS = 4 * 100
HALF, FULL = ROWS * 64 * 2, ROWS * 64 * 4  # bytes of an activation
WEIGHTS = (64 * 64 + 64) * 2  # of a layer's parameters in bfloat16


class Net(nn.Module):
    """Runs a function of (module, input) under autocast, or without it."""

    def __init__(self, run: Callable[[Any, Tensor], Any], *, enabled: bool = True) -> None:
        super().__init__()
        self.lin, self.norm = nn.Linear(64, 64), nn.LayerNorm(64)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.mha = nn.MultiheadAttention(64, 4, batch_first=True)
        self.run, self.enabled = run, enabled

    def forward(self, x: Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.enabled):
            return self.run(self, x)


def disabled_inside(m: Any, x: Tensor) -> Tensor:
    x = m.lin(x)
    with torch.autocast("cpu", enabled=False):
        x = m.lin(x.float())
    return m.lin(x)


def attention(m: Any, x: Tensor) -> Tensor:
    q, k, v = (m.lin(x)[:, None] for _ in range(3))
    return F.scaled_dot_product_attention(q, k, v)


def in_a_function_of_its_own(m: Any, x: Tensor) -> Tensor:
    @torch.autocast("cpu", dtype=torch.bfloat16)
    def call(x: Tensor) -> Tensor:
        return m.lin(x)

    with torch.autocast("cpu", enabled=False):
        return call(x)


# By hand: what is alive at most, over the input. A cast weight goes when its op is done.
CASES: dict[str, tuple[Callable[[Any, Tensor], Any], Tensor, int]] = {
    "linear": (lambda m, x: m.lin(x), X, 2 * HALF + WEIGHTS),
    "a chain": (lambda m, x: m.lin(m.lin(m.lin(x))), X, 2 * HALF + WEIGHTS),
    "disabled inside": (disabled_inside, X, HALF + 2 * FULL),  # the half that the outer call still holds
    "convolution": (
        lambda m, x: m.conv(x),
        IMAGE,
        2 * (2 * 3 * 32 * 32 + 2 * 8 * 32 * 32 + 8 * 3 * 9 + 8),
    ),
    "matmul": (lambda m, x: x @ x.mT, X, 2 * HALF + 4 * 100 * 100 * 2),
    "einsum": (lambda m, x: torch.einsum("bnd,bmd->bnm", x, x), X, 2 * HALF + 4 * 100 * 100 * 2),
    "attention": (attention, X, 4 * HALF + WEIGHTS),  # while the last of three is made
    "norm": (lambda m, x: m.norm(m.lin(x)), X, 2 * HALF + WEIGHTS),
    "promotion": (lambda m, x: torch.cat([m.lin(x), x], -1) * 2, X, 4 * FULL),
    "a decorator": (in_a_function_of_its_own, X, 2 * HALF + WEIGHTS),
    "module": (lambda m, x: m.mha(x, x, x)[0], X, 0),  # not by hand
}


@pytest.mark.parametrize("case", CASES)
def test_flops_as_without_and_the_peak_of_what_is_cast(case: str) -> None:
    run, x, peak = CASES[case]
    expected = trace(Net(run, enabled=False), x)
    shapes.forget()
    found = [trace(Net(run), x) for _ in range(2)]
    found += [trace(Net(run).to("meta"), x), trace(Net(run), x, execute="real")]
    assert {(report.flops, report.macs) for report in found} == {(expected.flops, expected.macs)}
    assert [report.executed for report in found] == ["meta", "meta", "meta", "real"]
    assert len({report.peak_memory for report in found}) == 1
    assert not peak or found[0].peak_memory == peak
    assert (
        trace(Net(run, enabled=False), x).peak_memory == expected.peak_memory
    )  # nothing of it is remembered


@pytest.mark.parametrize("case", [case for case in CASES if case != "einsum"])
def test_peak_is_the_allocator_s(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less what a kernel in half precision takes for itself, as in `test_live_memory`."""
    kernels = ("aten::addmm", "aten::bmm", "aten::baddbmm", "aten::mkldnn_convolution")
    kernels += ("aten::_scaled_dot_product_flash_attention_for_cpu",)
    monkeypatch.setattr("tests.counting.test_live_memory.KERNELS", kernels)
    run, x, _ = CASES[case]
    model = Net(run).eval()
    with torch.inference_mode():
        model(x)
        report = trace(model, x)
        gc.collect()
        _, lasting = allocated(lambda: model(x))
    assert report.peak_memory == pytest.approx(lasting, rel=0.005)


class Deep(nn.Module):
    """Five layers of its kind, activations between them and a scalar at the end."""

    def __init__(self, layer: Callable[[], nn.Module], *, enabled: bool = True) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer() for _ in range(5))
        self.enabled = enabled

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.enabled):
            for layer in self.layers:
                x = layer(x).relu()
            return x.float().sum()


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (lambda: nn.Linear(64, 64), X),
        (lambda: nn.Conv2d(8, 8, 3, padding=1), torch.randn(4, 8, 32, 32)),
    ],
)
def test_a_training_step(layer: Callable[[], nn.Module], x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = ("aten::addmm", "aten::mm", "aten::convolution_backward", "aten::mkldnn_convolution")
    monkeypatch.setattr("tests.counting.test_live_memory.KERNELS", kernels)
    model = Deep(layer).train()
    options: dict[str, Any] = {"train": True, "backward": True}
    report, real = trace(model, x, **options), trace(model, x, execute="real", **options)
    plain = trace(Deep(layer, enabled=False), x, **options)
    assert (report.executed, report.flops, real.flops) == ("meta", plain.flops, plain.flops)
    assert report.peak_memory == real.peak_memory < 0.75 * plain.peak_memory

    model(x).backward()
    model.zero_grad(set_to_none=True)
    _, lasting = allocated(lambda: model(x).backward())
    assert report.peak_memory == pytest.approx(lasting, rel=0.001)


def test_weights_stay_cast_until_the_end_of_autocast_in_training() -> None:
    def thrice(m: Any, x: Tensor) -> Tensor:
        return m.lin(m.lin(m.lin(x))).sum()

    x = X[:1]  # so that two casts of the weight, each saved for its input's gradient, would be the peak
    report = trace(Net(thrice), x, train=True, backward=True)
    real = trace(Net(thrice), x, train=True, backward=True, execute="real")
    assert report.peak_memory == real.peak_memory


def test_what_is_around_does_not_matter() -> None:
    model = Net(lambda m, x: m.lin(m.lin(x)))
    expected = trace(model, X)
    with torch.autocast("cpu", dtype=torch.float16):
        first = model.lin(X)
        report = trace(model, X)
        assert (report.flops, report.peak_memory) == (expected.flops, expected.peak_memory)
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") is torch.float16
        with torch.autocast("cpu", dtype=torch.float16):
            pass  # ends no block of its own if the depth is right
        assert torch.equal(model.lin(X), first)  # and with weights that have data


def test_a_model_that_leaves_autocast_on_is_put_right() -> None:
    def forward(x: Tensor) -> Tensor:
        torch.autocast("cpu", dtype=torch.float16, cache_enabled=False).__enter__()
        raise KeyError("its own")

    switch, clear = torch.set_autocast_enabled, torch.clear_autocast_cache
    state = (torch.get_autocast_dtype("cpu"), torch.is_autocast_cache_enabled())
    with pytest.raises(KeyError):
        trace(forward, X)
    assert not torch.is_autocast_enabled("cpu")
    assert (torch.get_autocast_dtype("cpu"), torch.is_autocast_cache_enabled()) == state
    assert (torch.set_autocast_enabled, torch.clear_autocast_cache) == (switch, clear)
    assert torch.autocast_increment_nesting() == 1
    assert torch.autocast_decrement_nesting() == 0


def test_a_thread_beside_a_count_has_a_switch_of_its_own() -> None:
    from concurrent.futures import ThreadPoolExecutor

    def leave_it_on() -> None:
        torch.set_autocast_enabled("cpu", True)

    def forward(x: Tensor) -> Tensor:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(leave_it_on).result()
        return x @ x.mT

    assert trace(forward, X).peak_memory == 4 * 100 * 100 * 4
    assert not torch.is_autocast_enabled("cpu")


def test_another_device_s_autocast_casts_nothing() -> None:
    def forward(x: Tensor) -> Tensor:
        with torch.autocast("mps", dtype=torch.float16):
            return x @ x.mT

    report = trace(forward, X)
    assert (report.executed, report.peak_memory) == ("meta", 4 * 100 * 100 * 4)
