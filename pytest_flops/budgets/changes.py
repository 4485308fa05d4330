"""What differs between two baselines of a model: totals, modules, the places of the work. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from pytest_flops.budgets.alignment import Alignment, align, by_path
from pytest_flops.budgets.baseline import Baseline, Costs, Function, Peak, own_costs
from pytest_flops.budgets.finding import Finding, comparison_of, judge
from pytest_flops.metrics import ADDITIVE, METRICS, Metric


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Something else than a cost that differs from the baseline: an input, the mode, a version."""

    what: str
    was: str
    now: str


@dataclass(frozen=True, slots=True)
class ModuleChange:
    """One cost of a module, with all that is inside it, that differs from the baseline."""

    metric: Metric
    path: str
    was: int
    now: int
    grew: bool = False
    """Whether it grew by more than the tolerance."""
    shrank: bool = False
    """Whether it shrank by more than the tolerance."""


@dataclass(frozen=True, slots=True)
class PlaceChange:
    """Work that differs from the baseline, at the place where it is done.

    That is a function that a module calls, or what the module does or holds itself, less what is inside it.
    A module that is new or gone is one place with all that is inside.
    """

    module: str
    """The path of the module: of one that is gone, the path that it had."""
    function: str
    """The name of the function; "" for the module itself."""
    type: str
    """The class of the module."""
    was: Costs | None
    """What it cost; None for what is new."""
    now: Costs | None
    """What it costs; None for what is gone."""

    def delta(self, metric: Metric) -> int:
        """Return by how much one cost changed."""
        return (self.now or {}).get(metric.name, 0) - (self.was or {}).get(metric.name, 0)


@dataclass(frozen=True, slots=True)
class Changes:
    """What differs between two baselines of a model.

    Where they are of other runs (`mismatches`), no cost is compared. `versions` lists differences of the
    counter: no failure, but a reason for one. `totals` has every metric, changed or not. `renamed` modules
    are (was, now). `peaks` are (was, now).
    """

    mismatches: tuple[Mismatch, ...] = ()
    versions: tuple[Mismatch, ...] = ()
    totals: tuple[Finding, ...] = ()
    modules: tuple[ModuleChange, ...] = ()
    places: tuple[PlaceChange, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    peaks: tuple[Peak, Peak] | None = None

    @property
    def any_cost(self) -> bool:
        """Whether anything counted differs, or is done elsewhere."""
        return bool(
            self.modules or self.places or self.renamed or any(finding.changed for finding in self.totals)
        )

    @property
    def uncompared(self) -> tuple[Finding, ...]:
        """Totals that the older baseline lacks: their metrics are younger than it."""
        return tuple(finding for finding in self.totals if finding.uncompared)

    @property
    def grown(self) -> tuple[Finding | ModuleChange, ...]:
        """Totals, then modules, that grew beyond the tolerance."""
        return *(t for t in self.totals if t.grew), *(m for m in self.modules if m.grew)

    @property
    def shrunk(self) -> tuple[Finding | ModuleChange, ...]:
        """Totals, then modules, that shrank beyond the tolerance."""
        return *(t for t in self.totals if t.shrank), *(m for m in self.modules if m.shrank)

    def places_of(self, metric: Metric) -> tuple[PlaceChange, ...]:
        """Return the places where one cost changed, most first."""
        found = [place for place in self.places if place.delta(metric)]
        return tuple(sorted(found, key=lambda place: -abs(place.delta(metric))))


def changes(now: Baseline, was: Baseline, rtol: Mapping[str, str] | None = None) -> Changes:
    """Return what differs between two baselines of a model.

    Growth of a metric by the fraction that `rtol` has for it is tolerated, of one that it lacks none.
    """
    tolerances: dict[str, str | None] = {**dict.fromkeys(METRICS, "0"), **dict(rtol or {})}
    tolerances |= dict.fromkeys(_of_the_version(now, was))
    mismatches, versions = tuple(_mismatches(now, was)), tuple(_versions(now, was))
    if mismatches:
        return Changes(mismatches, versions)
    totals = [
        judge(METRICS[name], now.totals[name], was.totals.get(name), rtol=tolerances[name])
        for name in now.totals
    ]
    if now == was:
        return Changes(versions=versions, totals=tuple(totals))
    aligned = align(now.modules, was.modules) if was.has_types else by_path(now.modules, was.modules)
    return Changes(
        versions=versions,
        totals=tuple(totals),
        modules=tuple(_module_changes(now, was, aligned, tolerances)),
        places=tuple(_place_changes(now, was, aligned)),
        renamed=aligned.renamed,
        peaks=_peaks(now, was, aligned),
    )


def _peaks(now: Baseline, was: Baseline, aligned: Alignment) -> tuple[Peak, Peak] | None:
    """Return both peaks with the owners by their present paths, where the older one has owners.

    One that is gone is called so where another has its path now.
    """
    if not was.peak.owners:
        return None
    paths = {path: f"{path} (gone)" for path in was.peak.owners if path in now.modules}
    paths |= aligned.paths
    return replace(was.peak, owners={paths.get(p, p): n for p, n in was.peak.owners.items()}), now.peak


def _mismatches(now: Baseline, was: Baseline) -> Iterator[Mismatch]:
    if now.mode != was.mode:
        yield Mismatch("mode", was.mode, now.mode)
    if now.inputs != was.inputs:
        yield Mismatch("inputs", ", ".join(was.inputs), ", ".join(now.inputs))


def _versions(now: Baseline, was: Baseline) -> Iterator[Mismatch]:
    if now.formulas != was.formulas:
        yield Mismatch("formulas", str(was.formulas), str(now.formulas))
    if now.torch != was.torch:
        yield Mismatch("torch", was.torch, now.torch)
    for op in sorted(now.own_formulas.keys() | was.own_formulas.keys() if was.has_types else ()):
        before, after = was.own_formulas.get(op, "none"), now.own_formulas.get(op, "none")
        if before != after:
            yield Mismatch(f"the formula of {op}", before, after)


def _compared(now: Baseline, was: Baseline) -> list[Metric]:
    """Return the metrics that both have by module."""
    names = (now.metrics & was.metrics) - {*_of_the_version(now, was)}
    return [metric for metric in ADDITIVE if metric.name in names]


def _of_the_version(now: Baseline, was: Baseline) -> tuple[str, ...]:
    """Return the metrics that another version of torch may change by itself, where it is another.

    Which copies autograd makes is its own affair: FLOPs and peaks of training steps are the same from 2.5 to
    2.14, what they move is not.
    """
    return ("memory_traffic", "ops") if now.torch != was.torch and "backward" in now.mode else ()


def _module_changes(
    now: Baseline, was: Baseline, aligned: Alignment, rtol: Mapping[str, str | None]
) -> Iterator[ModuleChange]:
    """Yield the costs of modules that changed.

    A new module has no baseline to outgrow: the modules around it, which have one, answer for its work.
    """
    for metric in _compared(now, was):
        for path, module in now.modules.items():
            origin = was.modules.get(aligned.origin[path]) if path in aligned.origin else None
            before = origin.costs.get(metric.name, 0) if origin is not None else 0
            after = module.costs.get(metric.name, 0)
            if before == after:
                continue
            comparison = comparison_of(after, before, rtol[metric.name]) if before else "no baseline"
            yield ModuleChange(metric, path, before, after, comparison == "grew", comparison == "shrank")


def _place_changes(now: Baseline, was: Baseline, aligned: Alignment) -> Iterator[PlaceChange]:
    names, paths = [metric.name for metric in _compared(now, was)], aligned.paths
    before = {
        Function(paths[place.module], place.name): costs
        for place, costs in own_costs(was).items()
        if place.module in paths
    }
    after = {place: costs for place, costs in own_costs(now).items() if place.module in aligned.origin}
    for place in {**before, **after}:
        old, new = (_picked(costs.get(place), names) for costs in (before, after))
        if old != new:
            kind = now.modules[place.module].type if place.module in now.modules else ""
            yield PlaceChange(*place, kind, old or None, new or None)
    for path in aligned.gone:
        if gone := _picked(was.modules[path].costs, names):
            yield PlaceChange(path, "", was.modules[path].type, gone, None)
    for path in aligned.new:
        if new := _picked(now.modules[path].costs, names):
            yield PlaceChange(path, "", now.modules[path].type, None, new)


def _picked(costs: Costs | None, names: list[str]) -> dict[str, int]:
    return {name: costs[name] for name in names if costs and costs.get(name)}
