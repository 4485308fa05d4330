"""The model to count, taken out of its wrappers, and the modules and tensors that it is made of."""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pytest_flops.counting.live_memory import stored_bytes
from pytest_flops.errors import TraceError


@dataclass(frozen=True)
class Subject:
    """What is counted: something to call, and the modules it is made of."""

    name: str
    call: Callable[..., Any]
    signature: inspect.Signature | None
    root: nn.Module | None
    modules: Mapping[str, nn.Module]
    parameters: Sequence[Tensor]
    buffers: Sequence[Tensor]

    @classmethod
    def of(cls, model: Any) -> Subject:
        """Reach the model under its wrappers, and refuse what cannot be seen into."""
        model = _unwrapped(model)
        if isinstance(model, type):
            raise TraceError(f"{model.__name__} is a class: count an instance of it.")
        if not callable(model):
            raise TraceError(
                f"Cannot count {model!r:.80}: expected a torch.nn.Module, a method of one or a function, "
                f"not {type(model).__name__}."
            )
        if isinstance(model, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
            raise TraceError(
                f"{_script_name(model)} is TorchScript, which hides its modules: count the model that "
                "torch.jit.script or torch.jit.trace was called on."
            )
        root = model if isinstance(model, nn.Module) else getattr(model, "__self__", None)
        root = root if isinstance(root, nn.Module) else None
        name = type(model).__name__ if model is root else getattr(model, "__qualname__", type(model).__name__)
        modules = dict(root.named_modules()) if root is not None else {}
        _refuse_lazy(name, modules)
        _refuse_script(name, modules)
        return cls(
            name=name.rpartition("<locals>.")[2],
            call=model,
            signature=_signature(root.forward if root is not None and model is root else model),
            root=root,
            modules={
                path.replace("_orig_mod.", "").removesuffix("._orig_mod"): m for path, m in modules.items()
            },
            parameters=_unique(t for module in modules.values() for t in module._parameters.values()),
            buffers=_unique(t for module in modules.values() for t in module._buffers.values()),
        )

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Call the model; of a generator run the body too, which would run only when somebody asks for it."""
        output = self.call(*args, **kwargs)
        return list(output) if isinstance(output, Iterator) else output

    @property
    def symbolic(self) -> list[Tensor]:
        """The tensors that a shape-only run reads the metadata of: parameters and floating buffers."""
        return [*self.parameters, *(b for b in self.buffers if b.is_floating_point() or b.is_complex())]

    @property
    def memory(self) -> int:
        """The size of all parameters and buffers in bytes."""
        return sum(map(stored_bytes, [*self.parameters, *self.buffers]))

    @property
    def lives_on_meta(self) -> bool:
        """Tell whether a parameter or buffer has no data, so that a run on real tensors is out of reach."""
        return any(tensor.is_meta for tensor in [*self.parameters, *self.buffers])

    @property
    def device(self) -> torch.device | None:
        """The one device that all parameters and buffers live on, if there is one."""
        devices = {tensor.device for tensor in [*self.parameters, *self.buffers]}
        return devices.pop() if len(devices) == 1 else None

    @property
    def types(self) -> dict[str, str]:
        """The class name of every module, by path."""
        return {path: type(module).__name__ for path, module in self.modules.items()} or {"": self.name}


def _unwrapped(model: Any) -> Any:
    """Return the model that torch.compile or a data-parallel wrapper holds."""
    # Private, and looked up only where something was compiled: importing it costs seconds.
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif compiler is not None and isinstance(model, compiler.OptimizedModule):
            model = model._orig_mod
        elif isinstance(model, types.FunctionType) and hasattr(model, "_torchdynamo_orig_callable"):
            model = model._torchdynamo_orig_callable
        else:
            return model


def _refuse_lazy(name: str, modules: Mapping[str, nn.Module]) -> None:
    for path, module in modules.items():
        if any(parameter is not None and is_lazy(parameter) for parameter in module._parameters.values()):
            where = f"module {path!r} ({type(module).__name__})" if path else "it"
            raise TraceError(
                f"Cannot count {name} yet: {where} has parameters that take their shape from the first "
                "input. Call the model once on real input first."
            )


def _refuse_script(name: str, modules: Mapping[str, nn.Module]) -> None:
    for path, module in modules.items():
        if isinstance(module, torch.jit.ScriptModule):
            raise TraceError(
                f"Cannot count {name}: module {path!r} ({_script_name(module)}) is TorchScript, which hides "
                "its modules. Put in its place what torch.jit.script or torch.jit.trace was called on."
            )


def _script_name(model: Any) -> str:
    """Return the name that something had before it became TorchScript."""
    return str(getattr(model, "original_name", None) or getattr(model, "name", type(model).__name__))


def _unique(tensors: Iterable[Tensor | None]) -> list[Tensor]:
    return list({id(tensor): tensor for tensor in tensors if tensor is not None}.values())


def _signature(function: Any) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None
