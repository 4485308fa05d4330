"""What tensors say when a model asks where they are.

In a run on shapes activations are on meta, whole numbers on the CPU, and weights wherever they are. A model
that asks is told the device that it lives on, by all of them, so that it takes the way that it takes when it
really runs. For a model on meta that is the CPU. `is_meta` tells the truth: who asks for it wants to know
whether there are values.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pytest_flops.counting.inputs import Inputs
from pytest_flops.counting.subject import Subject

_CPU = torch.device("cpu")


class Devices:
    """Where the tensors of a run on shapes would be if it were real."""

    def __init__(self, model: Subject, inputs: Inputs) -> None:
        self._model = model
        self._inputs = inputs

    @cached_property
    def _placed(self) -> list[Tensor]:
        """The tensors of the model that are somewhere."""
        tensors = [*self._model.parameters, *self._model.buffers]
        return [tensor for tensor in tensors if not tensor.is_meta]

    @cached_property
    def _own(self) -> dict[int, torch.device]:
        return {id(tensor): tensor.device for tensor in self._placed}

    @cached_property
    def _found(self) -> set[torch.device]:
        """The devices that the model is on. A scalar may stay behind: it mixes with tensors of any device."""
        found = {tensor.device for tensor in self._placed if tensor.ndim} or {*self._own.values()}
        return found or {tensor.device for tensor in self._inputs.tensors if not tensor.is_meta} or {_CPU}

    @cached_property
    def said(self) -> torch.device | None:
        """The device that activations are on; None for a model that is spread over several."""
        return next(iter(self._found)) if len(self._found) == 1 else None

    @cached_property
    def main(self) -> torch.device:
        """The device that activations are on; for a model on several the first of them."""
        return min(self._found, key=str)

    def of(self, tensor: Tensor) -> torch.device:
        """Return where a tensor would be; raise LookupError where the model is on several devices."""
        if id(tensor) in self._own:
            return self._own[id(tensor)]
        if tensor.device.type not in ("meta", "cpu"):
            return tensor.device
        if (said := self.said) is None:
            names = " and ".join(sorted(map(str, self._found)))
            raise LookupError(f"it asks where a tensor is, and its weights are spread over {names}")
        return said

    def moved(self, tensor: Tensor, *rest: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of `Tensor.to` without a device that the tensor says it is on already.

        Under autograd that would be a copy to another device and back, where in truth there is none.
        """
        name = next((name for name in ("device", "other") if name in kwargs), None)
        target = kwargs[name] if name else rest[0] if rest else None
        if isinstance(target, Tensor):
            stays, dtype = self.of(target) == self.of(tensor), target.dtype
        else:
            stays, dtype = self._is_said(target), tensor.dtype
        if not stays:
            return (tensor, *rest), kwargs
        kept = {key: value for key, value in kwargs.items() if key != name}
        rest = rest if name else rest[1:]
        has_dtype = "dtype" in kept or (bool(rest) and isinstance(rest[0], torch.dtype))
        return (tensor, *rest) if has_dtype else (tensor, dtype, *rest), kept

    def _is_said(self, device: Any) -> bool:
        """Tell whether a device, as one writes it ("cuda", 0, "cuda:0"), is that of activations."""
        if self.said is None or not isinstance(device, (str, int, torch.device)) or isinstance(device, bool):
            return False
        return torch.device(device) in (self.said, torch.device(self.said.type))


Answer = Callable[[Devices, Tensor], Any]


def _is_on(kind: str) -> Answer:
    return lambda devices, tensor: devices.of(tensor).type == kind


def _index(devices: Devices, tensor: Tensor) -> int:
    index = devices.of(tensor).index
    return -1 if index is None else index


def _type(devices: Devices, tensor: Tensor) -> str:
    kind = devices.of(tensor).type
    kind = "" if kind == "cpu" else f"{kind}."
    return f"torch.{kind}{tensor.type().rpartition('.')[2]}"


_KINDS = ("cpu", "cuda", "hpu", "ipu", "maia", "mps", "mtia", "vulkan", "xla", "xpu")
ANSWERS: dict[Callable[..., Any], Answer] = {
    Tensor.device.__get__: Devices.of,
    Tensor.get_device: _index,
    getattr(torch, "get_device", Tensor.get_device): _index,
    Tensor.type: _type,
    **{
        getattr(Tensor, f"is_{kind}").__get__: _is_on(kind)
        for kind in _KINDS
        if hasattr(Tensor, f"is_{kind}")
    },
}
"""The questions where a tensor is, by the function that asks, and what answers them."""
