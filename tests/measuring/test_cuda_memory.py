"""`measure_cuda_memory`: what is read of the allocator, when and of which device; and where there is none."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_flops import MeasurementError, measure_cuda_memory
from pytest_flops.measuring.cuda_memory import CudaAllocator, allocator_of, cuda_memory_of
from pytest_flops.measuring.ready import Ready

X = torch.randn(3, 5)


class Script:
    """An allocator that says what it is told, (before, peak) for each run, and calls back at each peak."""

    def __init__(self, *readings: tuple[int, int], at_peak: Callable[[], Any] = lambda: None) -> None:
        self.readings = list(readings)
        self.at_peak = at_peak

    def restart_peak(self) -> int:
        return self.readings[0][0]

    def peak(self) -> int:
        self.at_peak()
        return self.readings.pop(0)[1]


def scripted(model: Any, script: Script, *, train: bool = False) -> int:
    return cuda_memory_of(Ready.of(model, X, None, train=train), script)


def test_it_is_the_peak_over_what_was_there_before_and_the_warm_up_does_not_count():
    script = Script((100, 9000), (180, 640))
    assert scripted(nn.Linear(5, 4), script) == 460
    assert script.readings == []


def test_the_output_counts():
    outputs: list[weakref.ref[Tensor]] = []
    alive: list[bool] = []

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x + 1
            if not x.is_meta:
                outputs.append(weakref.ref(y))
            return y

    script = Script((0, 1), (0, 1), at_peak=lambda: alive.append(outputs[-1]() is not None))
    scripted(Net(), script)
    assert alive == [True, True]


def test_the_model_runs_as_asked_and_is_left_as_found():
    seen: list[bool] = []
    model = nn.BatchNorm1d(5).eval()
    model.register_forward_pre_hook(lambda module, args: seen.append(module.training))
    scripted(model, Script((0, 1), (0, 1)), train=True)
    assert set(seen) == {True}
    assert not model.training
    assert torch.equal(model.running_mean, torch.zeros(5))


def test_the_allocator_is_read_on_the_model_s_device_after_its_work(monkeypatch):
    log: list[Any] = []
    answers = {"memory_allocated": 100, "max_memory_allocated": 150}
    for name in ("synchronize", "reset_peak_memory_stats", *answers):
        monkeypatch.setattr(
            torch.cuda, name, lambda device, name=name: log.append((name, device)) or answers.get(name)
        )
    second = torch.device("cuda", 1)
    allocator = allocator_of(second, "Net")
    assert isinstance(allocator, CudaAllocator)
    assert (allocator.restart_peak(), allocator.peak()) == (100, 150)
    before = ["synchronize", "reset_peak_memory_stats", "memory_allocated"]
    assert log == [(name, second) for name in (*before, "synchronize", "max_memory_allocated")]


@pytest.mark.parametrize(
    ("available", "way_out"),
    [
        (False, "This machine has none: run the test where there is one, or skip it here."),
        (True, "Move the model to one."),
    ],
)
def test_a_model_on_the_cpu_is_an_error(monkeypatch, available, way_out):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    with pytest.raises(MeasurementError) as caught:
        measure_cuda_memory(nn.Linear(5, 4), X)
    assert str(caught.value) == (
        f"Linear is on cpu: a cuda_memory budget needs a model on a CUDA device. {way_out}"
    )


def test_a_model_on_meta_is_refused():
    with pytest.raises(MeasurementError, match=r"^Cannot measure Linear: it is on meta\."):
        measure_cuda_memory(nn.Linear(5, 4, device="meta"), X)


def test_out_of_memory_names_the_node():
    class Greedy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.repeat(1 << 30, 1 << 12)[:3]

    with pytest.raises(
        MeasurementError, match=r"^Greedy ran out of memory on cpu, at node repeat \(repeat\): "
    ):
        scripted(Greedy(), Script((0, 1)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_peak_is_that_of_the_tensors_alive():
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    model = nn.Sequential(nn.Linear(256, 512, bias=False), nn.ReLU(), nn.Linear(512, 128, bias=False)).to(
        device
    )
    x = torch.randn(1024, 256)  # on the CPU: it is copied before memory is read
    hidden, result = 1024 * 512 * 4, 1024 * 128 * 4
    assert measure_cuda_memory(model, x) in (2 * hidden, hidden + result)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_out_of_memory_names_the_node_and_frees_what_was_taken():
    class Greedy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x + 1).repeat(1 << 30, 1 << 12)

    before = torch.cuda.memory_allocated()
    with pytest.raises(MeasurementError, match=r"out of memory on cuda:0, at node repeat \(repeat\): "):
        measure_cuda_memory(Greedy(), X.cuda())
    assert torch.cuda.memory_allocated() == before
