"""Count Llama-style models of up to 405 billion parameters, built on meta: time, memory, and how both grow.

    python tests/benchmarks/bench_giants.py [--json FILE] [--quick]

Three tables: the 8B, 70B and 405B configurations at 8,192 tokens; the 405B model with fewer layers, whose
time per layer should be flat; and the 8B model with more and more tokens, whose time should be flat.

Each row is a fork of its own. Seconds are the processor's, for the construction, the first trace of the
process ("cold") and a second one ("warm"). MiB is by how much these raise the peak resident memory.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from harness import parser, peak_growth_mib, table, write_json
from transformers import LlamaConfig, LlamaForCausalLM

from pytest_flops import trace
from pytest_flops.counting.shapes import forget

CONFIGS = {
    "8B": LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131_072,
    ),
    "70B": LlamaConfig(
        vocab_size=128_256,
        hidden_size=8192,
        intermediate_size=28_672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        max_position_embeddings=131_072,
    ),
    "405B": LlamaConfig(
        vocab_size=128_256,
        hidden_size=16_384,
        intermediate_size=53_248,
        num_hidden_layers=126,
        num_attention_heads=128,
        num_key_value_heads=8,
        max_position_embeddings=131_072,
    ),
}
TOKENS = 8192
LAYERS = [8, 16, 32, 64, 126]
LENGTHS = [128, 1024, 8192, 32_768, 131_072]


def measure(name: str, layers: int | None = None, tokens: int = TOKENS) -> dict[str, Any]:
    """Return what it takes to build and count a model, with another number of layers if given."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(_measure, (name, layers or CONFIGS[name].num_hidden_layers, tokens))


def _measure(name: str, layers: int, tokens: int) -> dict[str, Any]:
    config = LlamaConfig.from_dict({**CONFIGS[name].to_dict(), "num_hidden_layers": layers})
    row: dict[str, Any] = {"model": name, "layers": layers, "tokens": tokens}

    def build_and_count() -> None:
        start = time.process_time()
        with torch.device("meta"):
            model = LlamaForCausalLM(config).eval()
        ids = torch.zeros(1, tokens, dtype=torch.long)
        row["construction"] = time.process_time() - start
        forget()
        for phase in ("cold", "warm"):
            start = time.process_time()
            report = trace(model, kwargs={"input_ids": ids, "use_cache": False})
            row[phase] = time.process_time() - start
        row["warm ms/layer"] = 1e3 * row["warm"] / layers
        row["G params"], row["TFLOPs"] = report.params / 1e9, report.flops / 1e12

    row["MiB"] = peak_growth_mib(build_and_count)
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    chosen = parser(__doc__).parse_args(arguments)
    torch.set_num_threads(1)
    _measure("8B", layers=1, tokens=1)  # imports what the first model of a process does
    names, layers, lengths = list(CONFIGS), LAYERS, LENGTHS
    if chosen.quick:
        names, layers, lengths = ["8B"], [1, 2], [128, 1024]
    found = {
        "models": [measure(name) for name in names],
        "layers": [measure(names[-1], layers=count) for count in layers],
        "tokens": [measure("8B", tokens=length) for length in lengths],
    }
    table(found["models"], f"Llama-style models at {TOKENS:,} tokens")
    table(found["layers"], "Growth with layers")
    table(found["tokens"], "Growth with tokens")
    write_json(chosen.json, found)


if __name__ == "__main__":
    sys.exit(main())
