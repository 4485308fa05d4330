"""Running a model on its own device, and leaving it as it was found: what every measurement does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytest_flops.counting.inputs import Inputs
from pytest_flops.counting.op_results import META
from pytest_flops.counting.preserve import Untouched
from pytest_flops.counting.subject import Subject
from pytest_flops.counting.trace import Mode, Prepared, Run, Traced, traced
from pytest_flops.errors import MeasurementError


@dataclass(frozen=True)
class Ready:
    """A model that has been traced, and its device: ready to run on real tensors."""

    traced: Traced
    """The trace, which knows what running it takes: does it write parameters, does it need autograd."""
    device: torch.device
    """Where it runs."""
    train: bool = False
    """Whether it runs in training mode."""

    @classmethod
    def of(
        cls, model: Callable[..., Any], args: Any, kwargs: Mapping[str, Any] | None, *, train: bool = False
    ) -> Ready:
        """Trace a model on the device that it lives on.

        Raises `MeasurementError` where it is not on one device that can be measured; else as `trace` does.
        """
        prepared = Prepared.of(model, args, kwargs)
        device = device_of(prepared)
        return cls(traced(prepared, Mode(train)), device, train)

    @property
    def given(self) -> Callable[..., Any]:
        """The model as the user gave it, compiled if it was."""
        return self.traced.prepared.given

    @property
    def subject(self) -> Subject:
        """What is under its wrappers."""
        return self.traced.prepared.subject

    @property
    def inputs(self) -> Inputs:
        """Its arguments."""
        return self.traced.prepared.inputs

    @property
    def run(self) -> Run:
        """The run that counted it."""
        return self.traced.run

    @contextmanager
    def contents_kept(self) -> Iterator[None]:
        """Put back, at the end of the block, what runs write into buffers and parameters."""
        with _put_back([*self.subject.buffers, *filter(self.run.wrote, self.subject.parameters)]):
            yield

    def fresh_inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments for one run, on the model's device."""
        return self.inputs.fresh(lambda tensor: tensor.detach().to(self.device, copy=True))

    def surroundings(self) -> Untouched:
        """Return what sets up a run: eval or training mode, and no gradients unless the model takes some."""
        return Untouched(self.subject.modules.values(), self.subject.reached, self._set_up)

    def _set_up(self, found: Untouched) -> None:
        self.subject.set_mode(train=self.train)
        found.process.inference_mode(self.run.inference).__enter__()
        torch._C._set_grad_enabled(not self.run.inference)


def device_of(prepared: Prepared) -> torch.device:
    """Return the one device that a model lives on; that of its inputs where it has no tensors.

    Raises `MeasurementError` where there is more than one, or one other than a CPU or a CUDA device.
    """
    subject = prepared.subject
    if subject.is_sharded:
        raise MeasurementError(
            f"Cannot measure {subject.name}: fully_shard spread its parameters over ranks. Measure it before."
        )
    own = {tensor.device for tensor in [*subject.parameters, *subject.buffers]}
    given = {tensor.device for tensor in prepared.inputs.tensors}
    if META in given - own:
        raise MeasurementError(
            f"Cannot measure {subject.name}: an input is on meta, so it has no values. Give it real tensors."
        )
    devices = own or given or {torch.device("cpu")}
    if len(devices) > 1:
        names = ", ".join(sorted(map(str, devices)))
        raise MeasurementError(
            f"Cannot measure {subject.name}: it is spread over {names}. Move it to one device."
        )
    device = devices.pop()
    if device.type not in ("cpu", "cuda"):
        raise MeasurementError(f"Cannot measure {subject.name}: it is on {device}. Move it to cpu or cuda.")
    return device


def is_out_of_memory(err: BaseException) -> bool:
    """Tell whether an allocator failed; the CPU's raises a plain RuntimeError."""
    return isinstance(err, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(err)


def is_device_failure(err: BaseException) -> bool:
    """Tell whether a CUDA device is at fault, not the model; older torch raises a plain RuntimeError."""
    return isinstance(err, getattr(torch, "AcceleratorError", ())) or str(err).startswith("CUDA error")


def first_line(err: BaseException) -> str:
    """Return what an exception says in a line; the name of its class where it says nothing."""
    return (str(err).strip() or type(err).__name__).splitlines()[0]


@contextmanager
def _put_back(tensors: Iterable[Tensor]) -> Iterator[None]:
    saved = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, contents in saved:
                tensor.copy_(contents)
