"""What a trace finds: nodes with their cost, and the totals that derive from them.

No torch here: a report outlives the model, is compared, stored and printed without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Op = Literal["placeholder", "call_module", "call_function", "call_method", "output"]
Executed = Literal["meta", "real"]


@dataclass(frozen=True, slots=True)
class Node:
    """One step of the forward pass, as `torch.fx` would name it.

    `module` is the path of the module whose code ran the step ("" for the model itself); for a
    `call_module` node it is the leaf module's own path. `module_type` is that module's class name. `flops`
    and `macs` include the backward pass where it was counted; `backward_flops` and `backward_macs` are its
    part. `peak_memory` is the most that was alive while the step ran (or its backward pass), in bytes: see
    `Report.peak_memory`.
    """

    name: str
    op: Op
    target: str
    module: str
    module_type: str
    flops: int
    macs: int
    backward_flops: int = 0
    backward_macs: int = 0
    peak_memory: int = 0


@dataclass(frozen=True, slots=True)
class ModuleTotal:
    """Inclusive cost of one module: its own steps and those of all modules inside it.

    `peak_memory` is the most that was alive in the whole model while this module ran, in bytes.
    """

    type: str
    flops: int
    macs: int
    peak_memory: int = 0


@dataclass(frozen=True)
class Report:
    """The cost of one forward pass, or of one forward and backward pass.

    `params` counts the elements of all parameters, shared ones once. `inputs` describes each input by the
    name that `forward` gives it: "x: float32[1, 3, 224, 224]", "use_cache: False". `executed` says whether
    the shape-only run sufficed ("meta") or real tensors were needed ("real", with the `reason`).
    `unsupported` maps each ATen op without an answer to its number of calls: where it is not empty, `flops`
    is too low.
    `module_types` maps every module path of the model, in order of registration, to its class name.
    `formulas` and `torch` are the versions that counted. `parameter_memory` is the size of all parameters and
    buffers in bytes, shared ones once.
    """

    model: str
    mode: str
    inputs: tuple[str, ...]
    executed: Executed
    reason: str
    params: int
    nodes: tuple[Node, ...]
    module_types: Mapping[str, str]
    unsupported: Mapping[str, int]
    formulas: int
    torch: str
    parameter_memory: int = 0

    @cached_property
    def flops(self) -> int:
        """Total FLOPs: the sum over the nodes."""
        return sum(node.flops for node in self.nodes)

    @cached_property
    def macs(self) -> int:
        """Total multiply-accumulates of contractions: the sum over the nodes."""
        return sum(node.macs for node in self.nodes)

    @property
    def backward_flops(self) -> int:
        """The part of `flops` that is the backward pass; 0 where it was not counted."""
        return sum(node.backward_flops for node in self.nodes)

    @property
    def backward_macs(self) -> int:
        """The part of `macs` that is the backward pass; 0 where it was not counted."""
        return sum(node.backward_macs for node in self.nodes)

    @cached_property
    def peak_memory(self) -> int:
        """Most bytes of tensors alive at once, over what was there before the model ran.

        These are the tensors that the run makes: activations, and in training what is saved for the backward
        pass, and the gradients. Inputs, parameters and buffers are there before.
        """
        return max((node.peak_memory for node in self.nodes), default=0)

    @property
    def peak_memory_with_parameters(self) -> int:
        """Most bytes of tensors alive at once, the parameters and buffers included."""
        return self.peak_memory + self.parameter_memory

    @cached_property
    def modules(self) -> Mapping[str, ModuleTotal]:
        """Inclusive totals by module path; "" is the model, every path of `module_types` is present.

        A module that runs twice counts twice; a module reachable by several paths counts under the first.
        """
        flops = dict.fromkeys(self.module_types, 0)
        macs, peaks = flops.copy(), flops.copy()
        for node in self.nodes:
            for path in enclosing(node.module):
                if path in flops:  # "a" need not be a module where one is registered as "a.b"
                    flops[path] += node.flops
                    macs[path] += node.macs
                    peaks[path] = max(peaks[path], node.peak_memory)
        return {
            path: ModuleTotal(kind, flops[path], macs[path], peaks[path])
            for path, kind in self.module_types.items()
        }

    @cached_property
    def functions(self) -> Mapping[tuple[str, str], int]:
        """FLOPs of functional work, by (path of the module whose code does it, name of the function).

        With these a module's total is the sum of its functions and of its direct children, and a leaf
        module's total is its own.
        """
        found: dict[tuple[str, str], int] = {}
        for node in self.nodes:
            if node.op in ("call_function", "call_method") and node.flops:
                key = (node.module, base_name(node.name))
                found[key] = found.get(key, 0) + node.flops
        return found

    def table(self) -> str:
        """Return the node table as text, as `torch.fx` prints it, with FLOPs and MACs, and the totals."""
        from pytest_flops.reporting.tables import node_table

        return node_table(self)


def enclosing(path: str) -> Iterator[str]:
    """Yield a module path and the paths of all modules around it, innermost first, "" last."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""


def base_name(node_name: str) -> str:
    """Return a node name without the number that makes it unique: `add_12` is an `add`."""
    head, _, tail = node_name.rpartition("_")
    return head if head and tail.isdigit() else node_name
