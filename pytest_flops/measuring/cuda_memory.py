"""`measure_cuda_memory`: how much CUDA memory a forward pass needs beyond what is allocated before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

from pytest_flops.counting.trace import Mode, Prepared, traced
from pytest_flops.errors import MeasurementError
from pytest_flops.measuring.propagate import failures_explained
from pytest_flops.measuring.ready import Ready, device_of


class Allocator(Protocol):
    """Reads what a device's allocator keeps account of, in bytes, once all work on the device is done."""

    def restart_peak(self) -> int:
        """Let the peak start from what is allocated now, and return that."""

    def peak(self) -> int:
        """Return the most that was allocated since."""


class CudaAllocator:
    """PyTorch's caching allocator on one CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def restart_peak(self) -> int:
        """Let the peak start from what is allocated now, and return that."""
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        return torch.cuda.memory_allocated(self.device)

    def peak(self) -> int:
        """Return the most that was allocated since."""
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device)


def allocator_of(device: torch.device, name: str) -> Allocator:
    """Return what reads the allocator of a device, for the model of this name.

    Raises `MeasurementError` where it is no CUDA device, and says whether this machine has one.
    """
    if device.type == "cuda":
        return CudaAllocator(device)
    if torch.cuda.is_available():
        way_out = "Move the model to one."
    else:
        way_out = "This machine has none: run the test where there is one, or skip it here."
    raise MeasurementError(
        f"{name} is on {device}: a cuda_memory budget needs a model on a CUDA device. {way_out}"
    )


def measure_cuda_memory(
    model: Callable[..., Any],
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    train: bool = False,
) -> int:
    """Return the bytes that one forward pass allocates at its peak, over what was allocated before it.

    Parameters, buffers and inputs, which are copied to the model's device, are there before and do not count;
    the outputs do. The arguments are those of `trace`. The model runs once unmeasured, for what it allocates
    only the first time, then once measured, and is left as it was found. This resets the device's peak memory
    statistics.

    Raises `MeasurementError` where the model is not on one CUDA device, runs out of memory (naming the node)
    or loses its device; `TraceError` for what cannot be traced; and whatever the model raises.
    """
    prepared = Prepared.of(model, args, kwargs)
    allocator = allocator_of(device := device_of(prepared), prepared.subject.name)
    return cuda_memory_of(Ready(traced(prepared, Mode(train)), device, train), allocator)


def cuda_memory_of(ready: Ready, allocator: Allocator | None = None) -> int:
    """Return the CUDA memory of a model that is ready, as `measure_cuda_memory` does."""
    allocator = allocator or allocator_of(ready.device, ready.subject.name)
    with failures_explained(ready), ready.contents_kept(), ready.surroundings():
        _peak(ready, allocator)
        return _peak(ready, allocator)


def _peak(ready: Ready, allocator: Allocator) -> int:
    args, kwargs = ready.fresh_inputs()
    before = allocator.restart_peak()
    output = ready.given(*args, **kwargs)
    peak = allocator.peak()
    del output  # alive until the peak is read: it is part of it
    return peak - before
