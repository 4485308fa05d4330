"""`fingerprint`: it tells apart what does not compare, and nothing else."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from pytest_flops import MeasurementError
from pytest_flops.counting.trace import Prepared
from pytest_flops.measuring.machine import cpu_name, fingerprint
from tests.settings import threads

X = torch.randn(3, 5)


def fingerprint_of(model: Any, args: Any, **options: Any) -> str:
    return fingerprint(Prepared.of(model, args), **options)


@pytest.fixture
def on_fast_9000(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., str]:
    """Return `fingerprint_of` on a machine with a processor of this name."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name\t: Fast 9000\n")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX9")
    return partial(fingerprint_of, cpuinfo=cpuinfo)


@pytest.fixture
def precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def mixed() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 5).bfloat16(), nn.Linear(5, 5))


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
def test_the_parts_on_a_cpu(on_fast_9000, model, inputs, threads, expected):
    assert on_fast_9000(model, inputs, threads=threads) == expected


def test_no_number_of_threads_is_that_of_the_process(on_fast_9000):
    with threads(3):
        assert on_fast_9000(nn.ReLU(), X, threads=None) == "Fast 9000, AVX9, 3 threads, float32"


@pytest.mark.usefixtures("precision")
def test_a_lower_precision_of_products_is_named(on_fast_9000):
    torch.set_float32_matmul_precision("high")
    assert on_fast_9000(nn.ReLU(), X) == "Fast 9000, AVX9, 1 thread, float32, high matmul precision"


def test_on_cuda_it_is_the_name_of_the_device(monkeypatch):
    asked: list[Any] = []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: asked.append(device) or "NVIDIA H100")
    # A fake tensor needs no device; but where there are some, it must be one of them.
    device = torch.device("cuda", torch.cuda.device_count() - 1 if torch.cuda.is_available() else 1)
    with FakeTensorMode():
        model = nn.Linear(5, 5, device=device)
    assert fingerprint_of(model, X, threads=4) == "NVIDIA H100, float32"
    assert asked == [device]


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
def test_the_name_of_the_processor(monkeypatch, tmp_path, text, name):
    cpuinfo = tmp_path / "cpuinfo"
    if text is not None:
        cpuinfo.write_text(text)
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert cpu_name(cpuinfo) == name


def test_a_model_on_meta_is_refused():
    with pytest.raises(MeasurementError, match=r"^Cannot measure Linear: it is on meta\."):
        fingerprint_of(nn.Linear(5, 4, device="meta"), X)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_machine_is_named():
    assert fingerprint_of(nn.Linear(5, 5).cuda(), X) == f"{torch.cuda.get_device_name(0)}, float32"
