"""What a run on shapes computes for real, and what is too big for it: masks of length × length."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_flops import TraceError, trace
from pytest_flops.counting import concrete, shapes
from pytest_flops.counting.calls import Call, tensors_in

LIMIT = 1000
N, D = 40, 3  # a mask of N × N is beyond the limit
PRODUCT = N * D * (2 * N - 1)  # (N, N) by (N, D)


@pytest.fixture
def low_limit(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Set the limit so low that what is beyond it can be computed in a test as well."""
    monkeypatch.setattr(concrete, "CONCRETE_LIMIT", LIMIT)
    shapes.forget()
    yield
    shapes.forget()


class Largest(TorchDispatchMode):
    """Sits outside a trace, and keeps the size of the largest tensor with data that a kernel returned."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        stored = [made.untyped_storage().nbytes() // made.itemsize for made in _with_data(result)]
        self.numel = max([self.numel, *stored])
        return result


def _with_data(result: Any) -> list[Tensor]:
    return [made for made in tensors_in(result) if not made.is_meta]


# Masks of length × length -----------------------------------------------------------------------------------


def positions() -> Tensor:
    return torch.arange(N)


def causal() -> Tensor:
    return positions()[:, None] >= positions()


def filled() -> Tensor:
    mask = torch.zeros(N, N)
    mask[:, :10] = (positions()[:, None] < torch.arange(10)).float()
    return mask


def bucketed() -> Tensor:  # relative positions, as T5 has them: a difference and a logarithm of all, 3 counts
    return (positions()[:, None] - positions()).clamp(min=1).float().log()


MASKS: dict[str, tuple[Callable[[], Tensor], int]] = {
    "tril": (lambda: torch.tril(torch.ones(N, N, dtype=torch.bool)), 0),
    "triu": (lambda: torch.triu(torch.full((N, N), float("-inf")), 1), 0),
    "comparison": (causal, N * N),
    "both": (lambda: causal() & (positions()[:, None] - positions() < 5), 4 * N * N),
    "where": (lambda: torch.where(causal(), 0.0, -1e9), N * N),
    "masked_fill": (lambda: torch.zeros(N, N).masked_fill(~causal(), float("-inf")), 2 * N * N),
    "masked_fill_": (lambda: torch.zeros(N, N).masked_fill_(causal(), float("-inf")), N * N),
    "in place": (lambda: torch.ones(N, N, dtype=torch.bool).logical_and_(causal()), 2 * N * N),
    "written into a part": (filled, N * 10),
    "buckets": (bucketed, 3 * N * N),
    "repeat": (lambda: positions().repeat(N, 1), 0),
    "expand": (lambda: positions().expand(N, N).clone(), 0),
    "eye": (lambda: torch.eye(N), 0),
    "new_zeros": (lambda: positions().new_zeros(N, N), 0),
    "one_hot": (lambda: F.one_hot(positions(), N), 0),
    "index": (lambda: torch.arange(N * 10)[positions()[:, None] + torch.arange(N)], N * N),
    "cat": (lambda: torch.cat([torch.ones(10, N), torch.ones(30, N)]), 0),
    "pad": (lambda: F.pad(torch.ones(1, 1), (0, N - 1, 0, N - 1)), 0),
    "outer": (lambda: torch.outer(positions(), positions()), N * N),
    "random": (lambda: torch.rand(N, N) < 0.5, N * N),
    "randint": (lambda: torch.randint(0, 5, (N, N)), 0),
    "tril_indices": (lambda: torch.tril_indices(N, 2 * N)[:, : N * 20].reshape(N, N), 0),
    "argsort": (lambda: torch.randperm(N * N).argsort().view(N, N), N * N * 11),  # 2^10 < 1600 < 2^11
    "range": (lambda: torch.arange(0.0, 1.0, 1 / (N * N)).view(N, N), 0),
}


class Masked(nn.Module):
    def __init__(self, mask: Callable[[], Tensor]) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        return self.mask().to(x.dtype) @ x


@pytest.mark.usefixtures("low_limit")
@pytest.mark.parametrize("name", MASKS)
def test_a_big_mask_is_never_computed(name: str) -> None:
    mask, cost = MASKS[name]
    with torch.inference_mode(), Largest() as largest:
        on_shapes = trace(Masked(mask), torch.ones(N, D), execute="meta")
    assert largest.numel <= LIMIT
    real = trace(Masked(mask), torch.ones(N, D), execute="real")
    assert on_shapes.flops == real.flops == cost + PRODUCT
    assert on_shapes.peak_memory == real.peak_memory


@pytest.mark.usefixtures("low_limit")
@pytest.mark.parametrize("name", MASKS)
def test_a_big_mask_is_never_computed_in_training(name: str) -> None:
    mask, cost = MASKS[name]
    x = torch.ones(N, D, requires_grad=True)
    on_shapes, real = (trace(Masked(mask), x, backward=True, execute=how) for how in ("meta", "real"))
    assert on_shapes.flops == real.flops == cost + 2 * PRODUCT
    assert on_shapes.peak_memory == real.peak_memory


@pytest.mark.usefixtures("low_limit")
@pytest.mark.parametrize("backward", [False, True])
def test_a_mask_that_is_not_computed_takes_its_memory(backward: bool) -> None:
    def forward(x: Tensor) -> Tensor:
        mask = causal()
        return x * mask.sum()

    assert 2 * 8 * N + N * N > N * N + 8 + 4 * N * D
    report = trace(forward, torch.ones(N, D, requires_grad=backward), execute="meta", backward=backward)
    # Two rows of positions and the mask; later the mask, its sum and the result, which is smaller.
    assert report.peak_memory == 2 * 8 * N + N * N


# What needs values ------------------------------------------------------------------------------------------

READERS: list[Callable[[], Any]] = [
    lambda: causal().any(),
    lambda: causal().nonzero().numel(),
    lambda: positions().expand(N, N)[causal()].numel(),
    lambda: causal().sum().item(),
    lambda: causal().tolist(),
    lambda: torch.arange(N * N).argsort()[0] == 0,
    lambda: torch.randperm(N * N).max() > 0,
    lambda: torch.equal(causal(), causal()),
]


@pytest.mark.usefixtures("low_limit")
@pytest.mark.parametrize("reads", READERS)
@pytest.mark.parametrize("backward", [False, True])
def test_what_reads_a_big_mask_says_that_it_needs_values(reads: Callable[[], Any], backward: bool) -> None:
    def forward(x: Tensor) -> Tensor:
        return x * 2.0 if reads() else x

    x = torch.ones(N, D, requires_grad=backward)
    report = trace(forward, x, backward=backward)
    assert report.executed == "real"
    assert report.reason
    with pytest.raises(TraceError, match="needs values that a shape-only run has not"):
        trace(forward, x.to("meta"), backward=backward)


@pytest.mark.usefixtures("low_limit")
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    ("make", "executed"),
    [
        (lambda: torch.ones(LIMIT - 1), "meta"),
        (lambda: torch.ones(LIMIT), "meta"),
        (lambda: torch.ones(LIMIT + 1), "real"),
        (lambda: torch.arange(25)[:, None] >= torch.arange(40), "meta"),  # as many as the limit
        (lambda: torch.arange(7)[:, None] >= torch.arange(143), "real"),  # one more
        (lambda: torch.ones(1, 900) == torch.ones(7, 1, 900)[0], "real"),
        (lambda: torch.arange(900) + 10**9, "meta"),  # a number makes nothing larger
        (lambda: torch.arange(900)[torch.arange(900)[None]], "meta"),
        (lambda: torch.arange(900).where(torch.arange(900) > 5, torch.zeros(())), "meta"),
        (lambda: torch.ones(2, 500).repeat(1, 1), "meta"),
        (lambda: torch.randint(1, 10**6, (900,)), "meta"),
        (lambda: torch.arange(10**6, 10**6 + 900), "meta"),
    ],
)
def test_small_results_have_values(make: Callable[[], Tensor], executed: str, backward: bool) -> None:
    def forward(x: Tensor) -> Tensor:
        return x * 2.0 if make().sum() else x

    x = torch.ones(N, D, requires_grad=backward)
    assert trace(forward, x, backward=backward).executed == executed


@pytest.mark.usefixtures("low_limit")
def test_a_mask_that_is_given_has_values_however_big() -> None:
    def forward(x: Tensor, mask: Tensor) -> Tensor:
        kept = mask.nonzero().shape[0]
        return x * 2.0 if mask.any() and kept == N * (N + 1) // 2 else x

    report = trace(forward, (torch.ones(N, D), causal()), execute="meta")
    # Comparisons that find out whether any is set, and the product
    assert report.flops - N * D in (N * N - 1, 2 * N * N - 1)


def test_the_limit_lies_between_lengths_and_their_squares() -> None:
    def forward(x: Tensor, mask: Tensor) -> Tensor:
        return x * 2.0 if mask.all() and (mask[:, -5:] == 1).all() else x

    mask = torch.ones(8, 131_072, dtype=torch.long)
    assert trace(forward, (torch.ones(N, D), mask)).executed == "meta"
    assert 8 * 131_072 < concrete.CONCRETE_LIMIT < 3000**2


# How big a result may be, told from the arguments -----------------------------------------------------------

aten = torch.ops.aten
ROW = torch.arange(30)


@pytest.mark.parametrize(
    ("func", "args", "doubtful"),
    [
        (aten.arange.default, (LIMIT,), False),
        (aten.arange.default, (LIMIT + 1,), True),
        (aten.arange.start, (-600, 600), True),
        (aten.arange.start, (10, 900), False),
        (aten.arange.start_step, (0.0, 1.0, 0.0005), True),
        (aten.arange.start_step, (0.0, 1.0, 0.5), False),
        (aten.linspace.default, (0.0, 1.0, LIMIT + 1), True),
        (aten.ones.default, ([31, 33],), True),
        (aten.ones.default, ([10, 100],), False),
        (aten.ones.default, ([],), False),
        (aten.randint.low, (0, 10**9, [900]), False),
        (aten.eye.default, (32,), True),
        (aten.eye.default, (31,), False),
        (aten.tril_indices.default, (25, 25), True),
        (aten.gt.Tensor, (ROW[:, None], ROW), False),
        (aten.gt.Tensor, (ROW[:, None], torch.arange(34)), True),
        (aten.repeat.default, (ROW, [34, 1]), True),
        (aten.constant_pad_nd.default, (ROW, [2, -2]), False),
        (aten.index.Tensor, (ROW, [torch.zeros(0, dtype=torch.long)]), False),
    ],
)
@pytest.mark.usefixtures("low_limit")
def test_how_much_an_op_may_return(func: Any, args: tuple[Any, ...], doubtful: bool) -> None:
    assert concrete.may_be_big(Call.of(func, args, {})) == doubtful


# Language models --------------------------------------------------------------------------------------------

SMALL = {"vocab_size": 50, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
LLAMA = {**SMALL, "intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 1 << 18}
CONFIGS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": {**LLAMA, "sliding_window": 8},
    "BertModel": {**SMALL, "intermediate_size": 64},
    "T5ForConditionalGeneration": {
        "vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
    },
    "GPT2LMHeadModel": {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
}  # fmt: skip


def language_model(name: str, device: str = "cpu") -> nn.Module:
    transformers = pytest.importorskip("transformers")
    kind = getattr(transformers, name)
    with torch.device(device):
        return kind(
            kind.config_class(**CONFIGS[name], attn_implementation="eager" if "T5" in name else "sdpa")
        )


@pytest.mark.usefixtures("low_limit")
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_masks_of_language_models(name: str, padded: bool, backward: bool) -> None:
    ids = torch.ones(2, N, dtype=torch.long)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "T5" in name:
        given["decoder_input_ids"] = ids
    if padded:
        given["attention_mask"][1, :5] = 0
    on_meta = trace(language_model(name, "meta"), (), given, backward=backward)
    real = trace(language_model(name), (), given, backward=backward, execute="real")
    assert (on_meta.executed, on_meta.flops, on_meta.macs) == ("meta", real.flops, real.macs)
    assert on_meta.peak_memory == real.peak_memory


LONG = """
import resource, sys, torch
from pytest_flops import trace
from tests.counting.test_concrete import language_model
name, tokens = sys.argv[1], int(sys.argv[2])
model, ids = language_model(name, "meta"), torch.zeros(1, tokens, dtype=torch.long)
mask = torch.ones_like(ids)
mask[:, :100] = 0
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
report = trace(model, (), {"input_ids": ids, "attention_mask": mask})
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(report.executed, report.macs, (after - before) // 1024)
"""


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "MistralForCausalLM"])
def test_a_padded_mask_of_131_072_tokens_takes_no_memory(name: str) -> None:
    pytest.importorskip("transformers")
    command = [sys.executable, "-W", "ignore", "-c", LONG, name, "131072"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    executed, macs, megabytes = done.stdout.split()
    n, d, kv, ffn, vocabulary = 131_072, 32, 16, 64, 50
    layer = n * (2 * d * d + 2 * d * kv + 3 * d * ffn) + 2 * n * n * d  # projections, MLP, scores and values
    assert executed == "meta"
    assert int(macs) == 2 * layer + n * d * vocabulary
    assert int(megabytes) < 500  # the mask alone has 17 billion elements
