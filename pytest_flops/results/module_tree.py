"""A tree of modules as HTML, for notebooks: it opens and closes without a line of script."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from html import escape

_OPEN_DEPTH = 2
_BAR_WIDTH = 120  # pixels


@dataclass(frozen=True)
class ModuleTree:
    """Modules by path, each with its class name and its FLOPs; "" is the model, of this name."""

    model: str
    modules: Mapping[str, tuple[str, int]]

    def html(self, lines: Iterable[str]) -> str:
        """Return the tree with each module's share of the FLOPs, below some lines of text."""
        inside: dict[str, list[str]] = {}
        for path in filter(None, self.modules):
            inside.setdefault(self._around(path), []).append(path)
        text = "<br>".join(map(escape, lines))
        return f'<div style="font-family: monospace">{text}{"".join(self._branch(inside, "", 0))}</div>'

    def _around(self, path: str) -> str:
        """Return the path of the module around another: "a" need not be one where there is "a.b"."""
        path = path.rpartition(".")[0]
        while path and path not in self.modules:
            path = path.rpartition(".")[0]
        return path

    def _branch(self, inside: Mapping[str, list[str]], path: str, depth: int) -> Iterator[str]:
        if path not in inside:
            yield f'<div style="margin-left: 2.4em">{self._label(path)}</div>'
            return
        state = " open" if depth < _OPEN_DEPTH else ""
        yield f'<details{state} style="margin-left: 1.2em"><summary>{self._label(path)}</summary>'
        for child in inside[path]:
            yield from self._branch(inside, child, depth + 1)
        yield "</details>"

    def _label(self, path: str) -> str:
        kind, flops = self.modules[path]
        total = self.modules[""][1]
        share = flops / total if total else 0.0
        bar = (
            f'<span style="display: inline-block; width: {_BAR_WIDTH}px; background: #8883">'
            f'<span style="display: block; width: {share:.1%}; background: #4a7ebb">&nbsp;</span></span>'
        )
        around = self._around(path)
        name = path.removeprefix(f"{around}.") if path else self.model
        return f"{bar} {escape(name)} <i>{escape(kind)}</i> {flops:,} FLOPs ({share:.1%})"
