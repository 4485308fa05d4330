"""Quantised ops count as those that they stand for; casts are free, choosing a scale is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.ao.quantization.fx._decomposed  # defines the ops of exported models
from torch import Tensor, nn

from pytest_flops import trace
from pytest_flops.formulas import formula_for
from pytest_flops.metrics import Cost

qd = torch.ops.quantized_decomposed
X = torch.randn(3, 8)
SCALES, ZEROS = torch.ones(3), torch.zeros(3, dtype=torch.long)
Q = torch.zeros(3, 8, dtype=torch.int8)
INT8 = (-128, 127, torch.int8)
ONE, ZERO = torch.ones(1), torch.zeros(1, dtype=torch.long)
LOW, HIGH = torch.tensor(-128), torch.tensor(127)
GROUPED = (torch.ones(3, 2), torch.zeros(3, 2, dtype=torch.long), *INT8, 4)

# Extremes of 24 elements, or of 8 in each of 3 rows, by n−1 comparisons
OPS: dict[str, tuple[Any, tuple[Any, ...], int]] = {
    "quantize": (qd.quantize_per_tensor.default, (X, 0.1, 3, *INT8), 0),
    "quantize-tensor": (qd.quantize_per_tensor.tensor, (X, ONE, ZERO, *INT8), 0),
    "quantize-bounds": (qd.quantize_per_tensor.tensor2, (X, ONE, ZERO, LOW, HIGH, torch.int8), 0),
    "dequantize": (qd.dequantize_per_tensor.default, (Q, 0.1, 3, *INT8), 0),
    "quantize-channel": (qd.quantize_per_channel.default, (X, SCALES, ZEROS, 0, *INT8), 0),
    "dequantize-channel": (qd.dequantize_per_channel.default, (Q, SCALES, ZEROS, 0, *INT8), 0),
    "quantize-token": (qd.quantize_per_token.default, (X, SCALES[:, None], ZEROS[:, None], *INT8), 0),
    "dequantize-token": (
        qd.dequantize_per_token.default,
        (Q, SCALES[:, None], ZEROS[:, None], *INT8, torch.float32),
        0,
    ),
    "quantize-group": (qd.quantize_per_channel_group.default, (X, *GROUPED), 0),
    "dequantize-group": (qd.dequantize_per_channel_group.default, (Q, *GROUPED, torch.float32), 0),
    "convert": (qd.convert_element_type.no_fuse, (X, torch.bfloat16), 0),
    "choose": (qd.choose_qparams.tensor, (X, -128, 127, 1e-5, torch.int8), 2 * 23 + 10),
    "choose-symmetric": (
        qd.choose_qparams_symmetric.tensor,
        (X, -128, 127, 1e-5, torch.int8),
        2 * 23 + 6,
    ),
    "choose-token": (qd.choose_qparams_per_token.default, (X, torch.int8), 24 + 3 * 7 + 3 * 2),
    "choose-token-asymmetric": (
        qd.choose_qparams_per_token_asymmetric.default,
        (X, torch.int8),
        3 * (2 * 7 + 16),
    ),
    "fake": (qd.fake_quant_per_channel.default, (X, SCALES, ZEROS, 0, -128, 127), 10 * 24 + 2 * 3),
}


@pytest.mark.parametrize("execute", ["meta", "real"])
@pytest.mark.parametrize(("op", "args", "flops"), OPS.values(), ids=OPS)
def test_exported_casts(op: Any, args: tuple[Any, ...], flops: int, execute: Any) -> None:
    report = trace(op, args, execute=execute)
    assert (report.flops, report.unsupported) == (flops, {})


def test_a_choice_counts_what_its_implementation_does() -> None:
    """PyTorch's own code for them, op by op, less two looks at whether the extremes are in order."""
    from torch.ao.quantization.fx import _decomposed as code

    def of(run: Callable[[Tensor], Any]) -> int:
        return trace(run, X, execute="real").flops

    assert of(lambda x: code.choose_qparams_tensor(x, -128, 127, 1e-5, torch.int8)) - 2 == OPS["choose"][2]
    symmetric = of(lambda x: code.choose_qparams_symmetric_tensor(x, -128, 127, 1e-5, torch.int8))
    assert symmetric - 2 == OPS["choose-symmetric"][2]
    assert of(lambda x: code.choose_qparams_per_token(x, torch.int8)) == OPS["choose-token"][2]
    asymmetric = of(lambda x: code._choose_qparams_per_token_asymmetric_impl(x, torch.int8))
    assert asymmetric == OPS["choose-token-asymmetric"][2]


class Exported(nn.Module):
    """A linear layer as PyTorch exports it when it is quantised."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(5, 8, dtype=torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        x = qd.dequantize_per_tensor(qd.quantize_per_tensor(x, 0.1, 0, *INT8), 0.1, 0, *INT8)
        return nn.functional.linear(x, qd.dequantize_per_tensor(self.weight, 0.1, 0, *INT8))


@pytest.mark.parametrize("execute", ["meta", "real"])
def test_an_exported_layer_costs_its_products(execute: Any) -> None:
    report = trace(Exported(), X, execute=execute)
    assert (report.flops, report.macs) == (3 * 5 * 15, 3 * 5 * 8)
    assert not report.unsupported


# -- packed weights ------------------------------------------------------------------------------------------

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.quantize"),  # deprecated, and still what models are made of
    pytest.mark.filterwarnings("ignore:torch.ao.quantization"),
]


def counted(run: Callable[..., Any], *args: Any) -> Cost:
    report = trace(run, args, execute="real")
    assert not report.unsupported
    return Cost(report.flops, report.macs)


def test_lookups_of_packed_rows() -> None:
    table = (
        nn.quantized.Embedding(7, 4) if hasattr(nn, "quantized") else torch.ao.nn.quantized.Embedding(7, 4)
    )
    assert counted(table, torch.tensor([1, 3, 3])) == Cost(0)
    bag = torch.ao.nn.quantized.EmbeddingBag(7, 4, mode="sum", include_last_offset=False)
    indices, offsets = torch.tensor([1, 3, 3, 0, 2]), torch.tensor([0, 2])
    assert counted(bag, indices, offsets) == Cost((5 - 2) * 4)
    weighted = counted(lambda i, o: bag(i, o, torch.ones(5)), indices, offsets)
    assert weighted == Cost((5 - 2) * 4 + 5 * 4)


@pytest.mark.parametrize(("kind", "gates", "pointwise"), [("LSTM", 4, 13), ("GRU", 3, 10), ("RNN", 1, 2)])
def test_cells(kind: str, gates: int, pointwise: int) -> None:
    cell = getattr(torch.ao.nn.quantized.dynamic, f"{kind}Cell")(3, 5)
    per_row = gates * 5 * (2 * 3 - 1 + 2 * 5 - 1 + 2) + pointwise * 5
    assert counted(cell, torch.randn(2, 3)) == Cost(2 * per_row, 2 * gates * 5 * (3 + 5))


def test_pooling_and_softmax() -> None:
    image = torch.quantize_per_tensor(torch.randn(1, 2, 4, 6), 0.1, 0, torch.quint8)
    quantized = torch.ops.quantized
    pooled = counted(lambda x: quantized.max_pool2d(x, [2, 3], [2, 3], [0, 0], [1, 1], False), image)
    assert pooled == Cost(2 * 2 * 2 * (6 - 1))
    rows = torch.quantize_per_tensor(torch.randn(3, 5), 0.1, 0, torch.quint8)
    assert counted(lambda x: quantized.softmax(x, 1, 0.1, 0), rows) == Cost(3 * 14)


def test_a_layer_that_quantises_its_input() -> None:
    pack = torch.ops.quantized.linear_prepack
    weight = torch.quantize_per_tensor(torch.randn(7, 5), 0.1, 0, torch.qint8)
    packed, x, out = pack(weight, torch.randn(7)), torch.randn(3, 5), torch.empty(3, 7)
    name = "linear_with_input_q_dq_qweight_dq"
    for relu, activation in (("", 0), ("_relu", 1)):
        op = getattr(torch.ops.quantized, f"{name}{relu}_output_fp32", None)
        if op is not None:
            cost = formula_for(op.default)(x, 0.1, 0, packed, out=out)  # type: ignore[misc]
            assert cost == Cost(3 * 7 * (9 + 1 + activation), 3 * 7 * 5)
