"""Count ViT-B/16 and ResNet-50 in three lines each: what example1.py of torch_flops prints."""

import timm
import torch
from timm.layers import set_fused_attn
from torch import nn

from pytest_flops import TorchFLOPsByFX


def count(name: str, model: nn.Module, x: torch.Tensor) -> int:
    print("=" * 10, name, "=" * 10)
    flops_counter = TorchFLOPsByFX(model)
    flops_counter.propagate(x)
    return flops_counter.print_total_flops(show=True)


if __name__ == "__main__":
    set_fused_attn(False)  # torch_flops counted the attention of its day: one operation after the other
    x = torch.randn(1, 3, 224, 224)
    count("vit_base16", timm.create_model("vit_base_patch16_224"), x)
    count("resnet50", timm.create_model("resnet50"), x)
