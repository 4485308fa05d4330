"""What is counted, and what it is given: reaching the model under its wrappers, keeping its arguments."""

from __future__ import annotations

import copy
import inspect
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

# Private, for want of a public one: the structures that PyTorch itself looks into for tensors, with those
# that transformers and others have registered.
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_map

from pytest_flops.counting.live_memory import stored_bytes
from pytest_flops.errors import TraceError

_VARIADIC = inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL)


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
            name = getattr(model, "original_name", None) or getattr(model, "name", type(model).__name__)
            raise TraceError(
                f"{name} is TorchScript, which hides its modules: count the model that torch.jit.script or "
                "torch.jit.trace was called on."
            )
        root = model if isinstance(model, nn.Module) else getattr(model, "__self__", None)
        root = root if isinstance(root, nn.Module) else None
        name = type(model).__name__ if model is root else getattr(model, "__qualname__", type(model).__name__)
        modules = dict(root.named_modules()) if root is not None else {}
        _refuse_lazy(name, modules)
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


@dataclass(frozen=True)
class _Replayed:
    """An iterator among the arguments, read once and given to every run anew."""

    items: list[Any]


@dataclass(frozen=True)
class Inputs:
    """The arguments of one forward pass, ready to be given to several runs."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, args: Any, kwargs: Mapping[str, Any]) -> Inputs:
        """Keep the arguments; what can be read only once is read into a list here."""

        def keep(leaf: Any) -> Any:
            return _Replayed([tree_map(keep, item) for item in leaf]) if isinstance(leaf, Iterator) else leaf

        args = args if type(args) is tuple else (args,)
        kept_args, kept_kwargs = tree_map(keep, (args, dict(kwargs)))
        return cls(kept_args, kept_kwargs)

    def fresh(self, convert: Callable[[Tensor], Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments for one run: tensors converted, objects of other kinds copied.

        A run may write into its arguments (a cache, a batch object): neither the caller nor the next run is
        to see that.
        """

        converted: dict[int, Tensor] = {}

        def renew(leaf: Any) -> Any:
            if isinstance(leaf, Tensor):  # one given twice stays one: attention asks `query is key`
                if id(leaf) not in converted:
                    converted[id(leaf)] = convert(leaf)
                return converted[id(leaf)]
            if isinstance(leaf, _Replayed):
                return iter(tree_map(renew, leaf.items))
            return _copied(leaf)

        args, kwargs = tree_map(renew, (self.args, dict(self.kwargs)))
        return args, kwargs

    @property
    def on_meta(self) -> bool:
        """Tell whether a tensor among the arguments has no data."""
        leaves = tree_leaves(_spread((self.args, dict(self.kwargs))))
        return any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in leaves)

    def named(self, signature: inspect.Signature | None) -> dict[str, Any]:
        """Return the arguments by the names that the model gives them."""
        if signature is None:
            signature = inspect.Signature([_VARIADIC])
        try:
            bound = signature.bind(*self.args, **self.kwargs).arguments
        except TypeError:  # calling the model will say it better
            return {f"args_{i}": arg for i, arg in enumerate(self.args)} | dict(self.kwargs)
        for name, parameter in signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                bound.update(bound.pop(name, {}))
        return bound

    def described(self, signature: inspect.Signature | None) -> tuple[str, ...]:
        """Return a line for each tensor and each plain value given: "x: float32[1, 3, 224, 224]"."""
        leaves = tree_flatten_with_path(_spread(self.named(signature)))[0]
        return tuple(f"{_place(path)}: {_describe(leaf)}" for path, leaf in leaves if leaf is not None)


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


def _unique(tensors: Iterable[Tensor | None]) -> list[Tensor]:
    return list({id(tensor): tensor for tensor in tensors if tensor is not None}.values())


def _signature(function: Any) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def _spread(values: Any) -> Any:
    """Return a structure of arguments with the items of its iterators in place of these."""
    return tree_map(lambda leaf: _spread(leaf.items) if isinstance(leaf, _Replayed) else leaf, values)


def _copied(value: Any) -> Any:
    """Return a copy of an object that a run may write into; what cannot be copied goes as it is."""
    if isinstance(value, (nn.Module, torch.Generator, types.ModuleType)) or callable(value):
        return value
    try:
        return copy.deepcopy(value)
    except Exception:  # a lock, a file, a tensor with a history: whatever a class refuses to copy
        return value


def _place(path: tuple[Any, ...]) -> str:
    """Return where a value is among the arguments, as one writes it: `images[0]`."""
    return f"{path[0].key}{keystr(path[1:])}"


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, (bool, int, float, str, torch.dtype)):
        return repr(value)
    return type(value).__name__
