"""Which module of a baseline a module of today is, also where layers were put in, taken out or renamed.

Children with numbers for names are a sequence: where its classes are not what they were, it is aligned as a
diff aligns lines, by class and costs first, and what does not match by class, then by place. Others go by
their names, and where a name is new and another gone, by class and costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import takewhile

from pytest_flops.budgets.baseline import Module, parents

_Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Alignment:
    """The modules of two baselines, side by side."""

    origin: Mapping[str, str]
    """The path that a module had, by the path that it has."""
    new: tuple[str, ...]
    """The paths of modules that were not there, less those inside one that is new itself."""
    gone: tuple[str, ...]
    """The paths of modules that are there no more, likewise."""

    @property
    def paths(self) -> dict[str, str]:
        """The path that a module has, by the path that it had."""
        return {was: now for now, was in self.origin.items()}

    @property
    def renamed(self) -> tuple[_Pair, ...]:
        """Modules that go by another name, (was, now), less those in which only a module around them does."""
        return tuple(
            (was, now) for now, was in self.origin.items() if now.rpartition(".")[2] != was.rpartition(".")[2]
        )


def by_path(now: Iterable[str], was: Iterable[str]) -> Alignment:
    """Align modules by their paths alone, as baselines without types allow."""
    return Alignment({path: path for path in {**dict.fromkeys(was), **dict.fromkeys(now)}}, (), ())


def align(now: Mapping[str, Module], was: Mapping[str, Module]) -> Alignment:
    """Align the modules of two baselines from the model downwards."""
    origin, new, gone = {"": ""}, list[str](), list[str]()
    now_below, was_below = _children(now), _children(was)
    waiting = [("", "")]
    while waiting:
        was_parent, parent = waiting.pop(0)
        left, right = was_below.get(was_parent, []), now_below.get(parent, [])
        pairs = list(_pairs(_Side(was, was_parent, left), _Side(now, parent, right)))
        origin.update((after, before) for before, after in pairs)
        gone += [path for path in left if path not in {before for before, _ in pairs}]
        new += [path for path in right if path not in {after for _, after in pairs}]
        waiting += pairs
    return Alignment(origin, tuple(new), tuple(gone))


def _children(modules: Mapping[str, Module]) -> dict[str, list[str]]:
    around = parents(modules)
    found: dict[str, list[str]] = {}
    for path in filter(None, modules):
        found.setdefault(around[path], []).append(path)
    return found


@dataclass(frozen=True)
class _Side:
    """The children of one module in one of the two baselines."""

    modules: Mapping[str, Module]
    parent: str
    paths: Sequence[str]

    def name(self, path: str) -> str:
        """Return the name of a child in its parent."""
        return path.removeprefix(f"{self.parent}.") if self.parent else path

    def whole(self, path: str) -> tuple[object, ...]:
        """Return what tells a child from others: its class and costs."""
        module = self.modules[path]
        return module.type, *sorted(module.costs.items())

    def type(self, path: str) -> tuple[object, ...]:
        """Return the class of a child."""
        return (self.modules[path].type,)

    def numbered(self) -> list[str]:
        """Return the children whose names are numbers, in order."""
        return [path for path in self.paths if self.name(path).isdecimal()]


def _pairs(was: _Side, now: _Side) -> Iterator[_Pair]:
    """Yield the children that are the same module."""
    found: list[_Pair] = []
    before, after = was.numbered(), now.numbered()
    if list(map(was.type, before)) == list(map(now.type, after)):
        found += zip(before, after, strict=True)
    elif before and after:
        found += _in_sequence(was, now, before, after)
    named = {now.name(path): path for path in now.paths if path not in after}
    found += [
        (path, named[was.name(path)]) for path in was.paths if path not in before and was.name(path) in named
    ]
    yield from found
    taken = {path for path, _ in found} | {*before}, {path for _, path in found} | {*after}
    yield from _renamed(
        was, now, [p for p in was.paths if p not in taken[0]], [p for p in now.paths if p not in taken[1]]
    )


def _in_sequence(was: _Side, now: _Side, before: list[str], after: list[str]) -> Iterator[_Pair]:
    """Yield what a diff says is the same: equal in class and costs, or else between these in class or place.

    What is equal at the beginning and at the end is so: among equal layers nothing else tells which is new.
    """
    head = _equal(map(was.whole, before), map(now.whole, after))
    yield from zip(before[:head], after[:head], strict=True)
    before, after = before[head:], after[head:]
    tail = _equal(map(was.whole, reversed(before)), map(now.whole, reversed(after)))
    yield from zip(before[len(before) - tail :], after[len(after) - tail :], strict=True)
    before, after = before[: len(before) - tail], after[: len(after) - tail]
    whole = SequenceMatcher(None, [*map(was.whole, before)], [*map(now.whole, after)], autojunk=False)
    for tag, i1, i2, j1, j2 in whole.get_opcodes():
        if tag == "equal":
            yield from zip(before[i1:i2], after[j1:j2], strict=True)
        if tag == "replace":
            yield from _in_class(was, now, before[i1:i2], after[j1:j2])


def _in_class(was: _Side, now: _Side, before: list[str], after: list[str]) -> Iterator[_Pair]:
    """Yield what a diff of the classes says is the same, and what stands in its place where as many do."""
    types = SequenceMatcher(None, [*map(was.type, before)], [*map(now.type, after)], autojunk=False)
    for _, i1, i2, j1, j2 in types.get_opcodes():
        if i2 - i1 == j2 - j1:
            yield from zip(before[i1:i2], after[j1:j2], strict=True)


def _equal(left: Iterable[object], right: Iterable[object]) -> int:
    """Return how many are equal from the beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))


def _renamed(was: _Side, now: _Side, before: list[str], after: list[str]) -> Iterator[_Pair]:
    """Yield children that have other names, no numbers, and are otherwise equal, and cost something."""
    waiting: dict[tuple[object, ...], list[str]] = {}
    for path in after:
        waiting.setdefault(now.whole(path), []).append(path)
    for path in before:
        if (same := waiting.get(was.whole(path))) and any(was.modules[path].costs.values()):
            yield path, same.pop(0)
