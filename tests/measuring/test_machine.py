"""`fingerprint`: it tells apart what does not compare, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pytest_flops import MeasurementError
from pytest_flops.counting.trace import Prepared
from pytest_flops.measuring import machine
from pytest_flops.measuring.machine import fingerprint

X = torch.randn(3, 5)


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> str:
    """A machine with a processor of this name."""
    name = "Fast 9000"
    monkeypatch.setattr(machine, "_cpu_name", lambda: name)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX9")
    return name


@pytest.fixture
def precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def mixed() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 5).bfloat16(), nn.Linear(5, 5))


def fingerprint_of(model, args, **options):
    return fingerprint(Prepared.of(model, args), **options)


@pytest.mark.usefixtures("processor")
@pytest.mark.parametrize(
    ("model", "inputs", "threads", "expected"),
    [
        (nn.Linear(5, 5), X, 1, "Fast 9000, AVX9, 1 thread, float32"),
        (nn.Linear(5, 5), X, 4, "Fast 9000, AVX9, 4 threads, float32"),
        (nn.Linear(5, 5).half(), X, 1, "Fast 9000, AVX9, 1 thread, float16"),
        (mixed(), X, 1, "Fast 9000, AVX9, 1 thread, bfloat16+float32"),
        (nn.ReLU(), X.double(), 1, "Fast 9000, AVX9, 1 thread, float64"),
        (nn.ReLU(), ([X.half()],), 1, "Fast 9000, AVX9, 1 thread, float16"),
        (nn.ReLU(), X.long(), 1, "Fast 9000, AVX9, 1 thread, no floating-point tensors"),
    ],
)
def test_the_parts_on_a_cpu(model, inputs, threads, expected):
    assert fingerprint_of(model, inputs, threads=threads) == expected


@pytest.mark.usefixtures("processor")
def test_no_number_of_threads_is_that_of_the_process():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert fingerprint_of(nn.ReLU(), X, threads=None) == "Fast 9000, AVX9, 3 threads, float32"
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("processor", "precision")
def test_a_lower_precision_of_products_is_named():
    torch.set_float32_matmul_precision("high")
    assert fingerprint_of(nn.ReLU(), X) == "Fast 9000, AVX9, 1 thread, float32, high matmul precision"


def test_on_cuda_it_is_the_name_of_the_device(monkeypatch):
    asked: list[Any] = []
    second = torch.device("cuda", 1)
    monkeypatch.setattr(machine, "device_of", lambda prepared: second)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: asked.append(device) or "NVIDIA H100")
    assert fingerprint_of(nn.Linear(5, 5), X, threads=4) == "NVIDIA H100, float32"
    assert asked == [second]


def test_this_machine_has_one_that_stays_and_fits_in_a_line():
    found = fingerprint_of(nn.Linear(5, 5), X)
    assert found == fingerprint_of(nn.Linear(7, 7), torch.randn(2, 7))
    assert re.fullmatch(r"\S.*, [A-Z0-9 ]+, 1 thread, float32", found, re.IGNORECASE)
    assert json.loads(json.dumps({found: 1})) == {found: 1}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("processor\t: 0\nmodel name\t: Fast  9000 @ 2 GHz \nmodel name\t: Other\n", "Fast 9000 @ 2 GHz"),
        ("processor\t: 0\nCPU part\t: 0xd0c\n", "aarch64"),  # ARM names none
        (None, "aarch64"),
    ],
)
def test_the_name_of_the_processor(monkeypatch, text, name):
    def read(self: Path) -> str:
        if text is None:
            raise FileNotFoundError
        return text

    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    monkeypatch.setattr(machine.platform, "machine", lambda: "aarch64")
    assert machine._cpu_name() == name


def test_a_model_on_meta_is_refused():
    with pytest.raises(MeasurementError, match=r"^Cannot measure Linear: it is on meta\."):
        fingerprint_of(nn.Linear(5, 4, device="meta"), X)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_machine_is_named():
    assert fingerprint_of(nn.Linear(5, 5).cuda(), X) == f"{torch.cuda.get_device_name(0)}, float32"
