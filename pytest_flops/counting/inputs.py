"""What a model is given: its arguments, kept once and fresh for each run."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

# Private, for want of a public one: the structures that PyTorch itself looks into for tensors, with those
# that transformers and others have registered.
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_map

from pytest_flops.counting.descriptions import described
from pytest_flops.counting.places import ATOMS, SHARED, parts_of

_VARIADIC = inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL)


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
            return _copied(leaf, renew)

        args, kwargs = tree_map(renew, (self.args, dict(self.kwargs)))
        return args, kwargs

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments, those that an iterator yields or an object holds included."""
        leaves = tree_leaves(_spread((self.args, dict(self.kwargs))))
        return [part for leaf in leaves for part in parts_of(leaf) if isinstance(part, Tensor)]

    @property
    def on_meta(self) -> bool:
        """Tell whether a tensor among the arguments has no data."""
        return any(tensor.is_meta for tensor in self.tensors)

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
        return tuple(
            line for path, leaf in leaves if leaf is not None for line in described(_place(path), leaf)
        )


def _spread(values: Any) -> Any:
    """Return a structure of arguments with the items of its iterators in place of these."""
    return tree_map(lambda leaf: _spread(leaf.items) if isinstance(leaf, _Replayed) else leaf, values)


def _copied(value: Any, renew: Callable[[Tensor], Tensor]) -> Any:
    """Return a copy of an object that a run may write into; what cannot be copied goes as it is.

    The tensors in it are converted like any other: a cache of keys and values that somebody has filled with
    grad mode on has a history, and a tensor with a history refuses to be copied.
    """
    if type(value) in ATOMS or isinstance(value, SHARED) or callable(value):
        return value
    parts = {id(part): renew(part) if isinstance(part, Tensor) else part for part in parts_of(value)}
    try:
        return copy.deepcopy(value, parts)
    except Exception:  # a lock, a file: whatever a class refuses to copy
        return value


def _place(path: tuple[Any, ...]) -> str:
    """Return where a value is among the arguments, as one writes it: `images[0]`."""
    return f"{path[0].key}{keystr(path[1:])}"
