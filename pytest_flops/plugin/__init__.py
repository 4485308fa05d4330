"""The pytest plugin: options, marker, fixture and hooks. A table of contents: the work is done elsewhere."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_flops.errors import FlopsError
from pytest_flops.plugin.ledger import Ledger, Options, whole_files
from pytest_flops.plugin.options import add_options, marker_line, read_options

if TYPE_CHECKING:
    from pytest_flops.budgets.budget import Budget
    from pytest_flops.plugin.attempt import Attempt
    from pytest_flops.plugin.fixture import Flops

_OPTIONS: pytest.StashKey[Options] = pytest.StashKey()
_BUDGET: pytest.StashKey[Budget] = pytest.StashKey()
_ATTEMPT: pytest.StashKey[Attempt] = pytest.StashKey()


# Options ----------------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options, each of which can stand in the ini file too."""
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, read the options, and start the bookkeeping of the run."""
    config.addinivalue_line("markers", marker_line())
    config.stash[_OPTIONS] = options = read_options(config)
    config.pluginmanager.register(RunHooks(config, options), "flops-run")


# Collection -------------------------------------------------------------------------------------------------


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Read the budgets of all tests, after every conftest had its say; a wrong one is a collection error."""
    sound = []
    for item in items:
        try:
            if item.get_closest_marker("flops_budget") is not None:
                _budget(item)
        except FlopsError as err:
            text = f"{item.nodeid}: {err}"
            report = pytest.CollectReport(item.nodeid, "failed", longrepr=text, result=[])
            config.hook.pytest_collectreport(report=report)
        else:
            sound.append(item)
    items[:] = sound


def _budget(item: pytest.Item) -> Budget:
    if _BUDGET not in item.stash:
        from pytest_flops.budgets.budget import budget_from

        # A mark of one parameter set is closer than those of the function, which pytest lists first.
        marks = list(item.iter_markers("flops_budget"))
        own = getattr(getattr(item, "callspec", None), "marks", ())
        marks.sort(key=lambda mark: not any(mark is other for other in own))
        rtol = item.config.stash[_OPTIONS].rtol
        item.stash[_BUDGET] = budget_from([(mark.args, mark.kwargs) for mark in marks], rtol)
    return item.stash[_BUDGET]


# Running ----------------------------------------------------------------------------------------------------


@pytest.fixture
def flops(request: pytest.FixtureRequest) -> Flops:
    """Count the FLOPs of a model, flops(model, *inputs), and fail where they break the test's budget."""
    from pytest_flops.plugin.attempt import start_attempt
    from pytest_flops.plugin.fixture import Flops

    item = request.node
    item.stash[_ATTEMPT] = attempt = start_attempt(item, _budget(item), item.config.stash[_OPTIONS])
    return Flops(attempt)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Forget an earlier attempt of the same test, and see that there is CUDA where its budget needs it."""
    if _ATTEMPT in item.stash:
        del item.stash[_ATTEMPT]
    budget = item.stash.get(_BUDGET, None)
    if budget is not None and any(metric.name == "cuda_memory" for metric in budget.measured):
        from pytest_flops.plugin.measure import require_cuda

        require_cuda(skip=item.config.stash[_OPTIONS].no_cuda == "skip")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Conclude a test body that has ended: write what was accepted, and see that something was measured."""
    report = yield
    if call.when == "call":
        attempt = item.stash.get(_ATTEMPT, None)
        if attempt is not None and (attempt.counted or attempt.failure):
            from pytest_flops.plugin.conclude import conclude

            conclude(attempt, report)
            del item.stash[_ATTEMPT]  # pytest keeps all items to the end of the run
        elif report.passed and not hasattr(report, "wasxfail") and item.get_closest_marker("flops_budget"):
            from pytest_flops.plugin.conclude import fail_uncounted

            fail_uncounted(item, report)
    return report


# The run ----------------------------------------------------------------------------------------------------


class RunHooks:
    """The hooks that keep the books of one run; on an xdist worker they only note what was collected."""

    def __init__(self, config: pytest.Config, options: Options) -> None:
        self._config = config
        self._options = options
        self._ledger = Ledger()
        self._counted: dict[Path, int] = {}

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Count the items of each file, to notice when one is left out later."""
        self._counted[item.path] = self._counted.get(item.path, 0) + 1

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note which test files were collected whole: only they can tell that a baseline is not used."""
        complete, tests = whole_files(session.items, self._counted)
        narrowed = self._config.getoption("lf", False) or any("::" in arg for arg in self._config.args)
        self._ledger.collection.merge(complete and not narrowed and not session.testsfailed, tests)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take in what a test found, here or on an xdist worker."""
        self._ledger.note_report(report)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take over what an xdist worker collected."""
        collected = getattr(node, "workeroutput", {}).get("flops")
        if collected is not None:
            self._ledger.collection.merge(*collected)

    def pytest_sessionfinish(self) -> None:
        """Hand what was collected to the xdist controller, or look for baselines that nothing uses."""
        if hasattr(self._config, "workeroutput"):
            collection = self._ledger.collection
            self._config.workeroutput["flops"] = (collection.complete, collection.tests)
        elif self._ledger.collection.tests:
            from pytest_flops.plugin.obsolete import settle

            folders = all((self._start / arg).is_dir() for arg in self._config.args)
            settle(self._ledger, prune=self._options.prune, folders=folders, start=self._start)

    @property
    def _start(self) -> Path:
        return self._config.invocation_params.dir

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the summary: one line when all is well."""
        from pytest_flops.plugin.summary import summary_lines

        for line in summary_lines(self._ledger, self._options, self._config.get_verbosity()):
            terminalreporter.write_line(line)
