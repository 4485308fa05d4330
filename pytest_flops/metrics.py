"""What a model can cost: the one list that everything else is read off.

To add one that sums up over operators: a field of `Cost`, an entry in `METRICS`, and the line that counts it.
Its ceiling in `flops_budget` and the help for that, its total in reports and baselines, its column, its words
and its JUnit property follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pytest_flops.units import Unit, delta, parse, shown, size


class Cost(NamedTuple):
    """What adds up over operators. Costs add and scale; an int is plain FLOPs."""

    flops: int = 0
    """Real additions, multiplications, comparisons and elementary functions."""
    macs: int = 0
    """The multiply-accumulates of contractions among them."""
    memory_traffic: int = 0
    """The bytes that an eager run reads and writes."""
    ops: int = 0
    """The operators that read or wrote memory."""

    def __add__(self, other: Cost | int) -> Cost:  # type: ignore[override]  # a sum, not tuple concatenation
        return Cost.total([self, other if isinstance(other, Cost) else Cost(other)])

    def __radd__(self, other: int) -> Cost:
        return self + other

    @property
    def arithmetic(self) -> Cost:
        """The part that is computing, whatever it does to memory."""
        return Cost(self.flops, self.macs)

    def __mul__(self, times: int) -> Cost:  # type: ignore[override]  # scaling, not tuple repetition
        return Cost(*[number * times for number in self])

    @classmethod
    def total(cls, costs: Sequence[Cost]) -> Cost:
        """Return the sum of costs, field by field."""
        if len(costs) == 1:  # most steps run one op
            return costs[0]
        return cls(*map(sum, zip(*costs, strict=True)))


class Held(NamedTuple):
    """What modules hold, whatever they do."""

    params: int = 0
    """The elements of the parameters."""
    parameter_memory: int = 0
    """The bytes of the parameters and buffers."""

    @classmethod
    def total(cls, holdings: Iterable[Held]) -> Held:
        """Return the sum of holdings, field by field."""
        return cls(*map(sum, zip(cls(), *holdings, strict=True)))


Source = Literal["sum", "highest", "held", "measured"]
"""How a total comes about: the sum of a field of `Cost` or of `Held`, the highest of all nodes, or a
measurement, which only a test that asks for it makes."""

Place = Literal["module", "node", "none"]
"""What a failure names: the module with most of the change, the node where it is highest, or nothing."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One thing that a model can cost.

    `name` is the keyword of its ceiling, the attribute of a report and the key in a baseline; `title` is what
    people call it. `is_original` says that every baseline ever written holds it: one that lacks another total
    is older than that metric. `has_column` puts it into the node table.
    """

    name: str
    title: str
    unit: Unit
    source: Source
    place: Place = "none"
    is_original: bool = False
    has_column: bool = False

    @property
    def adds_up(self) -> bool:
        """Whether a module has it, as the sum over what is inside."""
        return self.source in ("sum", "held")

    @property
    def is_measured(self) -> bool:
        """Whether only running the model shows it."""
        return self.source == "measured"

    def parse(self, value: object, keyword: str = "") -> int:
        """Return a limit as people write it; raise `BudgetError` for what is none, naming the keyword."""
        return parse(self.unit, value, keyword or self.name)

    def amount(self, value: int) -> str:
        """Return a value with its words: "106 FLOPs", "1,536 bytes (1.50 KiB) of peak memory"."""
        if self.unit == "count":
            return f"{value:,} {self.title}"
        value_and_unit, parenthesis = f"{value:,} bytes", shown(self.unit, value).removeprefix(f"{value:,}")
        return f"{value_and_unit}{parenthesis} of {self.title}"

    def figure(self, value: int) -> str:
        """Return a value whose words have been said: "106", "1,536 (1.50 KiB)"."""
        return shown(self.unit, value)

    def brief(self, value: int) -> str:
        """Return a value with its words where room is scarce: "106 FLOPs", "1.50 KiB of peak memory"."""
        return f"{value:,} {self.title}" if self.unit == "count" else f"{size(value)} of {self.title}"

    def change(self, was: int, now: int) -> str:
        """Return the change of a total: "40 -> 44 FLOPs: +4 (+10.00%)"."""
        words = self.title if self.unit == "count" else f"bytes of {self.title}"
        return f"{was:,} -> {now:,} {words}: {delta(was, now)}"


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("flops", "FLOPs", "count", "sum", place="module", is_original=True, has_column=True),
        Metric("macs", "MACs", "count", "sum", place="module", is_original=True, has_column=True),
        Metric("params", "params", "count", "held", place="module", is_original=True),
        Metric("parameter_memory", "parameter memory", "bytes", "held", place="module"),
        Metric("memory_traffic", "memory traffic", "bytes", "sum", place="module", has_column=True),
        Metric("ops", "ops", "count", "sum", place="module", has_column=True),
        Metric("peak_memory", "peak memory", "bytes", "highest", place="node"),
        Metric("latency", "latency", "time", "measured"),
        Metric("cuda_memory", "CUDA memory", "bytes", "measured"),
    )
}
"""All metrics by name, in the order in which people read them."""

COUNTED = tuple(metric for metric in METRICS.values() if not metric.is_measured)
"""What every trace finds: the totals of reports and baselines."""

ADDITIVE = tuple(metric for metric in COUNTED if metric.adds_up)
"""What every module has its part of."""

MEASURED = tuple(metric for metric in METRICS.values() if metric.is_measured)
"""What only running shows."""
