"""Rows as aligned text: the only room that imports tabulate."""

from __future__ import annotations

from collections.abc import Sequence

MEASURED_COLUMNS = (
    "node_name",
    "node_op",
    "op_target",
    "nn_module_stack[-1]",
    "flops",
    "time(ms)",
    "mem_before_op",
    "mem_after_op",
    "mem_delta",
)
MeasuredRow = Sequence[str | int | float | None]


def measurement_table(rows: Sequence[MeasuredRow], headers: Sequence[str] = MEASURED_COLUMNS) -> str:
    """Return rows of measured nodes, times in ms and memory in bytes; what is None stays empty."""
    from tabulate import tabulate

    return tabulate(
        rows,
        headers,
        tablefmt="rst",
        intfmt=["", "", "", "", ",", "", ",", ",", "+,"],
        floatfmt=".3f",
        missingval="",
        disable_numparse=[0, 1, 2, 3],
    )


def aligned(rows: Sequence[Sequence[str]], headers: Sequence[str], align: str, style: str = "simple") -> str:
    from tabulate import tabulate

    sides = {"l": "left", "r": "right"}
    text = tabulate(
        rows,
        headers=headers,
        tablefmt=style,
        disable_numparse=True,
        colalign=[sides[letter] for letter in align] if rows else None,
    )
    return "\n".join(line.rstrip() for line in text.splitlines())
