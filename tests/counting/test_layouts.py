"""What is laid out channels last on shapes is so on the CPU: later copies, and the peak, depend on it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pytest_flops.counting.shapes import forget
from pytest_flops.counting.trace import trace
from tests.formulas.test_op_db import CASES, samples

KINDS: tuple[Literal["meta"], Literal["real"]] = ("meta", "real")
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def found(
    function: Callable[..., Any], args: tuple[Any, ...], execute: Literal["meta", "real"], **kwargs: Any
) -> tuple[Any, ...]:
    """Return the strides of what a function returns, its cost and its peak."""
    strides: list[Any] = []

    def noting(*given: Any, **named: Any) -> Any:
        result = function(*given, **named)
        strides.append([leaf.stride() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)])
        return result

    forget()
    report = trace(noting, args, execute=execute, **kwargs)
    return strides[-1], report.cost, report.peak_memory


@pytest.mark.parametrize(
    ("function", "size"),
    [
        (lambda x: F.conv2d(x, torch.ones(6, 4, 3, 3)), (2, 4, 8, 8)),
        (lambda x: F.conv2d(x, torch.ones(4, 1, 3, 3), groups=4), (2, 4, 8, 8)),
        (lambda x: F.conv2d(x, torch.ones(6, 4, 3, 3), padding="same"), (2, 4, 8, 8)),
        (lambda x: F.conv_transpose2d(x, torch.ones(4, 6, 3, 3)), (2, 4, 8, 8)),
        (lambda x: F.conv3d(x, torch.ones(6, 4, 3, 3, 3)), (2, 4, 6, 8, 8)),
        (lambda x: F.conv1d(x.flatten(2), torch.ones(6, 4, 3)), (2, 4, 8, 8)),
        (lambda x: F.group_norm(x, 2) * 2, (2, 4, 8, 8)),
        (lambda x: F.pad(x * 2, (1, 1, 1, 1), mode="reflect") * 2, (2, 4, 8, 8)),
        (lambda x: F.pad(x * 2, (1, 1, 1, 1), mode="replicate") * 2, (2, 4, 8, 8)),
        (lambda x: F.pixel_shuffle(x * 2, 2) * 2, (2, 4, 8, 8)),
        (lambda x: F.pixel_unshuffle(x * 2, 2) * 2, (2, 4, 8, 8)),
        (lambda x: F.channel_shuffle(x * 2, 2) * 2, (2, 4, 8, 8)),
        (lambda x: F.max_unpool2d(*F.max_pool2d(x * 2, 2, return_indices=True), 2), (2, 4, 8, 8)),
        (lambda x: F.adaptive_avg_pool2d(x * 2, 3) * 2, (2, 4, 8, 8)),
        (lambda x: F.interpolate(x * 2, scale_factor=2) * 2, (2, 4, 8, 8)),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_channels_last_stay_so(function, size, training):
    x = torch.randn(size).to(memory_format=FORMATS[len(size)]).requires_grad_(training)
    step = {"train": training, "backward": training}
    assert found(function, (x,), "meta", **step) == found(function, (x,), "real", **step)


def test_the_operator_database_lays_out_channels_last_as_the_cpu_does():
    compared, different = 0, []
    for op, dtype in [case.values for case in CASES]:
        for sample in samples(op, dtype, 6):
            x = sample.input
            if not isinstance(x, Tensor) or x.ndim not in FORMATS or not x.numel() or min(x.shape[1:]) < 2:
                continue
            if dtype.is_complex or op.full_name == "nn.functional.conv2d":  # some of these have no batch
                continue
            x = x.detach().contiguous(memory_format=FORMATS[x.ndim])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what torch deprecates
                on_shapes, real = (
                    found(op, (x, *sample.args), execute, kwargs=sample.kwargs)[0] for execute in KINDS
                )
            compared += 1
            different += [op.full_name] if on_shapes != real else []
    assert different == []
    assert compared > 150


@pytest.mark.parametrize(
    "write",
    [
        lambda y: y.add_(y),
        lambda y: y.mul_(y),
        lambda y: y.addcmul_(y, y),
        lambda y: y.copy_(y),
        lambda y: y.lerp_(y, 0.5),
        lambda y: torch.where(y > 0, y, y),
    ],
)
def test_a_tensor_that_meets_itself(write):
    x = torch.randn(8, 16)
    on_shapes, real = (found(lambda x: write(x * 1), (x,), execute) for execute in KINDS)
    assert on_shapes == real
