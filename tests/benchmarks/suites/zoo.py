"""The suite that `bench_zoo.py` runs: every timm model, built on meta and budgeted for its own input size."""

import json
from pathlib import Path

import pytest
import timm
import torch

NAMES = json.loads(Path(__file__).with_name("names.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_model(name, flops, stopwatch):
    with stopwatch("construction"), torch.device("meta"):
        model = stopwatch.watch(timm.create_model(name).eval())
        image = torch.empty(1, *model.pretrained_cfg["input_size"])
    with stopwatch("budget"):
        flops(model, image)
