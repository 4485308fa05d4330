"""Count models whose masks have length × length elements, and ops on long lists of tensors: time and memory.

    python tests/benchmarks/bench_masks.py [--json FILE] [--quick]

Two tables. Language models of two layers, built on meta, with no mask, a mask of ones (which they drop) and a
padded one, of which they make one of length × length: the padded ones should take at most three times as long
as those with ones, and their memory should not grow. Then ops on lists of thousands of tensors, each list
another, so that all have to be remembered: the memory should stay below 64 MiB and what one trace takes.

Each row is a fork of its own. Seconds are the processor's, the best of three traces that start with nothing
remembered. MiB is by how much they raise the peak resident memory.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from harness import parser, peak_growth_mib, table, write_json
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from pytest_flops import trace
from pytest_flops.counting.shapes import forget

SIZES = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1 << 18,
}
MODELS = {
    "Llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "Mistral, window of 1,024": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=1024)),
}
MASKS = ("none", "ones", "padded")
LENGTHS = [1024, 4096, 16_384, 65_536, 131_072]
LISTS = [(400, 4000), (300, 12_000)]


def in_a_fork(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a process of its own."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(function, args)


def best_of_three(function: Callable[[], Any]) -> float:
    """Return the least seconds that a call takes with nothing remembered."""
    taken = []
    for _ in range(3):
        forget()
        start = time.process_time()
        function()
        taken.append(time.process_time() - start)
    return min(taken)


def count(name: str, tokens: int, mask: str) -> dict[str, Any]:
    """Return what it takes to count a language model with a mask."""
    with torch.device("meta"):
        model: nn.Module = MODELS[name]().eval()
    given = {"input_ids": torch.zeros(1, tokens, dtype=torch.long), "use_cache": False}
    if mask != "none":
        given["attention_mask"] = torch.ones(1, tokens, dtype=torch.long)
        given["attention_mask"][:, : tokens // 100 if mask == "padded" else 0] = 0
    row: dict[str, Any] = {"model": name, "tokens": tokens, "mask": mask}

    def work() -> None:
        row["seconds"] = best_of_three(lambda: trace(model, kwargs=given))

    row["MiB"] = peak_growth_mib(work)
    return row


def join(ops: int, length: int) -> dict[str, Any]:
    """Return what it takes to count so many ops on lists of tensors, each of another size."""

    def forward(x: Tensor) -> None:
        for rows in range(1, ops + 1):
            torch.cat([x[:rows]] * length)

    row: dict[str, Any] = {"ops": ops, "tensors": length}

    def work() -> None:
        start = time.process_time()
        trace(forward, torch.empty(ops, 3, device="meta"))
        row["seconds"] = time.process_time() - start

    row["MiB"] = peak_growth_mib(work)
    return row


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows, each with its time as a ratio to that with a mask of ones."""
    ones = {(row["model"], row["tokens"]): row["seconds"] for row in rows if row["mask"] == "ones"}
    return [{**row, "to ones": row["seconds"] / ones[row["model"], row["tokens"]]} for row in rows]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    chosen = parser(__doc__).parse_args(arguments)
    torch.set_num_threads(1)
    lengths, lists = ([128, 4096], [(20, 1000)]) if chosen.quick else (LENGTHS, LISTS)
    for name in MODELS:
        count(name, 4096, "padded")  # imports what the first model of a process does
    rows = [partial(count, name, n, mask) for name in MODELS for n in lengths for mask in MASKS]
    found = {
        "masks": with_ratios([in_a_fork(row) for row in rows]),
        "lists": [in_a_fork(join, ops, length) for ops, length in lists],
    }
    table(found["masks"], "Language models of two layers", digits=3)
    table(found["lists"], "Ops on lists of tensors")
    write_json(chosen.json, found)


if __name__ == "__main__":
    sys.exit(main())
