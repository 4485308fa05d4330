"""`fingerprint`: what two measurements must have in common to be compared."""

from __future__ import annotations

import platform
from contextlib import suppress
from pathlib import Path

import torch

from pytest_flops.counting.trace import Prepared
from pytest_flops.measuring.ready import device_of

CPUINFO = Path("/proc/cpuinfo")
"""Where Linux tells what its processors are."""


def fingerprint(prepared: Prepared, *, threads: int | None = 1, cpuinfo: Path = CPUINFO) -> str:
    """Return in one line what makes two measurements of a model comparable, and nothing volatile.

    "AMD EPYC, AVX2, 1 thread, float32" or "NVIDIA H100 80GB HBM3, float32": the name of the device; on the
    CPU the instruction set that PyTorch's kernels use and the number of intra-op `threads` (None: as many as
    PyTorch has now); the floating types of the parameters, or of the inputs where there are none; and the
    precision of float32 matrix products where it is not the default, for it makes them several times faster.

    Left out is what changes without making the model faster or slower (host, date, index of the device), what
    the ratio to the reference workload takes care of (clock, load, a neighbour), and the version of torch: a
    release that makes a model slower is a change worth seeing.

    Raises `MeasurementError` where the model is not on one CPU or CUDA device.
    """
    device = device_of(prepared)
    parts = [torch.cuda.get_device_name(device)] if device.type == "cuda" else _cpu(threads, cpuinfo)
    precision = torch.get_float32_matmul_precision()
    parts += [_dtypes(prepared)] + [f"{precision} matmul precision"] * (precision != "highest")
    return ", ".join(parts)


def _cpu(threads: int | None, cpuinfo: Path) -> list[str]:
    count = torch.get_num_threads() if threads is None else threads
    plural = "thread" if count == 1 else "threads"
    return [cpu_name(cpuinfo), torch.backends.cpu.get_cpu_capability(), f"{count} {plural}"]


def cpu_name(cpuinfo: Path = CPUINFO) -> str:
    """Return the name of the processor; that of its architecture where the system does not tell."""
    with suppress(OSError):
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return " ".join(value.split())
    return platform.processor() or platform.machine() or "unknown CPU"


def _dtypes(prepared: Prepared) -> str:
    """Return the floating types of the parameters; where there are none, of the inputs."""
    for tensors in (prepared.subject.parameters, prepared.inputs.tensors):
        found = {str(t.dtype).removeprefix("torch.") for t in tensors if t.is_floating_point()}
        if found:
            return "+".join(sorted(found))
    return "no floating-point tensors"
