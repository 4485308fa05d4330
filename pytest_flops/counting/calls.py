"""One call of an ATen op: its key for the memo, its tensors, and what its schema says of it."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload  # the type of `torch.ops.aten.add.Tensor`; torch publishes no alias


class Traits(NamedTuple):
    """What an op's schema and tags say of it.

    `mutated` are the arguments that it writes, `statistics` those that it writes in training only, which the
    argument `training` tells; `mask` is the argument that says which results are wanted: by position and
    name.
    """

    mutated: tuple[tuple[int, str], ...]
    statistics: tuple[tuple[int, str], ...]
    training: tuple[int, str] | None
    mask: tuple[int, str] | None
    outs: frozenset[str]
    reads_values: bool
    changes_metadata: bool


# PyTorch leaves the mutation annotation off these arguments of its batch and instance norms.
_STATISTICS = frozenset({"running_mean", "running_var"})
_TRAINING = frozenset({"training", "use_input_stats"})
_CHANGES_METADATA = frozenset({"resize_", "resize_as_", "set_", "as_strided", "as_strided_"})


@functools.cache
def traits_of(func: OpOverload) -> Traits:
    """Return what is true of every call of an op."""
    arguments = [(position, argument.name) for position, argument in enumerate(func._schema.arguments)]
    written = [a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments]
    outs = frozenset(argument.name for argument in func._schema.arguments if argument.is_out)
    return Traits(
        mutated=tuple(place for place, is_written in zip(arguments, written, strict=True) if is_written),
        statistics=tuple(place for place in arguments if place[1] in _STATISTICS),
        training=next((place for place in arguments if place[1] in _TRAINING), None),
        mask=next((place for place in arguments if place[1] == "output_mask"), None),
        outs=outs,
        reads_values=torch.Tag.data_dependent_output in func.tags,
        changes_metadata=(
            torch.Tag.inplace_view in func.tags
            or func._schema.name.removeprefix("aten::") in _CHANGES_METADATA
            or bool(outs)
        ),
    )


class Call(NamedTuple):
    """One call of an ATen op, with its key for the memo and the tensors among its arguments."""

    func: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    key: tuple[object, ...]
    tensors: list[Tensor]

    @classmethod
    def of(cls, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Return the call of an op with these arguments."""
        key: list[object] = [func]
        tensors: list[Tensor] = []
        describe(args, key, tensors)
        if kwargs:
            describe(kwargs.items(), key, tensors)
        if len(tensors) > 1 and len(set(ids := [*map(id, tensors)])) < len(tensors):
            key.append(tuple(map(ids.index, ids)))  # x * x reads less than x * y
        return cls(func, args, kwargs, tuple(key), tensors)

    def on(self, tensors: list[Tensor], device: torch.device) -> Call:
        """Return the call with other tensors in place of its own, and `device` for every device it names."""
        swap = {id(old): new for old, new in zip(self.tensors, tensors, strict=True)}
        args, kwargs = _swap(self.args, swap, device), _swap(self.kwargs, swap, device)
        return self._replace(args=args, kwargs=kwargs, tensors=[swap[id(old)] for old in self.tensors])

    def __call__(self) -> Any:
        return self.func(*self.args, **self.kwargs)

    @property
    def mutated(self) -> list[Tensor]:
        """The tensors that the op writes, by its schema."""
        traits = traits_of(self.func)
        places = traits.mutated
        if traits.statistics and (traits.training is None or self.argument(*traits.training)):
            places += traits.statistics
        return [tensor for place in places for tensor in tensors_in(self.argument(*place))]

    def wanted(self, result: Any) -> Any:
        """Return a result without the parts that nobody asks for: kernels for meta make those too."""
        mask = traits_of(self.func).mask
        if mask is None or not isinstance(result, (tuple, list)):
            return result
        wanted = self.argument(*mask)
        if not isinstance(wanted, (tuple, list)) or len(wanted) != len(result):
            return result
        return type(result)([part if asked else None for part, asked in zip(result, wanted, strict=True)])

    def argument(self, position: int, name: str) -> Any:
        """Return the argument of this name, which has this position; None where it is not given."""
        return self.args[position] if position < len(self.args) else self.kwargs.get(name)

    @property
    def written(self) -> tuple[int, ...]:
        """The positions among `tensors` of those that the op writes; the first, where one is given twice."""
        mutated = self.mutated
        ids = [id(tensor) for tensor in self.tensors] if mutated else []
        return tuple(ids.index(id(tensor)) for tensor in mutated)


def _swap(values: Any, tensors: Mapping[int, Tensor], device: torch.device) -> Any:
    """Replace tensors by the ones given for their ids, and every device by `device`, at any depth."""
    if isinstance(values, Tensor):
        return tensors.get(id(values), values)
    if isinstance(values, torch.device):
        return device
    if type(values) in (tuple, list):
        return type(values)([_swap(value, tensors, device) for value in values])
    if type(values) is dict:
        return {name: _swap(value, tensors, device) for name, value in values.items()}
    return values


def tensors_in(result: Any) -> list[Tensor]:
    """Return the tensors of a result or an argument, at any depth."""
    if isinstance(result, Tensor):  # as it mostly is
        return [result]
    tensors: list[Tensor] = []
    describe((result,), [], tensors)
    return tensors


def describe(values: Collection[Any], key: list[object], tensors: list[Tensor]) -> None:
    """Append what decides an op's result to `key`, and the tensors met on the way to `tensors`."""
    key.extend(map(type, values))  # 1, 1.0 and True are equal as keys and promote dtypes differently
    for value in values:
        if isinstance(value, Tensor):
            key += (value.dtype, value.shape, _stride(value))
            tensors.append(value)
        elif isinstance(value, (list, tuple)):
            key.append(len(value))
            describe(value, key, tensors)
        else:
            key.append(value)


def _stride(tensor: Tensor) -> object:
    try:
        return tensor.stride()
    except RuntimeError:  # sparse: it has none
        return tensor.layout
