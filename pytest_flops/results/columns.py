"""Tables: rows of values under columns, made text last. The only room that imports tabulate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its header, how its values are written, and whether they stand at the right."""

    header: str
    show: Callable[[Any], str] = str
    right: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of values, in the order of the columns.

    `hidden` more rows were left out; `noun` is what one of them is called. None is an empty cell.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]
    hidden: int = 0
    noun: str = "more row"

    def cut(self, most: int) -> Table:
        """Return the table with its first rows only."""
        return self.keep(range(min(most, len(self.rows))))

    def keep(self, positions: Sequence[int]) -> Table:
        """Return the table with the rows at these positions only."""
        rows = tuple(self.rows[position] for position in positions)
        return replace(self, rows=rows, hidden=self.hidden + len(self.rows) - len(rows))

    @property
    def cells(self) -> list[list[str]]:
        """The rows as text."""
        return [
            [
                "" if value is None else column.show(value)
                for column, value in zip(self.columns, row, strict=True)
            ]
            for row in self.rows
        ]

    def text(self, style: str = "simple") -> str:
        """Return the table as aligned text, in one of tabulate's styles."""
        from tabulate import tabulate

        text = tabulate(
            self.cells,
            headers=[column.header for column in self.columns],
            tablefmt=style,
            disable_numparse=True,
            colalign=["right" if column.right else "left" for column in self.columns] if self.rows else None,
        )
        return "\n".join(line.rstrip() for line in text.splitlines())


def count(value: int) -> str:
    """Return a whole number with its thousands apart."""
    return f"{value:,}"


# The columns of torch_flops ---------------------------------------------------------------------------------

NODE_COLUMNS = (
    Column("node_name"),
    Column("node_op"),
    Column("op_target"),
    Column("nn_module_stack[-1]"),
)
MEASURED_COLUMNS = (
    *NODE_COLUMNS,
    Column("flops", lambda value: value if isinstance(value, str) else count(value), right=True),
    Column("time(ms)", lambda value: f"{value:.3f}", right=True),
    Column("mem_before_op", count, right=True),
    Column("mem_after_op", count, right=True),
    Column("mem_delta", lambda value: f"{value:+,}", right=True),
)
MeasuredRow = Sequence[str | int | float | None]


def measurement_table(rows: Sequence[MeasuredRow]) -> str:
    """Return rows of measured nodes, times in ms and memory in bytes; what is None stays empty."""
    return Table(MEASURED_COLUMNS, tuple(map(tuple, rows))).text("rst")
