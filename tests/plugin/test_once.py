"""The model and its inputs are prepared once for each call of the fixture, and traced once."""

from __future__ import annotations

import pytest

from tests.runs import load_torch

load_torch()
pytestmark = pytest.mark.usefixtures("quick_latency")

CHUNKS = """
SEEN = []

class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 5)

    def forward(self, chunks):
        found = [self.layer(chunk) for chunk in chunks]
        SEEN.append(len(found))
        return sum(found)
"""


@pytest.mark.parametrize("inputs", ["iter(tensors)", "(t for t in tensors)", "map(lambda t: t * 2, tensors)"])
def test_every_timed_run_sees_what_an_iterator_yields(run_inside, inputs):
    body = f"""{CHUNKS}
@pytest.mark.flops_budget(latency="5s", baseline=False)
def test_net(flops):
    tensors = [x(), x(), x()]
    flops(Sum(), {inputs})
    assert len(SEEN) > 7 and set(SEEN) == {{3}}
"""
    run_inside(body).assert_outcomes(passed=1)


@pytest.mark.parametrize("inputs", ["tensors", "iter(tensors)", "(t for t in tensors)"])
def test_an_iterator_of_meta_tensors_is_refused_like_a_list_of_them(run_inside, inputs):
    body = f"""{CHUNKS}
@pytest.mark.flops_budget(latency="5s", baseline=False)
def test_net(flops):
    tensors = [x().to("meta")] * 3
    flops(Sum(), {inputs})
"""
    result = run_inside(body)
    result.assert_outcomes(failed=1)
    wanted = "Cannot measure Sum: an input is on meta, so it has no values. Give it real tensors."
    assert wanted in result.outlines


COUNTING = """
from pytest_flops.counting import trace as room

RUNS = []
attempt = room.Run.attempt

@pytest.fixture(autouse=True)
def count_runs(monkeypatch):
    monkeypatch.setattr(room.Run, "attempt", lambda run, inputs: RUNS.append(run) or attempt(run, inputs))

"""


@pytest.mark.parametrize("options", [[], ["--flops-update"]])
def test_a_gate_that_measures_traces_once(run_inside, options):
    body = f"""{COUNTING}
@pytest.mark.flops_budget(latency_rtol=1000)
def test_net(flops):
    flops(Net(), x())
    assert len(RUNS) == 1
"""
    run_inside(body, "--flops-update").assert_outcomes(passed=1)
    run_inside(None, *options).assert_outcomes(passed=1)


def test_a_model_that_needs_values_runs_for_its_count_once(run_inside):
    body = f"""{COUNTING}
class Picky(nn.Module):
    def forward(self, x):
        return x[x > 0]

@pytest.mark.flops_budget(latency="5s", baseline=False)
def test_net(flops):
    flops(Picky(), x())
    assert len(RUNS) == 2, "on shapes, which do not suffice, and on real tensors"
"""
    run_inside(body).assert_outcomes(passed=1)
