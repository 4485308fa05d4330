"""The suite that `bench_collection.py` runs: many budget tests of a trivial model."""

import json
from pathlib import Path

import pytest
import torch

SHAPE = json.loads(Path(__file__).with_name("shape.json").read_text())
MODEL, X = torch.nn.Linear(3, SHAPE["outputs"]), torch.randn(2, 3)


@pytest.mark.parametrize("number", range(SHAPE["tests"]))
def test_model(number, flops, stopwatch):
    with stopwatch("budget"):
        flops(MODEL, X)
