"""The text that people read: node tables, tables of what changed, and why a test failed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import NamedTuple

from pytest_flops.baseline import Function
from pytest_flops.budget import Budget, Change, Excess, Mismatch, Unmatched, Verdict, tolerated
from pytest_flops.report import Node, Report, base_name

UNITS = {"flops": "FLOPs", "macs": "MACs", "params": "params"}

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

_CHANGED_ROWS = 10
_DIGEST_ROWS = 24
_NODE_COLUMNS: tuple[str, ...] = ("node_name", "node_op", "op_target", "nn_module_stack[-1]", "flops", "macs")


# Numbers ----------------------------------------------------------------------------------------------------


def delta(was: int, now: int) -> str:
    """Return a change as text: "+4 (+10.00%)", "+4 (new)", "-4 (gone)"."""
    return f"{now - was:+,} ({percent(was, now)})"


def percent(was: int, now: int) -> str:
    """Return a relative change; one that rounds to nothing still shows its direction."""
    if not was or not now:
        return "gone" if was else "new"
    share = 100 * (now - was) / was
    if now != was and abs(share) < 0.005:
        return f"{'+' if share > 0 else '-'}<0.01%"
    return f"{share:+,.2f}%"


def costs(report: Report) -> str:
    """Return the totals of a report in one line."""
    return f"{report.flops:,} FLOPs, {report.macs:,} MACs, {report.params:,} params"


def plural(count: int, noun: str) -> str:
    """Return a count with its noun, as "1 model" or "2 models"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def place_name(path: str) -> str:
    """Return a module path as shown to people."""
    return path or "(model)"


# Nodes ------------------------------------------------------------------------------------------------------


def node_table(report: Report) -> str:
    """Return all nodes of a report and its totals."""
    return "\n".join([_node_rows(report.nodes), "", *_totals(report)])


def node_digest(report: Report, verdict: Verdict) -> str:
    """Return the nodes where something changed and the largest ones, in the order in which they ran."""
    if len(report.nodes) <= _DIGEST_ROWS:
        return node_table(report)
    modules = {change.what for change in verdict.places}
    functions = {change.what for change in verdict.functions}

    def rank(node: Node) -> tuple[bool, int]:
        if node.op == "call_module":
            return node.module in modules, node.flops
        return Function(node.module, base_name(node.name)) in functions, node.flops

    ranked = sorted(range(len(report.nodes)), key=lambda index: rank(report.nodes[index]), reverse=True)
    shown = [report.nodes[index] for index in sorted(ranked[:_DIGEST_ROWS])]
    hidden = len(report.nodes) - len(shown)
    return "\n".join(
        [_node_rows(shown), f"... and {plural(hidden, 'smaller node')}; -vv shows all.", *_totals(report)]
    )


def _node_rows(nodes: Sequence[Node]) -> str:
    columns, align = _NODE_COLUMNS, "llllrr"
    rows: list[tuple[str, ...]] = [
        (node.name, node.op, node.target, node.module_type, f"{node.flops:,}", f"{node.macs:,}")
        for node in nodes
    ]
    if any(node.backward_flops for node in nodes):
        columns, align = (*columns, "of it backward"), align + "r"
        rows = [(*row, f"{node.backward_flops:,}") for row, node in zip(rows, nodes, strict=True)]
    return _table(rows, columns, align, "rst")


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


def _totals(report: Report) -> Iterator[str]:
    yield f"{report.model} ({report.mode}): {costs(report)}"
    if report.backward_flops:
        yield f"Of it backward: {report.backward_flops:,} FLOPs, {report.backward_macs:,} MACs"
    if report.executed == "real":
        yield f"Ran on real tensors: {report.reason}"
    if report.unsupported:
        yield f"Too low: no formula for {_calls(report.unsupported.items())}"


def _calls(unsupported: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{op} ({plural(calls, 'call')})" for op, calls in unsupported)


def _table(rows: Sequence[Sequence[str]], headers: Sequence[str], align: str, style: str = "simple") -> str:
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


# Changes ----------------------------------------------------------------------------------------------------


def change_tables(report: Report, verdict: Verdict, *, full: bool = False) -> Iterator[str]:
    """Yield a table of the modules whose own work changed, then one of the functions; most first.

    Modules around them are left out: they only inherit the change. With `full` no row is dropped.
    """
    modules = [change for change in verdict.places if change.was != change.now]
    functions = sorted(verdict.functions, key=lambda change: (-abs(change.own), change.what))
    if modules:
        rows = [_module_row(report, change) for change in modules]
        yield _cut(rows, ("module", "type", "baseline", "now", "change"), "llrrl", full, "module")
    if functions:
        rows = [_function_row(report, change) for change in functions]
        yield _cut(rows, ("function", "in", "nodes", "baseline", "now", "change"), "lllrrl", full, "function")


def _cut(rows: Sequence[Sequence[str]], headers: Sequence[str], align: str, full: bool, noun: str) -> str:
    shown = rows if full else rows[:_CHANGED_ROWS]
    text = _table(shown, headers, align)
    hidden = len(rows) - len(shown)
    return f"{text}\n... and {plural(hidden, f'more {noun}')}; -vv shows all." if hidden else text


def _module_row(report: Report, change: Change) -> tuple[str, ...]:
    path = str(change.what)
    kind = report.module_types.get(path, "-")
    text = delta(change.was, change.now)
    if change.own != change.now - change.was:
        text = f"{text}, {change.own:+,} its own"
    return place_name(path), kind, f"{change.was:,}", f"{change.now:,}", text


def _function_row(report: Report, change: Change) -> tuple[str, ...]:
    assert isinstance(change.what, Function)
    module, name = change.what
    numbers = f"{change.was:,}", f"{change.now:,}", delta(change.was, change.now)
    return name, place_name(module), _node_names(report, change.what), *numbers


def _node_names(report: Report, function: Function) -> str:
    names = [
        node.name
        for node in report.nodes
        if node.module == function.module and base_name(node.name) == function.name and node.flops
    ]
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} ... {names[-1]} ({len(names)})"


# Failures ---------------------------------------------------------------------------------------------------


def failure_text(
    name: str,
    report: Report,
    verdict: Verdict,
    budget: Budget,
    *,
    accept: str,
    file: str,
    strict: bool = False,
    updating: bool = False,
    full: bool = False,
) -> str:
    """Return why a model fails its budget: limit, fact, place; what changed; the command that accepts it.

    `accept` is that command, `file` the baseline; `updating` says that the run would have written it.
    """
    problems = [
        *([_unsupported(name, verdict.unsupported)] if verdict.unsupported else []),
        *(_unmatched(name, report, unmatched) for unmatched in verdict.unmatched),
        *(_excess(name, excess) for excess in verdict.excesses),
        *_baseline_problems(name, report, verdict, budget, file, strict),
    ]
    blocks = ["\n".join(problems), *change_tables(report, verdict, full=full)]
    blocks += [_versions(verdict.versions)] if verdict.versions else []
    blocks += ["\n".join(_ways_out(verdict, budget, accept, updating))]
    return "\n\n".join(block for block in blocks if block)


def _unsupported(name: str, unsupported: Mapping[str, int]) -> str:
    return f"{name}: every operator needs a FLOP formula, but there is none for {_calls(unsupported.items())}"


def _unmatched(name: str, report: Report, unmatched: Unmatched) -> str:
    if unmatched.near:
        hint = f"near it: {', '.join(unmatched.near)}"
    else:
        paths = [path for path in report.module_types if path]
        hint = (
            f"it has: {', '.join(paths[:6])}{', ...' if len(paths) > 6 else ''}" if paths else "it has none"
        )
    return f'{name}: "{unmatched.glob}" in flops_budget(modules=...) matches no module; {hint}'


def _excess(name: str, excess: Excess) -> str:
    subject, source = name, f"flops_budget {excess.metric}"
    if excess.glob is not None:
        subject = f"{name} {excess.module}".rstrip()
        source = f'flops_budget modules "{excess.glob}"'
    return _limit(subject, "at most", excess.limit, excess.metric, source, excess.now, excess.limit)


def _limit(subject: str, bound: str, limit: int, metric: str, source: str, now: int, base: int) -> str:
    return f"{subject}: {bound} {limit:,} {UNITS[metric]} ({source}), now {now:,}: {delta(base, now)}"


def _baseline_problems(
    name: str, report: Report, verdict: Verdict, budget: Budget, file: str, strict: bool
) -> Iterator[str]:
    if verdict.missing:
        yield f"{name}: no baseline in {file}; now {costs(report)}"
    for mismatch in verdict.mismatches:
        yield (
            f"{name}: not comparable with its baseline, which has other {mismatch.what}\n"
            f"  baseline: {mismatch.was}\n  now:      {mismatch.now}"
        )
    for leading in _leading(verdict, attrgetter("grew")):
        limit = tolerated(leading.change.was, budget.rtol)
        yield _bound(name, leading, verdict, budget, "at most", limit)
    if strict:
        for leading in _leading(verdict, attrgetter("shrank")):
            limit = 2 * leading.change.was - tolerated(leading.change.was, budget.rtol)
            yield _bound(name, leading, verdict, budget, "at least", limit)


class _Leading(NamedTuple):
    """A change that says why a test failed: of a total, or of the FLOPs of the module at `path`."""

    change: Change
    metric: str
    path: str


def _leading(verdict: Verdict, decisive: Callable[[Change], bool]) -> list[_Leading]:
    """Return the decisive totals, and where the total FLOPs are not among them, the innermost modules."""
    totals = [_Leading(change, str(change.what), "") for change in verdict.totals if decisive(change)]
    if any(leading.metric == "flops" for leading in totals):
        return totals
    modules = {str(change.what): change for change in verdict.modules if decisive(change)}
    inner = [path for path in modules if not any(is_inside(other, path) for other in modules.keys() - {path})]
    return totals + [_Leading(modules[path], "flops", path) for path in inner]


def is_inside(path: str, module: str) -> bool:
    """Tell whether a path is that of the module or of one inside it."""
    return not module or path == module or path.startswith(f"{module}.")


def _bound(name: str, leading: _Leading, verdict: Verdict, budget: Budget, bound: str, limit: int) -> str:
    was, now = leading.change.was, leading.change.now
    source = "baseline" if limit == was else f"baseline {was:,}, rtol {budget.rtol}"
    if bound == "at least":
        source += ", strict"
    subject = f"{name} {leading.path}".rstrip()
    return _limit(subject, bound, limit, leading.metric, source, now, was) + _where(leading, verdict)


def _where(leading: _Leading, verdict: Verdict) -> str:
    """Return the place of a change of the total FLOPs: the module with most of it."""
    if leading.metric != "flops" or leading.path or not verdict.places:
        return ""
    rising = leading.change.own > 0
    first, *others = [change for change in verdict.places if (change.own > 0) == rising]
    more = f" and {plural(len(others), 'more module')}" if others else ""
    return f", in {place_name(str(first.what))}{more}"


def _versions(versions: Iterable[Mismatch]) -> str:
    changes = ", ".join(f"{version.what} {version.was} -> {version.now}" for version in versions)
    return f"The counter changed since the baseline ({changes}): the model may be the same."


def _ways_out(verdict: Verdict, budget: Budget, accept: str, updating: bool) -> Iterator[str]:
    if verdict.unsupported:
        yield (
            "Give the operator a formula with pytest_flops.register_flop_formula, or count it as 0 with "
            'flops_budget(unsupported="warn").'
        )
    if verdict.excesses:
        yield "Lower the cost or raise the limit in flops_budget; --flops-update lifts no limit."
    if updating and not verdict.within_limits:
        yield "The baseline was not written."
    elif budget.baseline and not verdict.within_baseline:
        yield f"Accept it: {accept}"
