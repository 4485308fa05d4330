"""Norms cost the same in training, where they take statistics and count batches, as in eval mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_flops import trace


class Counted(nn.BatchNorm1d):
    """A batch norm that counts its batches otherwise, as older libraries do."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked = self.num_batches_tracked + 1
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training
        )


# By elements of x float32[2, 6, 4], 48 of them: 2 each, and 2 for scale and shift
NORMS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "batch": (lambda: nn.BatchNorm1d(6), 4 * 48),
    "batch-cumulative": (lambda: nn.BatchNorm1d(6, momentum=None), 4 * 48),
    "batch-plain": (lambda: nn.BatchNorm1d(6, affine=False), 2 * 48),
    "batch-untracked": (lambda: nn.BatchNorm1d(6, track_running_stats=False), 4 * 48),
    "batch-counted-otherwise": (lambda: Counted(6), 4 * 48),
    "instance": (lambda: nn.InstanceNorm1d(6, affine=True, track_running_stats=True), 4 * 48),
    "group": (lambda: nn.GroupNorm(2, 6), 4 * 48),
    "layer": (lambda: nn.LayerNorm(4), 4 * 48),
    "rms": (lambda: nn.RMSNorm(4), 4 * 48 + 2 * 12),
}


@pytest.mark.parametrize("execute", ["meta", "real"])
@pytest.mark.parametrize(("build", "flops"), NORMS.values(), ids=NORMS)
def test_train_and_eval_agree(build: Callable[[], nn.Module], flops: int, execute: Any) -> None:
    x = torch.randn(2, 6, 4)
    assert trace(build(), x, execute=execute).flops == flops
    assert trace(build(), x, train=True, execute=execute).flops == flops


def test_train_and_eval_agree_on_a_residual_net() -> None:
    net = pytest.importorskip("torchvision").models.resnet18()
    x = torch.empty(1, 3, 64, 64)
    assert trace(net, x).flops == trace(net, x, train=True).flops
