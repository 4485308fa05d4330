"""Count an attention block node by node: with tokens alone, and with an attention mask as a second input."""

import torch
from timm.models.vision_transformer import Block

from pytest_flops import TorchFLOPsByFX

B = 1  # images
N = 14**2 + 1  # tokens
C = 768  # channels

if __name__ == "__main__":
    block = Block(C, num_heads=2, qkv_bias=True)
    block.attn.fused_attn = False
    block.eval()
    x = torch.randn(B, N, C)

    flops_counter = TorchFLOPsByFX(block)
    print("*" * 120)
    flops_counter.graph_model.graph.print_tabular()

    flops_counter.propagate(x)
    print("*" * 120)
    flops_counter.print_result_table()
    flops_counter.print_total_flops()
    flops_counter.print_total_time()
    flops_counter.print_max_memory()

    # As many inputs as forward takes, by position or by keyword. The mask adds one FLOP per head and score.
    flops_counter.propagate(x, attn_mask=torch.zeros(N, N))
    print("*" * 120)
    flops_counter.print_total_flops()
