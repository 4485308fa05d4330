"""Budgets over models of timm.

A count needs shapes and no weights, so the models are built on the meta device: a large one costs as little
as a small one. The same model on the CPU or on a GPU has the same count.
"""

import pytest
import timm
import torch


def build(name):
    with torch.device("meta"):
        return timm.create_model(name)


@pytest.fixture
def image():
    return torch.empty(1, 3, 224, 224, device="meta")


# Ceilings hold whatever the baseline says. A glob caps each module that it matches, and `*` crosses dots.
@pytest.mark.flops_budget(
    flops="8.3G", macs="4.1G", params="25.6M", modules={"layer4": "2G", "layer?.0": "1.5G"}
)
def test_resnet50(flops, image):
    flops(build("resnet50"), image)


# One test may check several models when each has a name. Fused attention scales the scores, unfused attention
# the queries, which are fewer: 12 blocks x 12 heads x 197 x (197 - 64) multiplications apart.
@pytest.mark.flops_budget(modules={"blocks.*.mlp": "2G"})
def test_vit_base_patch16_224(flops, image):
    model = build("vit_base_patch16_224")
    fused = flops.named("fused attention")(model, image)
    for block in model.blocks:
        block.attn.fused_attn = False
    unfused = flops.named("unfused attention")(model, image)
    assert fused.flops - unfused.flops == 12 * 12 * 197 * (197 - 64)


# With a tolerance, growth by up to 1 % passes and is listed by `pytest -v`.
@pytest.mark.flops_budget(rtol=0.01)
@pytest.mark.parametrize(
    "name", ["swin_tiny_patch4_window7_224", "convnext_tiny", "efficientnet_b0", "mobilenetv3_large_100"]
)
def test_small_models(flops, image, name):
    flops(build(name), image)


# torch.fx cannot follow an `if` on a shape or a value. Here the forward pass is run, not followed.
def test_maxvit_tiny_tf_224(flops, image):
    model = build("maxvit_tiny_tf_224")
    with pytest.raises(torch.fx.proxy.TraceError, match="control flow"):
        torch.fx.symbolic_trace(model)
    flops(model, image)
