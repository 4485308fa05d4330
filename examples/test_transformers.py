"""Budgets over a language model of transformers, built from a config, with keyword inputs."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM


def tokens(batch, length):
    """Return inputs as a tokenizer makes them; models read masks for their values, so these are real."""
    ids = torch.zeros(batch, length, dtype=torch.long)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


# The batch doubles the count; a longer text more than doubles it, for attention grows with its square.
def test_small_llama(flops):
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=1000,
    )
    model = LlamaForCausalLM(config)
    report = flops(model, **tokens(1, 128), use_cache=False)
    assert flops.count(model, **tokens(2, 128), use_cache=False).macs == 2 * report.macs
    assert flops.count(model, **tokens(1, 256), use_cache=False).macs > 2 * report.macs


# 70 billion parameters and 4,096 tokens, with no memory for either.
@pytest.mark.flops_budget(flops="620T", modules={"model.layers.*.mlp": "6T", "lm_head": "9T"})
def test_llama_70b(flops):
    config = LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=8192,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    flops(model, **tokens(1, 4096), use_cache=False)
