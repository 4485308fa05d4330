"""The marker, and the options of the command line, each of which can stand in the ini file too."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from pytest_flops.budgets.budget import KEYWORDS
from pytest_flops.errors import FlopsError
from pytest_flops.metrics import MEASURED
from pytest_flops.plugin.ledger import Options
from pytest_flops.units import parse_rtol, parse_seconds

_UPDATES = ("new", "changed", "all")
_NO_CUDA = ("error", "skip")


def marker_line() -> str:
    """Return what pytest shows of the marker: its keywords with their defaults, and what it is for."""
    keywords = ", ".join(f"{name}={keyword.default}" for name, keyword in KEYWORDS.items())
    measured = " and ".join(metric.title for metric in MEASURED)
    return (
        f"flops_budget({keywords}): what the models that a test hands to the `flops` fixture may cost. "
        'Ceilings are counts such as 8_300_000_000 or "8.3G", sizes such as "400MiB", times such as "30ms"; '
        'modules={"layer*.0": "900M"} caps the FLOPs of modules by glob; an rtol is the growth over the '
        f"baseline that passes. {measured[0].upper()}{measured[1:]} are measured where they have a ceiling "
        "or an rtol."
    )


class _Update(argparse.Action):
    """`--flops-update` with or without `=MODE`: each spelling is an option of its own, so none takes the word
    behind it, as in `pytest --flops-update tests/test_models.py`."""

    def __init__(self, option_strings: list[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **kwargs)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, (option_string or "").partition("=")[2] or "all")


def add_options(parser: pytest.Parser) -> None:
    """Declare the options. None stands for one that was not given, so that the ini file can speak."""
    group = parser.getgroup("flops", "FLOPs budgets (pytest-flops)")
    group.addoption(
        "--flops-update",
        *(f"--flops-update={mode}" for mode in _UPDATES),
        action=_Update,
        dest="flops_update",
        default=None,
        help="write the baselines that are new, that changed, or all (the default); ceilings still hold",
    )
    for name, text in (
        ("strict", "fail also when a model does less work than its baseline, or what is measured has none"),
        ("prune", "delete baselines that no test uses; only where all tests of a file ran and passed"),
    ):
        group.addoption(f"--flops-{name}", action="store_true", dest=f"flops_{name}", default=None, help=text)
    for name, value, text in (
        ("rtol", "FRACTION", "growth over the baseline that passes where no marker says so (default: 0)"),
        ("time-limit", "SECONDS", "the longest that one measurement of a latency may take (default: 60)"),
        ("no-cuda", "error|skip", "what a CUDA budget does on a machine without CUDA (default: error)"),
    ):
        dest = f"flops_{name.replace('-', '_')}"
        group.addoption(f"--flops-{name}", metavar=value, dest=dest, default=None, help=text)
    parser.addini("flops_update", "write baselines as --flops-update does: new, changed or all", default="")
    parser.addini("flops_strict", "fail also when a model does less work", type="bool", default=False)
    parser.addini("flops_prune", "delete baselines that no test uses", type="bool", default=False)
    parser.addini("flops_rtol", "growth over the baseline that passes, as a fraction of it", default="0")
    parser.addini("flops_time_limit", "the longest that a latency may take to measure, in s", default="60")
    parser.addini("flops_no_cuda", "CUDA budgets on a machine without: error or skip", default="error")


def read_options(config: pytest.Config) -> Options:
    """Return what the command line asks for, and where it says nothing, the ini file.

    Raises `pytest.UsageError` for what is not valid in either.
    """

    def value(name: str) -> Any:
        given = config.getoption(name)
        return config.getini(name) if given is None else given

    update, no_cuda = value("flops_update") or None, value("flops_no_cuda")
    if update is not None and update not in _UPDATES:
        raise pytest.UsageError(f"flops_update = {update}: not valid. Give new, changed or all.")
    if no_cuda not in _NO_CUDA:
        raise pytest.UsageError(f"flops_no_cuda = {no_cuda}: not valid. Give error or skip.")
    try:
        rtol = parse_rtol(value("flops_rtol"), "flops_rtol")
        time_limit = parse_seconds(value("flops_time_limit"), "flops_time_limit")
    except FlopsError as err:
        raise pytest.UsageError(str(err)) from None
    return Options(update, value("flops_strict"), value("flops_prune"), rtol, time_limit, no_cuda)
