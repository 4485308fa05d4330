"""Measuring for a budget: what is asked for, how often, and rounded how. The clock is a script."""

from __future__ import annotations

import math
from contextlib import contextmanager

import pytest
import torch

from pytest_flops.budgets.budget import budget_from
from pytest_flops.counting.trace import Mode, Prepared, traced
from pytest_flops.errors import MeasurementError
from pytest_flops.measuring import cuda_memory, latency, machine
from pytest_flops.plugin.measure import measure, require_cuda
from pytest_flops.results.measured import Latency, Measured

MODEL = torch.nn.Linear(2, 3)
X = torch.zeros(1, 2)


@pytest.fixture
def bench(monkeypatch):
    """Return what was asked of the measurers, and let the test say what they answer."""
    return Bench(monkeypatch)


class Bench:
    def __init__(self, monkeypatch):
        self.answers = ()
        self.asked = []
        self.steps = []
        monkeypatch.setattr(latency, "latency_of", self.latency_of)
        monkeypatch.setattr(cuda_memory, "cuda_memory_of", self.cuda_memory_of)
        monkeypatch.setattr(machine, "fingerprint", self.fingerprint)

    def latency_of(self, ready, **options):
        self.asked.append(("latency", ready, options))
        ratio, median_ms = self.answers[len(self.asked) - 1]
        return Latency(ratio, median_ms, 0.012345, 100, 1)

    def cuda_memory_of(self, ready):
        self.asked.append(("cuda_memory", ready, {}))
        return 4096

    def fingerprint(self, prepared, *, threads):
        assert prepared is self.found.prepared
        return f"M, {threads} threads"

    @contextmanager
    def announce(self, text):
        self.steps.append(text)
        yield

    def run(self, *answers, was=None, update=None, **keywords):
        self.answers, self.asked = answers, []
        budget = budget_from([((), keywords)])
        self.found = traced(Prepared.of(MODEL, (X,)), Mode(budget.train))
        return measure(self.found, budget, was or {}, update=update, time_limit=7.0, announce=self.announce)


def baseline(ratio: float) -> dict[str, Measured]:
    return {"M, 1 threads": {"latency": Latency(ratio, 1.0, 0.0, 1, 1)}}


def test_measurers_are_given_the_model_and_what_the_budget_says(bench):
    bench.run((1.0, 1.0), latency_rtol=0.2, latency_threads=2, cuda_memory="1MiB", train=True)
    assert [(name, options) for name, _, options in bench.asked] == [
        ("latency", {"threads": 2, "time_limit": 7.0}),
        ("cuda_memory", {}),
    ]
    for _, ready, _ in bench.asked:
        assert (ready.given, ready.traced, ready.train) == (MODEL, bench.found, True)
    assert bench.steps == ["latency", "CUDA memory"]


@pytest.mark.parametrize(
    ("keywords", "asked"), [({"latency": "1s"}, "latency"), ({"cuda_memory": 9}, "cuda_memory")]
)
def test_only_what_is_asked_for_is_measured(bench, keywords, asked):
    bench.run((1.0, 1.0), **keywords)
    assert [metric for metric, *_ in bench.asked] == [asked]


def test_the_baseline_is_that_of_this_machine_and_number_of_threads(bench):
    stored = baseline(2.0) | {
        "M, 2 threads": {"latency": Latency(1.0, 1.0, 0.0, 1, 1)},
        "N": {"cuda_memory": 5},
    }
    found = bench.run((1.1, 1.0), was=stored, latency_rtol=0.2, latency_threads=2)
    assert (found.machine, found.was) == ("M, 2 threads", stored["M, 2 threads"])
    assert bench.run((1.1, 1.0), was=stored, latency_rtol=0.2, latency_threads=3).was == {}


@pytest.mark.parametrize(
    ("ratios", "ratio", "comparison", "reason"),
    [
        ([2.4], 2.4, "within", "one within the limit is enough"),
        ([9.0, 2.3, 2.4], 2.4, "within", "chance had a hand in one"),
        ([2.5, 2.3, 2.6], 2.5, "grew", "two of three are above the limit"),
        ([2.6, 2.7, 2.5], 2.6, "grew", "all are: the middle one is what people see"),
        ([1.0], 1.0, "shrank", "less breaks nothing"),
    ],
)
def test_a_limit_breaks_by_the_middle_of_three(bench, ratios, ratio, comparison, reason):
    found = bench.run(*((ratio, 1.0) for ratio in ratios), was=baseline(2.0), latency_rtol=0.2)
    assert found.tries == len(ratios) == len(bench.asked), reason
    assert found.now["latency"].ratio == ratio, reason
    assert [finding.comparison for finding in found.findings] == [comparison], reason


@pytest.mark.parametrize(
    ("times", "over"), [([30.0], False), ([99.0, 30.0, 29.0], False), ([31.0, 30.0, 32.0], True)]
)
def test_a_ceiling_breaks_by_the_middle_of_three(bench, times, over):
    found = bench.run(*((1.0, time) for time in times), latency="30ms")
    assert found.tries == len(times) == len(bench.asked)
    assert [finding.over_limit for finding in found.findings] == [over]


@pytest.mark.parametrize(
    ("was", "update", "measured", "reason"),
    [
        (None, "all", 3, "the first on this machine"),
        (None, None, 1, "nothing is written"),
        (None, "changed", 1, "only what has a baseline is written"),
        (2.0, "all", 3, "slower, accepted"),
        (9.0, "all", 3, "faster, locked in"),
        (3.0, "all", 1, "within the tolerance, so nothing is written"),
    ],
)
def test_a_baseline_is_the_middle_of_three(bench, was, update, measured, reason):
    answers = [(3.1, 1.0), (2.9, 1.0), (3.0, 1.0)]
    stored = {} if was is None else baseline(was)
    found = bench.run(*answers, was=stored, update=update, latency_rtol=0.2)
    assert found.tries == measured, reason
    assert found.now["latency"].ratio == (3.0 if measured == 3 else 3.1)


def test_a_latency_is_judged_stored_and_shown_in_the_same_digits(bench):
    found = bench.run((2.40004, 12345.678), was=baseline(2.0), latency_rtol=0.2)
    assert found.now["latency"] == Latency(2.4, 12350.0, 0.012, 100, 1)
    assert found.tries == 1


@pytest.mark.parametrize(
    "answer", [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (0.0, 1.0), (1.0, -1.0)]
)
def test_a_broken_clock_is_an_error(bench, answer):
    with pytest.raises(MeasurementError) as caught:
        bench.run(answer, latency="1s")
    assert str(caught.value) == (
        f"The clock says that a forward pass takes {answer[1]} ms, {answer[0]} times as long as the "
        "reference workload: nothing was measured."
    )


# CUDA -------------------------------------------------------------------------------------------------------


def test_a_cuda_budget_is_an_error_where_there_is_no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(pytest.fail.Exception, match=r"^flops_budget\(cuda_memory=...\): there is no CUDA on"):
        require_cuda(skip=False)
    with pytest.raises(pytest.skip.Exception, match=r"^no CUDA on this machine \(flops_no_cuda = skip\)$"):
        require_cuda(skip=True)


@pytest.mark.parametrize("skip", [True, False])
def test_a_cuda_budget_runs_where_there_is_cuda(monkeypatch, skip):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    require_cuda(skip=skip)
