"""Eager memory traffic: the bytes that one op reads and writes, told from its arguments and its results.

Each distinct argument is read once, in the elements that its view addresses; what is new or written into is
written once. A view moves nothing, nor does an op that returns its argument as it is. No cache, no fusion and
no workspace of a kernel is in this: it is what an eager run asks of memory, not what a device's DRAM does.
Under inference mode the rule is that of PyTorch's `torch.distributed._tools.runtime_estimator`, inputs and
outputs of all ops that are no views, but for views that address less, gathers, and what is only overwritten.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload  # the type of `torch.ops.aten.add.Tensor`; torch publishes no alias

from pytest_flops.counting.calls import Call, tensors_in, traits_of
from pytest_flops.counting.live_memory import storage_key, stored_bytes
from pytest_flops.metrics import Cost

# What the schema does not say -------------------------------------------------------------------------------

_KINDS = {
    "makes nothing": """
        empty empty_like empty_strided empty_permuted new_empty new_empty_strided _efficientzerotensor
        resize_ resize_as_ set_ _resize_output_ record_stream _fused_sdp_choice
    """,
    "reads a shape": """
        zeros_like ones_like full_like rand_like randn_like randint_like new_zeros new_ones new_full
        _new_zeros_with_same_feature_meta bernoulli.p
    """,
    "overwrites": """
        copy_ zero_ fill_ _foreach_copy_ _foreach_zero_ uniform_ normal_ random_ exponential_ cauchy_
        geometric_ log_normal_ bernoulli_ _fill_mem_eff_dropout_mask_
    """,
}
"""Ops that give out memory and touch none; that take only the shape from their first argument; that do not
read what they write into."""

_NAMES = {kind: frozenset(names.split()) for kind, names in _KINDS.items()}
_BAGS = ("embedding_bag", "_embedding_bag", "_embedding_bag_forward_only")
_ANSWERS = frozenset({"is_nonzero", "item", "equal", "allclose"})
"""Ops that read tensors and return a plain value, beside those that PyTorch tags so."""


class _Access(NamedTuple):
    """How many bytes of one argument, its first, an op reads and writes."""

    read: int
    written: int


def _taken(call: Call, new: int) -> _Access:
    """An op that takes elements from its first argument reads as many as it returns."""
    return _Access(new, 0)


def _copied(call: Call, new: int) -> _Access:
    """An op that copies a view reads what the view addresses: of overlapping windows no more than all."""
    return _Access(min(new, addressed_bytes(call.args[0])), 0)


def _bagged(call: Call, new: int) -> _Access:
    """An embedding bag reads a row for each index and returns their sums."""
    weight, indices = call.args[:2]
    return _Access(indices.numel() * weight.shape[1] * weight.itemsize, 0)


def _put(elements: Callable[[Call], int], *, accumulates: Callable[[Call], bool]) -> _Rule:
    """Return the rule of an op that writes so many elements into its first argument in place."""

    def rule(call: Call, new: int) -> _Access:
        written = elements(call) * call.args[0].itemsize
        return _Access(written if accumulates(call) else 0, written)

    return rule


_Rule = Callable[[Call, int], _Access]


def _always(call: Call) -> bool:
    return True


def _never(call: Call) -> bool:
    return False


def _asked(position: int, name: str) -> Callable[[Call], bool]:
    """Return whether an argument is given and true: `accumulate=True`, `reduce="add"`."""
    return lambda call: bool(call.argument(position, name))


def _size_of(position: int) -> Callable[[Call], int]:
    """Return the number of elements of an argument: of the index of a `scatter_`, the source of an add."""
    return lambda call: int(call.args[position].numel())


def _slices(call: Call) -> int:
    """Return the elements in the slices that an index selects along a dimension."""
    x, dim, index = call.args[:3]
    return x.numel() // max(x.shape[dim], 1) * index.numel() if x.ndim else 1


def _indexed(call: Call) -> int:
    """Return the elements that lists of indices select: their common shape, times what they leave whole."""
    x, indices, values = call.args[:3]
    given = [index for index in indices if index is not None]
    if any(index.dtype in (torch.bool, torch.uint8) for index in given):  # how many are true is in the values
        return int(values.numel()) if values.numel() > 1 else int(x.numel())
    whole = [n for n, index in zip(x.shape, indices, strict=False) if index is None]
    whole += x.shape[len(indices) :]
    shape = torch.broadcast_shapes(*[index.shape for index in given])  # type: ignore[no-untyped-call]
    return math.prod([*shape, *whole])


_OF_FIRST_ARGUMENT: dict[str, _Rule] = {
    **dict.fromkeys(("embedding", "index", "_unsafe_index", "gather", "index_select", "take"), _taken),
    **dict.fromkeys(("slice_copy", "select_copy", "narrow_copy", "diagonal_copy", "unfold_copy"), _copied),
    **dict.fromkeys(_BAGS, _bagged),
    **dict.fromkeys(("index_put_", "_index_put_impl_"), _put(_indexed, accumulates=_asked(3, "accumulate"))),
    "scatter_": _put(_size_of(2), accumulates=_asked(4, "reduce")),
    "scatter_add_": _put(_size_of(2), accumulates=_always),
    "scatter_reduce_": _put(_size_of(2), accumulates=_always),
    "index_add_": _put(_size_of(3), accumulates=_always),
    "index_reduce_": _put(_size_of(3), accumulates=_always),
    "index_copy_": _put(_size_of(3), accumulates=_never),
    "index_fill_": _put(_slices, accumulates=_never),
    "put_": _put(_size_of(1), accumulates=_asked(3, "accumulate")),
    "fill_diagonal_": _put(lambda call: min(call.args[0].shape), accumulates=_never),
}
"""Gathers read what they take; scatters in place write what they put, and read it where they accumulate."""


class _Habits(NamedTuple):
    """What every call of an op does to memory."""

    moves: bool
    shares: bool
    reads_values: bool
    overwrites: bool
    reads_shape: bool
    first: _Rule | None


@functools.cache
def _habits_of(func: OpOverload) -> _Habits:
    namespace, _, name = func._schema.name.partition("::")
    return _Habits(
        moves=namespace != "profiler"
        and name not in _NAMES["makes nothing"]
        and torch.Tag.inplace_view not in func.tags,
        shares=func.is_view,
        reads_values=torch.Tag.data_dependent_output in func.tags or name in _ANSWERS,
        overwrites=name in _NAMES["overwrites"],
        reads_shape=not _NAMES["reads a shape"].isdisjoint((name, f"{name}.{func._overloadname}")),
        first=_OF_FIRST_ARGUMENT.get(name),
    )


# One call ---------------------------------------------------------------------------------------------------


def with_traffic(call: Call, cost: Cost, new: int) -> Cost:
    """Return the cost of an op that makes so many bytes anew, with its traffic, as one op if it has any."""
    traffic = memory_traffic(call, new)
    return cost._replace(memory_traffic=traffic, ops=1 if traffic else 0)


def memory_traffic(call: Call, new: int) -> int:
    """Return the bytes that a call of an op reads and writes, so many of these in new tensors."""
    habits, traits = _habits_of(call.func), traits_of(call.func)
    if not habits.moves:
        return 0
    mutated = {id(tensor): tensor for tensor in call.mutated}
    if not (new or mutated or habits.reads_values):
        return 0
    arguments = {id(tensor): tensor for tensor in call.tensors}
    unread = {id(call.kwargs.get(name)) for name in traits.outs}
    if habits.overwrites:
        unread.update(mutated)
    first = id(call.tensors[0]) if call.tensors else 0
    if habits.reads_shape:
        unread.add(first)
    access = _Access(0, 0)
    if habits.first is not None and call.args and call.args[0] is call.tensors[0]:
        access = habits.first(call, new)
        unread.add(first)
        mutated.pop(first, None)
    read = _addressed(tensor for key, tensor in arguments.items() if key not in unread)
    return new + sum(access) + read + _addressed(mutated.values())


def new_bytes(call: Call, result: Any) -> int:
    """Return the bytes that a result has anew: none of a view, or of an argument."""
    if isinstance(result, tuple) and _returns_more_than_it_makes(call):
        result = result[0]
    made = {id(tensor): tensor for tensor in tensors_in(result)}
    for tensor in call.tensors:
        made.pop(id(tensor), None)
    if not made:
        return 0
    keys = {*map(storage_key, call.tensors)} - {0}

    def is_view(tensor: Tensor) -> bool:
        key = storage_key(tensor)
        return key in keys if key and keys else _habits_of(call.func).shares

    return _addressed(tensor for tensor in made.values() if not is_view(tensor))


def _returns_more_than_it_makes(call: Call) -> bool:
    """Tell whether an op has results beside its first that some kernels leave empty.

    Those are the statistics of a batch norm that does not train, and the bookkeeping of embedding bags.
    """
    training = traits_of(call.func).training
    return call.func._schema.name.removeprefix("aten::") in _BAGS or (
        training is not None and not call.argument(*training)
    )


def _addressed(tensors: Iterable[Tensor]) -> int:
    return sum(map(addressed_bytes, tensors))


def addressed_bytes(tensor: Tensor) -> int:
    """Return the bytes that a tensor's elements lie in: those of a dimension of stride 0 once."""
    if tensor.layout is not torch.strided:
        return stored_bytes(tensor)
    return _elements(tensor.shape, tensor.stride()) * tensor.itemsize


def _elements(size: Sequence[int], stride: Sequence[int]) -> int:
    """Return how many elements are addressed: no more than there are between the first and the last."""
    elements = span = 1
    for length, step in zip(size, stride, strict=True):
        if not length:
            return 0
        if step:
            elements *= length
            span += (length - 1) * step
    return min(elements, span)
