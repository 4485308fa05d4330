"""Torchvision's ops and their gradients, on real tensors and on shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pytest_flops import trace
from pytest_flops.formulas import formula_for
from pytest_flops.metrics import Cost

ops = pytest.importorskip("torchvision.ops")

BOXES = torch.tensor([[0.0, 0, 0, 4, 5], [0, 1, 1, 6, 5], [0, 2, 0, 7, 3]])  # image, x, y, x, y
K, N, C, H, W, h, w = 3, 1, 12, 8, 9, 2, 3
SAMPLES = 2
# By op: how it is called, the elements of its result, what its forward and its backward pass cost
REGIONS: dict[str, tuple[Callable[[Tensor], Tensor], int, int, int]] = {
    # a bilinear value is 7, and one more joins the mean; its gradient goes to 4 neighbours, 2 each
    "roi_align": (
        lambda x: ops.roi_align(x, BOXES, (h, w), 1.0, SAMPLES),
        K * C * h * w,
        8 * SAMPLES**2,
        8 * SAMPLES**2,
    ),
    "roi_align-adaptive": (lambda x: ops.roi_align(x, BOXES, (h, w)), K * C * h * w, 8 * 4, 8 * 4),
    "ps_roi_align": (
        lambda x: ops.ps_roi_align(x, BOXES, (h, w), 1.0, SAMPLES),
        K * 2 * h * w,
        8 * SAMPLES**2,
        8 * SAMPLES**2,
    ),
}


def step(run: Callable[[Tensor], Tensor], x: Tensor, execute: Any) -> tuple[int, int, int]:
    report = trace(run, x.clone().requires_grad_(), backward=True, execute=execute)
    assert not report.unsupported
    return report.flops - report.backward_flops, report.backward_flops, report.macs


@pytest.mark.parametrize("execute", ["meta", "real"])
@pytest.mark.parametrize(("run", "results", "forward", "backward"), REGIONS.values(), ids=REGIONS)
def test_regions_that_are_sampled(
    run: Callable[[Tensor], Tensor], results: int, forward: int, backward: int, execute: Any
) -> None:
    x = torch.randn(N, C, H, W)
    assert step(run, x, execute) == (forward * results, backward * results, 0)


@pytest.mark.parametrize("execute", ["meta", "real"])
def test_regions_whose_largest_element_counts(execute: Any) -> None:
    x, results = torch.randn(N, C, H, W), K * C * h * w
    found = step(lambda x: ops.roi_pool(x, BOXES, (h, w)), x, execute)
    assert found == (K * C * H * W, results, 0)  # at most the whole map; one addition each


@pytest.mark.parametrize("execute", ["meta", "real"])
def test_regions_whose_mean_counts(execute: Any) -> None:
    x, results = torch.randn(N, C, H, W), K * 2 * h * w
    found = step(lambda x: ops.ps_roi_pool(x, BOXES, (h, w)), x, execute)
    assert found == (K * C * H * W, results + K * C * H * W, 0)


# -- deformable convolution ----------------------------------------------------------------------------------

CIN, COUT, KH, KW, HO, WO = 2, 3, 2, 3, 4, 5
POSITIONS = 2 * HO * WO  # of two images
TAPS = CIN * KH * KW * POSITIONS  # values under the kernel
RESULTS = COUT * POSITIONS


def deformed(groups: int, masked: bool) -> tuple[tuple[Tensor, ...], int, int, int]:
    """Return the operands, and how many elements weight, offset and mask have."""
    kernel = KH * KW
    x, weight = torch.randn(2, CIN, 5, 7), torch.randn(COUT, CIN, KH, KW)
    offset = torch.randn(2, groups * 2 * kernel, HO, WO)
    mask = torch.randn(2, groups * kernel, HO, WO)
    operands = (x, offset, weight, torch.randn(COUT), *([mask] if masked else []))
    return operands, weight.numel(), offset.numel(), mask.numel()


@pytest.mark.parametrize("execute", ["meta", "real"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_deformable_convolution(groups: int, masked: bool, execute: Any) -> None:
    operands, weights, offsets, masks = deformed(groups, masked)
    tensors = tuple(x.requires_grad_() for x in operands)

    def run(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None = None) -> Tensor:
        return ops.deform_conv2d(x, offset, weight, bias, mask=mask)

    report = trace(run, tensors, backward=True, execute=execute)
    assert not report.unsupported
    products = RESULTS * CIN * KH * KW
    forward = (2 * products - RESULTS) + RESULTS + TAPS * (7 + masked)
    assert report.flops - report.backward_flops == forward
    assert report.macs - report.backward_macs == products
    to_values, to_weight, to_bias = 2 * products - TAPS, 2 * products - weights, RESULTS - COUT
    to_input = TAPS * 8
    to_offset = 2 * TAPS * (2 + 2 + 1) + 2 * TAPS + (2 * TAPS - offsets)  # slopes, times, added up
    to_mask = TAPS + (TAPS - masks)
    assert report.backward_macs == 2 * products
    masking = TAPS  # of the gradients of the values
    assert report.backward_flops == (
        to_values + to_weight + to_bias + to_input + to_offset + masked * (masking + to_mask)
    )


def test_a_gradient_without_elements_costs_nothing_less() -> None:
    formula = formula_for(torch.ops.torchvision._deform_conv2d_backward.default)
    empty = [torch.empty(s) for s in ((0, 3, 4, 5), (0, 2, 5, 7), (3, 2, 2, 3), (0, 12, 4, 5), (0,), (3,))]
    assert formula(*empty, 1, 1, 0, 0, 1, 1, 1, 1, False, out=None) >= Cost(0)  # type: ignore[misc]
