"""Every module of `torch.nn` has an answer, in eval and in train mode, without gradients and with."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.formulas.conftest import Tally

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's test suite uses what torch deprecates
    from torch.testing._internal.common_modules import ModuleInfo, module_db

# Layout and lookup; dropout in eval mode
FREE = """
    ChannelShuffle Dropout Embedding Flatten Identity Pad PixelShuffle PixelUnshuffle Unflatten Unfold
"""


def is_free(name: str) -> bool:
    return any(kind in name for kind in FREE.split())


def models(info: ModuleInfo, training: bool) -> Iterator[tuple[Any, Any, Any]]:
    inputs = info.module_inputs_func(
        info, device="cpu", dtype=torch.float64, requires_grad=False, training=training
    )
    for each in inputs:
        made = each.constructor_input
        model = info.module_cls(*made.args, **made.kwargs).double().train(training)
        if each.forward_input is not None:
            yield model, each.forward_input.args, each.forward_input.kwargs


@pytest.mark.filterwarnings("ignore")  # modules warn of what they deprecate; their cost is the subject
@pytest.mark.parametrize(
    "training", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eval", "train"]
)
@pytest.mark.parametrize("info", module_db, ids=lambda info: info.name)
def test_has_an_answer(info: ModuleInfo, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mha, "_is_fastpath_enabled", False)  # as while tracing
    most = 0
    for model, args, kwargs in models(info, training):
        with Tally() as step:  # first, for lazy modules get their parameters here
            model(*args, **kwargs)
        with torch.inference_mode(), Tally() as whole:
            model(*args, **kwargs)
        assert not whole.unsupported
        assert not step.unsupported
        most = max(most, whole.cost.flops)
    assert most or is_free(info.name), f"{info.name} computes, but counts nothing"
