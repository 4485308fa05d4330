"""What tensors say when a model asks where they are: on shapes what they would say in a real run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_flops import TraceError, trace
from pytest_flops.counting.devices import Devices
from pytest_flops.counting.inputs import Inputs
from pytest_flops.counting.subject import Subject

X, IDS = torch.randn(3, 4), torch.tensor([0, 1, 2])
LINEAR = 3 * 4 * 7 + 3 * 4


class Asks(nn.Module):
    """Runs its Linear(4, 4) three times if the answer is the one that a real run gives, once otherwise."""

    def __init__(self, ask: Callable[[Any, Tensor, Tensor], bool]) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.ask = ask
        self.register_buffer("scale", torch.ones(4))
        self.register_buffer("table", torch.arange(4))
        self.weight = self.lin.weight

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        for _ in range(3 if self.ask(self, x, ids) else 1):
            x = self.lin(x)
        return x


def made(m: Any, x: Tensor, ids: Tensor) -> bool:
    tensors = [x * 2, x[0], x.mT, x.new_zeros(2), torch.ones_like(x), m.weight[ids], ids + 1, m.weight.data]
    tensors += [torch.zeros(3, device=x.device), torch.arange(3), torch.zeros(1 << 13, 1 << 13)]
    return {tensor.device for tensor in tensors} == {x.device}


def autocast(m: Any, x: Tensor, ids: Tensor) -> bool:
    with torch.autocast(x.device.type):
        return torch.is_autocast_enabled(x.device.type)


def draws(m: Any, x: Tensor, ids: Tensor) -> bool:
    generator = torch.Generator(device=x.device)
    noise = torch.randn(x.shape, generator=generator, device=x.device)
    noise = noise + torch.empty_like(x).normal_(generator=generator)
    return (noise * torch.bernoulli(x.sigmoid(), generator=generator)).device == m.weight.device


def under_a_device(m: Any, x: Tensor, ids: Tensor) -> bool:
    with torch.device(x.device):
        return (torch.zeros(3, 4) + x).device == m.scale.device


def values_given(m: Any, x: Tensor, ids: Tensor) -> bool:
    lengths = torch.tensor([2, 3], device=x.device)
    return lengths.max().item() == 3 and (torch.as_tensor([2.0] * 4, device=x.device) + x).device == x.device


def moves(m: Any, x: Tensor, ids: Tensor) -> bool:
    half = x.to(x.device, torch.half)
    kept = x.to(m.weight.device), x.to(m.weight), x.to(x.device, torch.float32), x.to(device="cpu")
    return (
        half.dtype is torch.half and all(moved is x for moved in kept) and m.weight.to(x.device) is m.weight
    )


ASK: dict[str, Callable[[Any, Tensor, Tensor], bool]] = {
    "the device": lambda m, x, ids: x.device == m.weight.device,
    "buffers and whole numbers": lambda m, x, ids: x.device == m.scale.device == m.table.device == ids.device,
    "its type": lambda m, x, ids: x.device.type == "cpu",
    "in words": lambda m, x, ids: f"{x.device}" == f"{m.weight.device}" == "cpu",
    "is_cuda": lambda m, x, ids: not x.is_cuda,
    "is_cpu": lambda m, x, ids: x.is_cpu and m.weight.is_cpu,
    "get_device": lambda m, x, ids: x.get_device() == m.weight.get_device() == torch.get_device(x) == -1,
    "type": lambda m, x, ids: x.type() == m.weight.type() == "torch.FloatTensor",
    "type, as a conversion": lambda m, x, ids: x.type(dtype=torch.half).dtype is x.type(torch.half).dtype,
    "of what is made": made,
    "for autocast": autocast,
    "for a generator": draws,
    "for a default": under_a_device,
    "for values": values_given,
    "for a move": moves,
    "of the module": lambda m, x, ids: next(m.parameters()).device == x.device,
}


@pytest.mark.parametrize("ask", ASK)
@pytest.mark.parametrize("on", ["cpu", "meta"])
@pytest.mark.parametrize("training", [False, True])
def test_answers_are_those_of_a_real_run(ask: str, on: str, training: bool) -> None:
    model, x, ids = Asks(ASK[ask]), X.to(on), IDS.to(on)
    options: dict[str, Any] = {"train": training, "backward": training}
    report = trace(model.to(on), (x, ids), **options)
    assert report.executed == "meta"
    forward = [node.flops - node.backward_flops for node in report.nodes if node.module == "lin"]
    assert forward == [LINEAR] * 3
    if on == "cpu":
        real = trace(model, (x, ids), execute="real", **options)
        assert (real.flops, real.peak_memory) == (report.flops, report.peak_memory)


def test_a_move_to_where_a_tensor_is_takes_no_memory_in_training() -> None:
    plain = trace(Asks(lambda m, x, ids: True), (X, IDS), train=True, backward=True)
    asked = trace(Asks(ASK["for a move"]), (X, IDS), train=True, backward=True)
    assert asked.peak_memory == plain.peak_memory  # the half is gone by then


def test_is_meta_tells_the_truth() -> None:
    """Who asks wants to know whether there are values, and may have a way without."""

    def forward(x: Tensor) -> Tensor:
        assert x.device.type == "cpu"
        return x + 1 if x.is_meta else x + x.max().item()

    report = trace(forward, X)
    assert (report.executed, report.flops) == ("meta", 12)


def test_answers_are_for_the_model_and_not_for_kernels_in_python() -> None:
    def forward(x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():  # as in code that is compiled: no function is seen
            return torch.nn.functional.cosine_similarity(x, x) + x.std()

    report = trace(forward, X)
    assert report.executed == "meta"
    assert report.flops == trace(forward, X, execute="real").flops


def devices(model: Any, *args: Any) -> Devices:
    return Devices(Subject.of(model), Inputs.of(args, {}))


def on(device: str, *size: int) -> Tensor:
    """Return a tensor that only says where it is, for there may be no such device."""

    class Elsewhere(Tensor):
        @property
        def device(self) -> torch.device:  # type: ignore[override]
            return torch.device(device)

        @property
        def is_meta(self) -> bool:  # type: ignore[override]
            return False

    return torch.ones(size).as_subclass(Elsewhere)


def module(*tensors: Tensor) -> nn.Module:
    model = nn.Module()
    for position, tensor in enumerate(tensors):
        model.register_buffer(str(position), tensor)
    model.forward = lambda x: x
    return model


def test_the_device_is_that_of_the_weights() -> None:
    found = devices(module(on("cuda:1", 2), on("cpu")), X)  # a scalar may stay behind on the CPU
    meta = torch.empty(2, device="meta")
    assert found.said == found.of(meta) == found.of(torch.ones(2)) == torch.device("cuda:1")
    assert devices(module(meta), X).said == devices(module(meta), meta).said == torch.device("cpu")
    assert devices(module(meta), on("cuda:0", 2)).said == torch.device("cuda:0")


def test_weights_say_where_they_are() -> None:
    model = module(on("cuda:1", 2), on("cuda:1", 3), on("cpu"))
    found = devices(model, X)
    assert [found.of(tensor) for tensor in model.buffers()] == [torch.device("cuda:1")] * 2 + [
        torch.device("cpu")
    ]


def test_a_model_that_is_spread_and_asks_is_refused_on_shapes() -> None:
    found = devices(module(on("cuda:1", 2), on("cuda:0", 2)), X)
    assert found.said is None
    with pytest.raises(LookupError, match=r"its weights are spread over cuda:0 and cuda:1$"):
        found.of(torch.empty(2, device="meta"))


def test_a_model_that_is_spread_runs_on_real_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Devices, "said", None)
    model = Asks(ASK["the device"])
    monkeypatch.setattr(Devices, "_own", {})
    report = trace(model, (X, IDS))
    assert (report.executed, report.flops) == ("real", 3 * LINEAR)
    assert report.reason.startswith(
        "in its own forward: it asks where a tensor is, and its weights are spread"
    )
    with pytest.raises(TraceError, match="it asks where a tensor is"):
        trace(model, (X, IDS), execute="meta")
    assert trace(Asks(lambda m, x, ids: True), (X, IDS)).executed == "meta"  # who does not ask
