"""The model to count, taken out of its wrappers, and the modules and tensors that it is made of."""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pytest_flops.counting.inputs import Inputs
from pytest_flops.counting.live_memory import stored_bytes
from pytest_flops.counting.modes import switch_mode
from pytest_flops.counting.places import Slot, is_atomic
from pytest_flops.counting.reach import Reached, Search, arguments_of
from pytest_flops.counting.sharding import is_sharded, may_be_parallel, refuse_parallel
from pytest_flops.errors import TraceError
from pytest_flops.metrics import Held

_NO_INPUTS = Inputs((), {})


@dataclass(frozen=True)
class Subject:
    """What is counted: something to call, and the modules that it runs."""

    name: str
    called: list[Callable[..., Any]]
    """What is called: in a list, so that a run can put another in its place."""
    signature: inspect.Signature | None
    root: nn.Module | None
    """The module that is called; a function has none."""
    modules: Mapping[str, nn.Module]
    """All modules by path. Those that a function reaches have the names that its code has for them."""
    outermost: Sequence[nn.Module]
    """The modules that are in no other."""
    reached: Reached
    """What else the function and its arguments lead to."""
    parameters: Sequence[Tensor]
    buffers: Sequence[Tensor]

    @classmethod
    def of(cls, model: Any, inputs: Inputs = _NO_INPUTS) -> Subject:
        """Reach the model under its wrappers, or a function's modules; refuse what cannot be seen into."""
        model = _unwrapped(model)
        _refuse(model)
        root = _called_module(model)
        name = type(model).__name__ if model is root else getattr(model, "__qualname__", type(model).__name__)
        name = name.rpartition("<locals>.")[2]
        signature = _signature(root.forward if root is not None and model is root else model)
        called = [model]
        reached = _reached(called, root, inputs, signature)
        outermost, modules = _by_path(root, reached.modules)
        _refuse_lazy(name, modules)
        _refuse_script(name, modules)
        loose = [tensor for tensor in reached.tensors if isinstance(tensor, nn.Parameter)]
        owned = [tensor for module in modules.values() for tensor in module._parameters.values()]
        parameters = _unique([*owned, *loose])
        buffers = _unique(t for module in modules.values() for t in module._buffers.values())
        if may_be_parallel():
            refuse_parallel(name, modules, [*parameters, *buffers, *reached.tensors, *inputs.tensors])
        return cls(
            name=name,
            called=called,
            signature=signature,
            root=root,
            modules=modules,
            outermost=outermost,
            reached=reached,
            parameters=parameters,
            buffers=buffers,
        )

    def set_mode(self, *, train: bool) -> None:
        """Put all modules into training or eval mode; call it inside `preserve.Untouched`."""
        if train or any(module.training for module in self.modules.values()):
            for module in self.outermost:
                switch_mode(module, module.modules(), train=train)

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Call the model; of a generator run the body too, which would run only when somebody asks for it."""
        output = self.called[0](*args, **kwargs)
        return list(output) if isinstance(output, Iterator) else output

    @property
    def symbolic(self) -> list[Tensor]:
        """The tensors that a shape-only run reads the metadata of: parameters and floating buffers."""
        return [*self.parameters, *(b for b in self.buffers if b.is_floating_point() or b.is_complex())]

    @property
    def held(self) -> dict[str, Held]:
        """What each module holds itself, by path: a shared parameter is its first holder's.

        Parameters that a function reaches in no module are its own, at "".
        """
        found: dict[str, Held] = {}
        seen: set[int] = set()
        for path, module in self.modules.items():
            if module._parameters or module._buffers:
                found[path] = _held(module._parameters.values(), module._buffers.values(), seen)
        if any(loose := _held(self.parameters, (), seen)):
            found[""] = Held.total([found.get("", Held()), loose])
        return {path: held for path, held in found.items() if any(held)}

    @property
    def lives_on_meta(self) -> bool:
        """Tell whether a parameter or buffer has no data, so that a run on real tensors is out of reach."""
        return any(tensor.is_meta for tensor in [*self.parameters, *self.buffers])

    @property
    def is_sharded(self) -> bool:
        """Tell whether its parameters are spread over ranks, so that it has no whole ones to run with."""
        return may_be_parallel() and is_sharded(set(map(type, self.modules.values())))

    @property
    def device(self) -> torch.device | None:
        """The one device that all parameters and buffers live on, if there is one."""
        devices = {tensor.device for tensor in [*self.parameters, *self.buffers]}
        return devices.pop() if len(devices) == 1 else None

    @property
    def types(self) -> dict[str, str]:
        """The class name of every module, by path."""
        return {"": self.name} | {path: type(module).__name__ for path, module in self.modules.items()}


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


def _refuse(model: Any) -> None:
    """Refuse what is no model, or none that can be seen into."""
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


def _called_module(model: Any) -> nn.Module | None:
    """Return the module that is called: the model itself, or that of its method, or of a partial."""
    while not isinstance(model, nn.Module):
        if isinstance(model, functools.partial):
            model = model.func
        elif isinstance(model, types.MethodType):
            model = model.__self__
        else:
            return None
    return model


def _reached(
    called: list[Any], root: nn.Module | None, inputs: Inputs, signature: inspect.Signature | None
) -> Reached:
    """Return what a function and the arguments lead to; of a module, or its method, what the arguments do."""
    is_partial, values = isinstance(called[0], functools.partial), (*inputs.args, *inputs.kwargs.values())
    if root is not None and not is_partial and all(isinstance(v, Tensor) or is_atomic(v) for v in values):
        return Reached()  # as it nearly always is
    search, given = Search(exact=True), Search(exact=True, whole=True)
    if root is None:
        search.follow(called[0], slot=Slot(called, 0))
    else:
        search.found.note(Slot(called, 0), called[0])
    own = arguments_of(called[0]) if root is not None and is_partial else {}
    for name, value in (own | inputs.named(signature)).items():
        given.follow(value, (name,))
    search.found.add(given.found)
    return search.found


def _by_path(
    root: nn.Module | None, reached: Mapping[str, nn.Module]
) -> tuple[list[nn.Module], dict[str, nn.Module]]:
    """Return the modules that are in no other, and all modules by path."""
    seen: set[nn.Module] = set()
    found = dict(root.named_modules(seen)) if root is not None else {}
    outermost = [root] if root is not None else []
    inside = {id(m) for module in reached.values() for m in module.modules() if m is not module}
    for path, module in reached.items():
        if module not in seen and id(module) not in inside:
            outermost.append(module)
            found.update(module.named_modules(seen, path if path not in found else f"{path}_1"))
    modules = {path.replace("_orig_mod.", "").removesuffix("._orig_mod"): m for path, m in found.items()}
    return outermost, modules


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


def _held(parameters: Iterable[Tensor | None], buffers: Iterable[Tensor | None], seen: set[int]) -> Held:
    """Return what these come to that were not seen before, and note that they are."""
    elements = nbytes = 0
    for tensors, count in ((parameters, True), (buffers, False)):
        for tensor in tensors:
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                elements += tensor.numel() if count else 0
                nbytes += stored_bytes(tensor)
    return Held(elements, nbytes)


def _signature(function: Any) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None
