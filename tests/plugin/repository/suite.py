import pytest
import torch
from nets import EDIT, Conv, Lm, Mixer, Mlp


@pytest.mark.flops_budget(train=True)
def test_mlp(flops):
    flops(Mlp(), torch.randn(8, 32))


@pytest.mark.flops_budget(train=True, backward=True)
def test_conv(flops):
    size = 48 if EDIT == "input size" else 32
    flops(Conv(), torch.randn(2, 3, size, size))


def test_lm(flops):
    flops(Lm(), torch.zeros(2, 16, dtype=torch.long))


def test_mixer(flops):
    flops(Mixer(), torch.randn(64, 16))
