"""Under autograd, what `forward` makes has its values, and is where gradients are."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pytest_flops import Report, TraceError, trace

ROWS, WIDTH = 7, 8
N = ROWS * WIDTH
SCALING = N + N + (ROWS - 1) * WIDTH  # x * weight; its gradient: a product, summed up over the rows
DOUBLING = N + N  # a product with a number, and one backward


class Net(nn.Module):
    """Scale the input by a weight, then run the rest."""

    def __init__(self, rest: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))
        self.register_buffer("running", torch.zeros(ROWS, WIDTH))
        self.rest = rest

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(x * self.weight)


def flops(rest: Callable[[Tensor], Tensor], beside: int = SCALING) -> int:
    """Return what a training step costs beside the scaling: the same on meta, on shapes and on tensors."""
    with torch.device("meta"):
        on_meta, shape = Net(rest), torch.empty(ROWS, WIDTH)
    model, x = Net(rest), torch.ones(ROWS, WIDTH)
    reports = [step(on_meta, shape), step(model, x), step(model, x, execute="real")]
    assert [report.executed for report in reports] == ["meta", "meta", "real"]
    (cost,) = {(report.flops, report.macs) for report in reports}
    return cost[0] - beside


def step(model: nn.Module, x: Tensor, execute: Any = "auto") -> Report:
    return trace(model, x, train=True, backward=True, execute=execute)


def doubled_if(condition: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    return lambda y: y * 2.0 if condition(y) else y


@pytest.mark.parametrize(
    "condition",
    [
        lambda y: (torch.arange(ROWS, device=y.device) >= 0).all(),
        lambda y: torch.arange(2, 5, device=y.device).tolist() == [2, 3, 4],
        lambda y: (torch.full((ROWS,), 3, device=y.device) == 3).all(),
        lambda y: torch.full((ROWS,), True, device=y.device).all(),
        lambda y: torch.randint(1, 5, (ROWS,), device=y.device).min() > 0,
        lambda y: torch.randperm(ROWS, device=y.device).max().item() == ROWS - 1,
        lambda y: torch.tril_indices(3, 3, device=y.device).sum() == 12,
        lambda y: torch.ones(ROWS, device=y.device).all(),
        lambda y: torch.ones(ROWS, dtype=torch.half, device=y.device).bool().all(),
        lambda y: torch.arange(ROWS, dtype=torch.float, device=y.device).sum().item() == 21,
        lambda y: torch.arange(0.0, 1.0, 0.25, device=y.device).tolist() == [0, 0.25, 0.5, 0.75],
        lambda y: torch.linspace(0, 1, 3, device=y.device)[1].item() == 0.5,
        lambda y: torch.rand([]) < 1.0,
        lambda y: torch.rand(3, device=y.device).max() <= 1.0,
        lambda y: torch.eye(3, dtype=torch.cfloat, device=y.device).real.sum() == 3,
        lambda y: torch.tensor([1.0, 2.0]).mul(2).max() == 4,
        lambda y: float(torch.full((1,), 0.5, device=y.device)) == 0.5,
        lambda y: torch.zeros_like(torch.arange(3), dtype=torch.float).add(1).nonzero().shape == (3, 1),
    ],
)
def test_values_of_what_forward_makes_are_known(condition):
    with_condition, without = flops(doubled_if(condition)), flops(condition_only(condition))
    assert with_condition - without == DOUBLING


def condition_only(condition: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    """Return a rest that asks, and does nothing with the answer."""

    def rest(y: Tensor) -> Tensor:
        assert condition(y)
        return y

    return rest


def written_through_a_view(y: Tensor) -> Tensor:
    made = torch.zeros(ROWS, WIDTH, device=y.device)
    row = made[0]
    row.fill_(3.0)
    made[1].copy_(made[0])
    return y * 2.0 if made.sum().item() == 2 * 3 * WIDTH and row.max() == 3 else y


def test_views_share_the_values():
    # The sum, the largest of a row and a comparison, beside the doubling
    assert flops(written_through_a_view) == DOUBLING + (N - 1) + (WIDTH - 1) + 1


def new_zeros(y: Tensor) -> Tensor:
    made = torch.arange(3).new_zeros(y.shape, dtype=y.dtype)
    made[:, 1:] = y[:, 1:]
    return made * 2.0


def added_to(y: Tensor) -> Tensor:
    made = torch.zeros(ROWS, WIDTH)
    made += y
    return made


def a_float_mask(y: Tensor) -> Tensor:
    mask = (torch.arange(ROWS) > 2).to(y.dtype)[:, None].repeat(1, WIDTH)
    mask[1:] = y[1:]
    return mask


def requires_grad(y: Tensor) -> Tensor:
    return y[:, :3] @ torch.zeros(3, 3).requires_grad_()


def complex_numbers(y: Tensor) -> Tensor:
    made = torch.zeros(ROWS, 4, dtype=torch.cfloat)
    made[1:] = torch.view_as_complex(y.view(ROWS, 4, 2))[1:]
    return torch.view_as_real(made)


sometimes_doubled = doubled_if(lambda y: torch.rand([]) < 1.0)
PRODUCT = ROWS * 3 * (2 * 3 - 1)


@pytest.mark.parametrize(
    ("rest", "cost"),
    [
        (new_zeros, DOUBLING),
        (added_to, N),
        (a_float_mask, ROWS),  # the comparison
        (requires_grad, PRODUCT + PRODUCT + 3 * 3 * (2 * ROWS - 1)),
        (complex_numbers, 0),
        # Doubling saves nothing, so that one kind of checkpoint has nothing to run again.
        (lambda y: checkpoint(sometimes_doubled, y, use_reentrant=False), DOUBLING + 1),
        (lambda y: checkpoint(sometimes_doubled, y, use_reentrant=True), DOUBLING + N + 2),
    ],
)
def test_what_forward_makes_may_get_gradients(rest, cost):
    assert flops(rest) == cost


def test_a_buffer_may_get_gradients():
    class Running(Net):
        def forward(self, x: Tensor) -> Tensor:
            self.running += x * self.weight
            return self.running * 2.0

    model = Running(doubled_if)
    report = step(model, torch.ones(ROWS, WIDTH))
    assert (report.executed, report.flops) == ("meta", SCALING + N + DOUBLING)
    assert not model.running.any()
    assert model.running.grad_fn is None


def overwritten(y: Tensor) -> Tensor:
    made = torch.zeros(ROWS, WIDTH, device=y.device)
    row = made[0]
    made += y
    return y * 2.0 if row.sum().item() else y


def written_out(y: Tensor) -> Tensor:
    made = torch.zeros(ROWS, WIDTH, device=y.device)
    with torch.no_grad():
        torch.add(y, 1.0, out=made)
    return y * 2.0 if made.sum().item() else y


@pytest.mark.parametrize("rest", [overwritten, written_out])
def test_values_are_lost_with_what_is_written_over_them(rest):
    report = step(Net(rest), torch.ones(ROWS, WIDTH))
    assert report.executed == "real"
    with torch.device("meta"):
        model, x = Net(rest), torch.empty(ROWS, WIDTH)
    with pytest.raises(TraceError, match="needs values"):
        step(model, x)


def test_numbers_that_leave_for_numpy_are_still_reported():
    pytest.importorskip("numpy")
    report = step(Net(doubled_if(lambda y: torch.ones(3).numpy().sum() == 3)), torch.ones(ROWS, WIDTH))
    assert report.unsupported == {"Tensor.numpy": 1}


def test_what_is_known_takes_its_memory_once():
    def rest(y: Tensor) -> Tensor:
        return y + torch.ones(100, ROWS, WIDTH).sum(0)

    for execute in ("meta", "real"):
        report = step(Net(rest), torch.ones(ROWS, WIDTH), execute)
        assert report.peak_memory == (1 + 100 + 1) * N * 4


class Spectral(nn.Module):
    """A Fourier layer: what it makes is complex, and a product with a gradient is written into it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 5, 3, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x)
        out = torch.zeros(x.shape[0], 5, spectrum.shape[-1], dtype=torch.cfloat, device=x.device)
        out[:, :, :3] = torch.einsum("bix,iox->box", spectrum[:, :, :3], self.weight)
        return torch.fft.irfft(out, n=x.shape[-1])


def test_a_fourier_layer_trains_on_meta():
    with torch.device("meta"):
        model, x = Spectral(), torch.empty(2, 4, 16)
    reports = [step(model, x), step(Spectral(), torch.randn(2, 4, 16), "real")]
    assert [report.flops for report in reports] == [6640, 6640]
    # Four real products make a complex one: that of the spectrum, and of the gradient of the weight.
    assert {report.macs for report in reports} == {2 * 4 * (2 * 4 * 5 * 3)}


@pytest.mark.parametrize("name", ["Llama", "Bart"])
def test_a_decoder_trains_on_meta(name):
    transformers = pytest.importorskip("transformers")
    if name == "Llama":
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    else:
        sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 16}
        sizes |= {f"{part}_{what}": n for part in ("encoder", "decoder")
                  for what, n in (("attention_heads", 2), ("ffn_dim", 32))}  # fmt: skip
    config = getattr(transformers, f"{name}Config")(vocab_size=50, **sizes)
    kind = getattr(transformers, f"{name}ForC{'ausalLM' if name == 'Llama' else 'onditionalGeneration'}")
    with torch.device("meta"):
        on_meta = kind(config)
    real, ids = kind(config), torch.zeros(1, 7, dtype=torch.long)
    reports = [step(on_meta, ids), step(real, ids, "real")]
    assert [report.executed for report in reports] == ["meta", "real"]
    assert reports[0].flops == reports[1].flops


class Slope(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.linear(y).tanh() * t


class Adjoint(torch.autograd.Function):
    """Solves an equation by Euler's method; its backward pass solves another one, running the model again."""

    @staticmethod
    def forward(ctx: Any, slope: Slope, y: Tensor, steps: int, *parameters: Tensor) -> Tensor:
        ctx.slope, times = slope, torch.linspace(0.0, 1.0, steps + 1, dtype=y.dtype, device=y.device)
        assert (times[1:] > times[:-1]).all(), "times must increase"
        for now, later in pairwise(times):
            y = y + (later - now) * slope(now, y)
        ctx.save_for_backward(times, y, *parameters)
        return y

    @staticmethod
    def backward(ctx: Any, adjoint: Tensor) -> tuple[Any, ...]:
        times, y, *parameters = ctx.saved_tensors
        totals = [torch.zeros_like(parameter) for parameter in parameters]
        for now, later in zip(times[:-1].flip(0), times[1:].flip(0), strict=True):
            with torch.enable_grad():
                now, y = now.detach().requires_grad_(), y.detach().requires_grad_()
                slope = ctx.slope(now, y)
                wanted = (now, y, *parameters)
                _, by_y, *by_parameters = torch.autograd.grad(slope, wanted, adjoint, retain_graph=True)
            y = y - (later - now) * slope.detach()
            adjoint = adjoint + (later - now) * by_y
            totals = [total + part for total, part in zip(totals, by_parameters, strict=True)]
        return (None, adjoint, None, *totals)


class Solved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.front, self.slope = nn.Linear(8, 8), Slope()

    def forward(self, x: Tensor) -> Tensor:
        return Adjoint.apply(self.slope, self.front(x), 3, *self.slope.parameters())


def test_a_backward_pass_that_runs_the_model_again():
    with torch.device("meta"):
        on_meta, shape = Solved(), torch.empty(4, 8)
    model, x = Solved(), torch.randn(4, 8)
    reports = [step(on_meta, shape), step(model, x), step(model, x, "real")]
    assert [report.executed for report in reports] == ["meta", "meta", "real"]
    assert len({(report.flops, report.macs, report.peak_memory) for report in reports}) == 1
    product = 4 * 8 * 8
    # The front: forward, and the gradient of its weight. The slope: three times forward; three times again,
    # each with a gradient for what it is given and for the weight.
    assert reports[0].modules["front"].macs == 2 * product
    assert reports[0].modules["slope.linear"].macs == 3 * product + 3 * 3 * product
    assert reports[0].macs == 14 * product


@pytest.mark.parametrize("how", [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_spectral_norm_trains_on_shapes(how):
    with torch.device("meta"):
        on_meta, shape = how(nn.Linear(8, 6, bias=False)), torch.empty(4, 8)
    model, x = how(nn.Linear(8, 6, bias=False)), torch.randn(4, 8)
    reports = [step(on_meta, shape), step(model, x), step(model, x, "real")]
    assert [report.executed for report in reports] == ["meta", "meta", "real"]
    assert len({(report.flops, report.peak_memory) for report in reports}) == 1
    # A step of the power iteration (W v and Wᵀ u), the norm uᵀ W v, the layer, and its weight's gradient
    assert {report.macs for report in reports} == {2 * 8 * 6 + (8 * 6 + 6) + 4 * 8 * 6 + 4 * 8 * 6}


def test_a_model_s_buffers_are_put_back_after_training_on_shapes():
    model = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 6))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    step(model, torch.randn(4, 8))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
