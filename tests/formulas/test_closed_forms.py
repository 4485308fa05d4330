"""Closed forms that no arithmetic in plain Python stands for: kernels, searches, transforms, conventions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pytest_flops.formulas import formula_for
from pytest_flops.metrics import Cost

aten = torch.ops.aten


def t(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, dtype=dtype)


C = torch.complex64

CASES: dict[str, tuple[Callable[[], Any], Cost]] = {
    # alpha and beta: what they multiply, and the addition that beta=0 drops
    "addmm-no-bias": (lambda: torch.addmm(t(2, 5), t(2, 3), t(3, 5), beta=0), Cost(50, 30)),
    "addmm-alpha": (lambda: torch.addmm(t(5), t(2, 3), t(3, 5), alpha=2), Cost(50 + 10 + 10, 30)),
    "addmv-beta": (lambda: torch.addmv(t(2), t(2, 3), t(3), beta=2), Cost(10 + 4, 6)),
    "addbmm": (lambda: torch.addbmm(t(3, 5), t(2, 3, 4), t(2, 4, 5)), Cost(15 * 15 + 15, 120)),
    "empty-contraction": (lambda: t(2, 0) @ t(0, 5), Cost(0, 0)),
    "complex-linear": (
        lambda: F.linear(t(2, 3, dtype=C), t(5, 3, dtype=C), t(5, dtype=C)),
        Cost(220 + 20, 120),
    ),
    "complex-mul": (lambda: t(2, 3, dtype=C) * t(2, 3, dtype=C), Cost(36)),
    "complex-div": (lambda: t(2, 3, dtype=C) / t(2, 3, dtype=C), Cost(66)),
    "complex-add": (lambda: t(2, 3, dtype=C) + t(2, 3, dtype=C), Cost(12)),
    "complex-abs": (lambda: t(2, 3, dtype=C).abs(), Cost(24)),
    "complex-exp": (lambda: t(2, 3, dtype=C).exp(), Cost(12)),
    "complex-sum": (lambda: t(2, 3, dtype=C).sum(), Cost(10)),
    "conjugate": (lambda: t(2, 3, dtype=C).conj().resolve_conj(), Cost(0)),
    # a 3-D linear is one product, contiguous or not
    "linear-3d": (lambda: F.linear(t(2, 3, 5), t(7, 5), t(7)), Cost(6 * 7 * 10, 210)),
    "linear-strided": (lambda: F.linear(t(3, 2, 5).transpose(0, 1), t(7, 5), t(7)), Cost(6 * 7 * 10, 210)),
    "sparse-mm": (lambda: torch.sparse.mm(torch.eye(3).to_sparse(), t(3, 5)), Cost(30, 15)),
    # selection and lookup
    "where": (lambda: torch.where(t(2, 3) > 0, t(2, 3), t(2, 3)), Cost(6)),  # the comparison
    "embedding": (lambda: F.embedding(torch.tensor([1, 2]), t(4, 3)), Cost(0)),
    "scatter_add": (lambda: t(4).scatter_add(0, torch.tensor([0, 0, 1]), t(3)), Cost(3)),
    "index_put-accumulate": (
        lambda: t(4).index_put((torch.tensor([0, 0, 1]),), t(3), accumulate=True),
        Cost(3),
    ),
    "index_put": (lambda: t(4).index_put((torch.tensor([0, 2, 1]),), t(3)), Cost(0)),
    "fold": (lambda: F.fold(t(1, 12, 6), (3, 4), (2, 2)), Cost(72)),
    # searches
    "sort": (lambda: t(2, 5).sort(), Cost(2 * 5 * 3)),
    "topk": (lambda: t(2, 9).topk(4), Cost(2 * 9 * 2)),
    "searchsorted": (lambda: torch.searchsorted(t(7), t(2, 3)), Cost(6 * 3)),
    "bincount": (lambda: torch.tensor([0, 1, 1]).bincount(), Cost(3)),
    # transforms
    "fft": (lambda: torch.fft.fft(t(3, 8, dtype=C)), Cost(5 * 24 * 3)),
    "fft-odd": (lambda: torch.fft.fft(t(3, 6, dtype=C)), Cost(5 * 18 * 3)),
    "rfft2": (lambda: torch.fft.rfft2(t(4, 8)), Cost(5 * 32 * 3 // 2 + 5 * 4 * 5 * 2)),
    "irfft": (lambda: torch.fft.irfft(t(5, dtype=C)), Cost(5 * 8 * 3 // 2)),
    # linear algebra
    "qr-reduced": (lambda: torch.linalg.qr(t(4, 3)), Cost(2 * (2 * 4 * 9 - 2 * 9))),
    "qr": (lambda: torch.linalg.qr(t(4, 3), mode="r"), Cost(2 * 4 * 9 - 2 * 9)),
    "svdvals": (lambda: aten._linalg_svd(t(5, 3), False, False), Cost(4 * 5 * 9 - 36)),
    "svd": (lambda: torch.linalg.svd(t(5, 3), full_matrices=False), Cost(14 * 5 * 9 + 8 * 27)),
    "inv": (lambda: torch.linalg.inv(torch.eye(3)), Cost(54)),
    "det": (lambda: torch.linalg.det(torch.eye(3)), Cost(3 + 10 + 3)),
    # dropout and modes
    "dropout-eval": (lambda: F.dropout(t(2, 3), 0.5, training=False), Cost(0)),
    "dropout-train": (lambda: F.dropout(t(2, 3), 0.5), Cost(12)),
    "batch_norm-train": (lambda: F.batch_norm(t(2, 3, 4), t(3), t(3), t(3), t(3), training=True), Cost(96)),
    "batch_norm-module": (
        lambda: torch.nn.BatchNorm1d(3)(t(2, 3, 4)),
        Cost(96),
    ),  # trains, and counts batches
    "counter": (lambda: torch.tensor(3).add_(1), Cost(0)),
    "counter-back": (lambda: torch.tensor(3) - torch.tensor(1), Cost(0)),
    "number": (lambda: torch.tensor(3.0).add_(1), Cost(1)),
    "one-whole-number": (lambda: torch.tensor([3]).add_(1), Cost(1)),
    "batch_norm-eval": (lambda: F.batch_norm(t(2, 3, 4), t(3), t(3), t(3), t(3)), Cost(96)),
    "layer_norm-scale": (lambda: F.layer_norm(t(3, 5), [5], t(5)), Cost(45)),
    "instance_norm": (lambda: F.instance_norm(t(2, 3, 4), weight=t(3), bias=t(3)), Cost(96)),
    "rms_norm": (lambda: F.rms_norm(t(3, 5), [5], t(5)), Cost(4 * 15 + 2 * 3)),
    # kernels that pool to one: a mean or a pooling
    "adaptive-to-one": (lambda: F.adaptive_avg_pool2d(t(2, 3, 4, 5), 1), Cost(120)),
    "std": (lambda: t(3, 5).std(1), Cost(60 + 3)),
    "logsumexp": (lambda: t(3, 5).logsumexp(1), Cost(30)),
    "upsample-bicubic": (lambda: F.interpolate(t(1, 2, 3, 4), (5, 6), mode="bicubic"), Cost(31 * 60)),
    "grid_sample": (lambda: F.grid_sample(t(1, 2, 3, 4), t(1, 5, 6, 2), align_corners=False), Cost(7 * 60)),
    "ctc_loss": (
        lambda: torch.ops.aten._ctc_loss(
            t(6, 1, 4).log_softmax(-1), torch.ones(1, 2, dtype=torch.long), [6], [2]
        ),
        Cost(3 * 24 + 7 * 6 * 5),
    ),
}


@pytest.mark.parametrize(("run", "cost"), CASES.values(), ids=CASES)
def test_closed_form(run: Callable[[], Any], cost: Cost, count: Callable[..., Cost]) -> None:
    assert count(run) == cost


# -- products of groups, by the sizes that shapes give -------------------------------------------------------

OFFS = t(2, dtype=torch.int32)
# a, b, the result, and what it costs: of rows, of columns, of products, of more groups than products, a batch
GROUPS: dict[str, tuple[Tensor, Tensor, Tensor, Cost]] = {
    "rows": (t(7, 3), t(2, 3, 5), t(7, 5), Cost(7 * 5 * 5, 7 * 5 * 3)),
    "columns": (t(2, 7, 3), t(3, 5), t(7, 5), Cost(7 * 5 * 5, 7 * 5 * 3)),
    "products": (t(7, 6), t(6, 5), t(2, 7, 5), Cost(7 * 5 * (2 * 6 - 2), 7 * 5 * 6)),
    "more-groups": (t(7, 2), t(2, 5), t(8, 7, 5), Cost(7 * 5 * 2, 7 * 5 * 2)),
    "batch": (t(2, 7, 3), t(2, 3, 5), t(2, 7, 5), Cost(2 * 7 * 5 * 5, 2 * 7 * 5 * 3)),
}


@pytest.mark.parametrize(("a", "b", "out", "cost"), GROUPS.values(), ids=GROUPS)
def test_products_of_groups(a: Tensor, b: Tensor, out: Tensor, cost: Cost) -> None:
    n, bias = out.numel(), t(5)
    assert formula_for(aten._grouped_mm.default)(a, b, OFFS, out=out) == cost
    assert formula_for(aten._grouped_mm.default)(a, b, OFFS, bias, out=out) == cost + n
    scaled = formula_for(aten._scaled_grouped_mm.default)
    assert scaled(a, b, t(7), t(5), OFFS, out=out) == cost + n
    assert scaled(a, b, t(7), t(5), OFFS, bias, out=out) == cost + 2 * n
    scaled = formula_for(aten._scaled_grouped_mm_v2.default)
    recipes = ([t(7)], [0], [0], [t(5)], [0], [0])
    assert scaled(a, b, *recipes, OFFS, out=out) == cost + n
    assert scaled(a, b, *recipes, OFFS, bias, out=out) == cost + 2 * n


def test_products_of_groups_in_a_loop_that_hides_them(count: Callable[..., Cost]) -> None:
    pytest.importorskip("transformers.integrations.moe")
    op, x, weight = torch.ops.transformers.grouped_mm_fallback, t(7, 3), t(2, 3, 5)
    offs = torch.tensor([4, 7], dtype=torch.int32)
    assert count(lambda: op(x, weight, offs)) == Cost(7 * 5 * 5, 7 * 5 * 3)
    backward = torch.ops.transformers.grouped_mm_fallback_backward
    to_input, to_weight = Cost(7 * 3 * 9, 105), Cost(3 * 5 * (2 * 7 - 2), 105)
    assert count(lambda: backward(x, weight, offs, t(7, 5))) == to_input + to_weight


# -- one attention, however it is computed -------------------------------------------------------------------

Q, K, V = t(2, 6, 3, 4), t(2, 6, 5, 4), t(2, 6, 5, 8)
SCORES = 2 * 6 * 3 * 5


def attention_cost(*, mask: int = 0, dropout: int = 0) -> Cost:
    softmax = 2 * 6 * 3 * (3 * 5 - 1)
    products = SCORES * (2 * 4 - 1) + 2 * 6 * 3 * 8 * (2 * 5 - 1)
    return Cost(products + SCORES * (1 + mask + dropout) + softmax, SCORES * 4 + SCORES * 8)


SDPA: dict[str, tuple[tuple[Any, ...], dict[str, Any], Cost]] = {
    "scaled_dot_product_attention": ((Q, K, V), {}, attention_cost()),
    "_scaled_dot_product_attention_math": ((Q, K, V, None, 0.5), {}, attention_cost(dropout=1)),
    "_scaled_dot_product_flash_attention": ((Q, K, V, 0.0, True), {}, attention_cost(mask=1)),
    "_scaled_dot_product_flash_attention_for_cpu": (
        (Q, K, V),
        {"attn_mask": t(3, 5)},
        attention_cost(mask=1),
    ),
    "_scaled_dot_product_efficient_attention": (
        (Q, K, V, t(3, 5), True, 0.1),
        {},
        attention_cost(mask=1, dropout=1),
    ),
    "_scaled_dot_product_cudnn_attention": ((Q, K, V, None, True, 0.0, True), {}, attention_cost(mask=1)),
    "_scaled_dot_product_fused_attention_overrideable": ((Q, K, V), {}, attention_cost()),
    "_scaled_dot_product_flash_attention.quantized": (
        (Q, K, V, t(2, 6), t(2, 6), t(2, 6), 0.5, True),
        {},
        attention_cost(mask=1, dropout=1),
    ),
    "_triton_scaled_dot_attention": ((Q, K, V, 0.5), {}, attention_cost(dropout=1)),
}


@pytest.mark.parametrize(("name", "call"), SDPA.items(), ids=SDPA)
def test_every_backend_of_attention_costs_the_same(name: str, call: Any) -> None:
    args, kwargs, cost = call
    name, _, overload = name.partition(".")
    op = getattr(getattr(aten, name), overload or "default")
    assert formula_for(op)(*args, out=t(2, 6, 3, 8), **kwargs) == cost


# -- one recurrent layer, however it runs --------------------------------------------------------------------

T, B, D, H, P = 5, 2, 3, 4, 2


def lstm_params(width: int, state: int, projected: bool) -> list[Tensor]:
    shapes = [(4 * H, width), (4 * H, state), (4 * H,), (4 * H,)] + [(P, H)] * projected
    return [t(*shape) for shape in shapes]


def lstm_cost(width: int, state: int, projected: bool = False) -> Cost:
    step = 4 * H * (2 * width + 2 * state) + 13 * H + projected * P * (2 * H - 1)
    return Cost(step, 4 * H * (width + state) + projected * P * H) * (T * B)


def lstm(params: list[Tensor], state: int, *, layers: int = 1, both: bool = False, p: float = 0.0) -> Any:
    n = layers * (1 + both)
    return lambda: torch.lstm(
        t(T, B, D), [t(n, B, state), t(n, B, H)], params, True, layers, p, True, both, False
    )


STACKS = {
    "one": (lstm(lstm_params(D, H, False), H), lstm_cost(D, H)),
    "two-directions": (lstm(2 * lstm_params(D, H, False), H, both=True), lstm_cost(D, H) * 2),
    "projected": (lstm(lstm_params(D, P, True), P), lstm_cost(D, P, True)),
    "two-layers-dropout": (
        lstm(lstm_params(D, H, False) + lstm_params(H, H, False), H, layers=2, p=0.5),
        lstm_cost(D, H) + lstm_cost(H, H) + 2 * T * B * H,
    ),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections")  # what the test wants: it has no kernel
@pytest.mark.parametrize(("run", "cost"), STACKS.values(), ids=STACKS)
def test_recurrent_layers_cost_the_same_as_one_op_and_as_kernels(
    run: Callable[[], Any], cost: Cost, count: Callable[..., Cost]
) -> None:
    assert count(run) == cost


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # a flag that `mkldnn.flags` sets besides
@pytest.mark.parametrize("has_mkldnn", [True, False])
def test_recurrent_layers_cost_the_same_step_by_step(has_mkldnn: bool, count: Callable[..., Cost]) -> None:
    run, cost = STACKS["two-directions"]
    with torch.backends.mkldnn.flags(enabled=has_mkldnn):
        assert count(run) == cost


def test_cudnn_counts_as_the_layer() -> None:
    params = lstm_params(D, H, False) + lstm_params(H, H, False)
    args = (
        t(T, B, D),
        params,
        4,
        None,
        t(2, B, H),
        t(2, B, H),
        2,
        H,
        0,
        2,
        False,
        0.5,
        True,
        False,
        [],
        None,
    )
    assert formula_for(aten._cudnn_rnn.default)(*args, out=None) == STACKS["two-layers-dropout"][1]


def test_packed_sequences_count_the_steps_they_hold(count: Callable[..., Cost]) -> None:
    params, batch_sizes = lstm_params(D, H, False), torch.tensor([2, 2, 1])
    hx = [t(1, 2, H), t(1, 2, H)]
    run = lambda: torch.lstm(t(5, D), batch_sizes, hx, params, True, 1, 0.0, False, False)  # noqa: E731
    assert count(run) * (T * B) == lstm_cost(D, H) * 5


# -- vendors' norms and the fused encoder --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit"])
def test_every_batch_norm_costs_the_same(name: str) -> None:
    formula = formula_for(getattr(aten, name).default)
    assert formula(t(2, 3, 4), t(3), t(3), t(3), t(3), True, 0.1, 1e-5, out=None) == 4 * 24
    assert formula(t(2, 3, 4), None, None, t(3), t(3), False, 0.1, 1e-5, out=None) == 2 * 24


def test_the_fused_layer_of_attention_costs_the_same_by_either_kernel() -> None:
    native = formula_for(aten._native_multi_head_attention.default)
    assert formula_for(aten._triton_multi_head_attention.default) is native


def test_the_fast_path_of_the_encoder_is_not_free(count: Callable[..., Cost]) -> None:
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = t(3, 5, 8)
    with torch.no_grad():
        fast = count(lambda: layer(x), parts=False)
    linear = 15 * (2 * 8 * 32 + 2 * 8 * 16 + 2 * 16 * 8)
    scores = 3 * 2 * 5 * 5
    attention = scores * 7 + 3 * 2 * 5 * 4 * 9 + scores + 3 * 2 * 5 * 14
    assert fast == Cost(linear + attention + 15 * (16 + 2 * 32 + 16), linear // 2 + 2 * scores * 4)


# -- by name only: quantised ops and torchvision's -----------------------------------------------------------


@pytest.mark.filterwarnings("ignore:torch.quantize")  # deprecated, and still what models are made of
@pytest.mark.filterwarnings("ignore:torch.ao.quantization")
def test_quantised_layers_count_as_those_they_stand_for(count: Callable[..., Cost]) -> None:
    q = torch.ao.nn.quantized
    linear, conv = q.Linear(5, 7), q.Conv2d(4, 6, (2, 3), groups=2)
    x, image = (torch.quantize_per_tensor(t(*s), 0.1, 0, torch.quint8) for s in ((3, 5), (1, 4, 5, 6)))
    assert count(lambda: linear(x)) == Cost(3 * 7 * 10, 105)
    assert count(lambda: conv(image)) == Cost(96 * (2 * 12), 96 * 12)


def test_torchvisions_ops(count: Callable[..., Cost]) -> None:
    import torchvision.ops as ops

    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 1, 3, 3], [0, 0, 1, 1]])
    assert count(lambda: ops.nms(boxes, t(3), 0.5)) == Cost(3 * 2 + 9 + 13 * 3)
    regions = torch.cat([torch.zeros(3, 1), boxes], 1)
    assert count(lambda: ops.roi_align(t(1, 2, 8, 9), regions, (2, 3), 1.0, 2)) == Cost(3 * 2 * 6 * 8 * 4)
    offset, weight = t(1, 2 * 6, 4, 5), t(3, 2, 2, 3)
    deformed = count(lambda: ops.deform_conv2d(t(1, 2, 5, 7), offset, weight, t(3)))
    assert deformed == Cost(60 * 24 + 7 * 2 * 6 * 20, 60 * 12)
