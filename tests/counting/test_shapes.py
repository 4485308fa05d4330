"""The shape-only run: what it remembers, what it keeps away from, and that it does no work."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_flops import register_flop_formula, trace
from pytest_flops.counting import shapes as shapes_module
from tests.settings import default_dtype


@pytest.fixture(autouse=True)
def cold() -> Iterator[None]:
    shapes_module.forget()
    yield
    shapes_module.forget()


class Counting(TorchDispatchMode):
    """Sits outside a trace and sees only what reaches a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[str] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.ran.append(func._schema.name.removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


def kernels(model: nn.Module, x: Tensor) -> list[str]:
    """Return the ops that reach a kernel, composites whole."""
    with torch.inference_mode(), Counting() as counting:
        trace(model, x)
    return counting.ran


def test_what_is_remembered_runs_no_kernel() -> None:
    up = nn.ConvTranspose2d  # of which no rule tells the result
    model = nn.Sequential(up(3, 4, 3), nn.ReLU(), up(4, 4, 3), up(4, 4, 3))
    x = torch.randn(2, 3, 16, 16)
    assert kernels(model, x).count("conv_transpose2d") == 3
    assert set(kernels(model, x)) <= {"detach", "empty_strided"}


def test_kernels_run_on_meta_or_on_one_element() -> None:
    class OnlyMeta(Counting):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = super().__torch_dispatch__(func, types, args, kwargs)
            outs = [out] if isinstance(out, Tensor) else out
            assert self.ran[-1] == "detach" or all(each.is_meta or each.numel() == 1 for each in outs), func
            return out

    x = torch.randn(3, 5, 2)
    model = nn.Sequential(nn.ConvTranspose1d(5, 4, 1), nn.LayerNorm(2), nn.AdaptiveMaxPool1d(1))
    with OnlyMeta() as mode:
        trace(model, x)
    assert {"conv_transpose1d", "adaptive_max_pool1d"} <= set(mode.ran)


def test_dtype_of_a_number_is_part_of_the_key() -> None:
    whole = torch.ones(3, dtype=torch.long, device="meta")
    outputs = []
    for number in (1, 1.0, True):
        trace(lambda x, number=number: outputs.append((x + number).dtype), whole)
    assert outputs == [torch.int64, torch.float32, torch.int64]


def out_on_meta(x: Tensor) -> Tensor:
    made = torch.empty_like(x)
    return torch.add(x, 1.0, out=made) * made


def out_with_data(x: Tensor) -> Tensor:
    made = torch.zeros(3, 4)
    torch.sin(x, out=made)
    return made * 1.0


def out_of_another_size(x: Tensor) -> Tensor:
    made = torch.zeros(0)
    torch.sin(x, out=made)
    return made * 1.0


@pytest.mark.parametrize(
    ("forward", "executed"), [(out_on_meta, "meta"), (out_with_data, "meta"), (out_of_another_size, "real")]
)
def test_results_written_into_what_is_there(forward, executed) -> None:
    report = trace(forward, torch.randn(3, 4))
    assert (report.flops, report.executed) == (2 * 3 * 4, executed)


def test_what_is_written_out_has_no_values() -> None:
    def forward(x: Tensor) -> Tensor:
        made = torch.zeros(3, 4)
        torch.sin(x, out=made)
        return x * 2.0 if made.any() else x

    assert trace(forward, torch.ones(3, 4)).executed == "real"


def test_the_default_dtype_decides_too() -> None:
    outputs = []
    for dtype in (torch.float32, torch.float64, torch.float32):
        with default_dtype(dtype):
            trace(lambda x: outputs.append((x / 2).dtype), torch.ones(3, dtype=torch.long, device="meta"))
    assert outputs == [torch.float32, torch.float64, torch.float32]


def test_results_have_the_strides_and_aliases_of_the_real_ones() -> None:
    seen: list[tuple[object, ...]] = []

    def forward(x: Tensor, weight: Tensor) -> Tensor:
        y = torch.nn.functional.linear(x, weight).permute(0, 2, 3, 1)
        z = y.contiguous()
        same = z.contiguous()
        a, b = z.split([1, 3], dim=-1)
        seen.append((y.stride(), z.stride(), same is z, b.stride(), b.storage_offset(), a._base is None))
        return a

    for execute in ("meta", "meta", "real"):
        trace(forward, (torch.randn(2, 4, 8, 3), torch.randn(5, 3)), execute=execute)
    assert seen[0] == seen[1] == seen[2]


def test_registering_a_formula_drops_what_was_remembered() -> None:
    with torch.library._scoped_library("flops_memo", "FRAGMENT") as library:
        library.define("op(Tensor x) -> Tensor")
        library.impl("op", torch.empty_like, "Meta")
        op = torch.ops.flops_memo.op
        assert trace(op, torch.ones(3, device="meta")).flops == 0
        register_flop_formula(op)(lambda x, *, out: 7)
        assert trace(op, torch.ones(3, device="meta")).flops == 7


def test_a_big_tensor_made_in_forward_takes_no_memory() -> None:
    def forward(x: Tensor) -> Tensor:
        return x + torch.zeros(1 << 22, 1 << 22)

    assert trace(forward, torch.ones(1, device="meta")).flops == 1 << 44


def test_a_tensor_on_a_fixed_device_is_no_error() -> None:
    def forward(x: Tensor) -> Tensor:
        return x + torch.arange(5, device="cpu") + torch.ones(5, device="meta")

    assert trace(forward, torch.randn(3, 5)).flops == 30


def test_that_the_hook_which_keeps_it_out_still_exists() -> None:
    """`_should_skip_dynamo` is private: without it, the first trace of a process takes 2 s longer."""
    if torch.__version__ >= "2.8":
        assert "_should_skip_dynamo" in vars(TorchDispatchMode)


GIANT = """
import resource, torch
from transformers import LlamaConfig, LlamaForCausalLM
from pytest_flops import trace
config = LlamaConfig(
    hidden_size=8192, intermediate_size=28672, num_hidden_layers=80,
    num_attention_heads=64, num_key_value_heads=8, vocab_size=128256,
)
with torch.device("meta"):
    model = LlamaForCausalLM(config)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
report = trace(model, (), {"input_ids": torch.zeros(1, 4096, dtype=torch.long)})
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(report.executed, report.macs, (after - before) // 1024)
"""


def test_seventy_billion_parameters_take_no_weights() -> None:
    pytest.importorskip("transformers")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", GIANT], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    executed, macs, megabytes = done.stdout.split()
    d, kv, ffn, layers, tokens, vocabulary = 8192, 1024, 28672, 80, 4096, 128256
    projections = tokens * d * (2 * d + 2 * kv + 3 * ffn)
    attention = 2 * tokens * tokens * d
    assert executed == "meta"
    assert int(macs) == layers * (projections + attention) + tokens * d * vocabulary
    assert int(megabytes) < 300
