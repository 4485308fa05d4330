"""Models whose parameters are spread over ranks: counted as if they were whole, or refused by name.

A model under `fully_shard` computes with whole parameters, which it gathers before each layer and lets go
after it. It is counted without that: whole parameters on meta stand for the shards, and nothing is
gathered. Tensor parallelism computes with parts, and a count would mix the work of one rank with that of
all.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pytest_flops.counting.op_results import META
from pytest_flops.errors import TraceError


def may_be_parallel() -> bool:
    """Tell whether the code that spreads models over ranks is loaded at all, as it rarely is."""
    return "torch.distributed.tensor" in sys.modules or "torch.distributed.fsdp" in sys.modules


def is_sharded(kinds: Iterable[type]) -> bool:
    """Tell whether one of the classes is one that `fully_shard` made for modules that it was called on."""
    return any(hasattr(kind, "_get_fsdp_state") for kind in kinds)


def refuse_parallel(name: str, modules: Mapping[str, nn.Module], tensors: Collection[Tensor]) -> None:
    """Raise `TraceError` for a model that computes with parts, or takes its tensors apart by itself."""
    fsdp, parts = sys.modules.get("torch.distributed.fsdp"), sys.modules.get("torch.distributed.tensor")
    if fsdp and any(
        issubclass(kind, fsdp.FullyShardedDataParallel) for kind in set(map(type, modules.values()))
    ):
        raise TraceError(
            f"{name} is wrapped in FullyShardedDataParallel, which spreads its parameters over ranks: count "
            "it before it is wrapped."
        )
    if not parts or not any(issubclass(kind, parts.DTensor) for kind in set(map(type, tensors))):
        return
    gathered = {id(shard) for module in modules.values() for shard in _shards_of(module)}
    for tensor in tensors:
        if isinstance(tensor, parts.DTensor) and id(tensor) not in gathered:
            raise TraceError(
                f"{name} is spread over ranks: {_place(tensor, modules)} is a DTensor, and a count would mix "
                "the work of one rank with that of all. Count it before it is parallelized."
            )


def _place(tensor: Tensor, modules: Mapping[str, nn.Module]) -> str:
    for path, module in modules.items():
        for key, owned in (*module._parameters.items(), *module._buffers.items()):
            if owned is tensor:
                return repr(f"{path}.{key}".removeprefix("."))
    return "an argument, or what its code reaches,"


def _shards_of(module: nn.Module) -> Iterator[Tensor]:
    """Yield the parameters that `fully_shard` manages for a module, as far as it found them whole."""
    if is_sharded([type(module)]):
        state: Any = module._get_fsdp_state()  # type: ignore[operator]
        # Private, as the whole state is: of one group of parameters, and in newer versions of several.
        groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
        for group in filter(None, groups):
            yield from (managed.sharded_param for managed in group.fsdp_params if not managed.is_dtensor)


def make_whole(modules: Iterable[nn.Module]) -> None:
    """Let whole parameters on meta stand for shards, and take away the hooks that would gather these.

    `preserve.Untouched`, around this, brings back both.
    """
    parts, whole = sys.modules["torch.distributed.tensor"], dict[int, nn.Parameter]()
    for module in modules:
        for name, parameter in list(module._parameters.items()):
            if isinstance(parameter, parts.DTensor):
                if id(parameter) not in whole:
                    empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=META)
                    whole[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
                setattr(module, name, whole[id(parameter)])
        for hooks in (module._forward_pre_hooks, module._forward_hooks) if is_sharded([type(module)]) else ():
            for key in [
                key for key, hook in hooks.items() if hook.__module__.startswith("torch.distributed.")
            ]:
                del hooks[key]
