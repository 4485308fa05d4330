"""Eager memory traffic and the number of ops: what is read and written, in bytes, by hand."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from pytest_flops.counting.shapes import forget
from pytest_flops.counting.trace import trace
from pytest_flops.errors import TraceError
from tests.formulas.test_op_db import CASES, samples

x = torch.randn(8, 128, 256)  # 262,144 elements
MB = 8 * 128 * 256 * 4  # its bytes: 1,048,576
q = torch.randn(2, 8, 512, 64)
Q = 2 * 8 * 512 * 64 * 4  # 2,097,152 bytes
SCORES = 2 * 8 * 512 * 512 * 4


def found(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[int, int]:
    """Return memory traffic and ops, the same on shapes, on real tensors and from the memo."""
    forget()
    first, again, real = (trace(function, args, execute=kind, **kwargs) for kind in ("meta", "meta", "real"))
    assert first.cost == again.cost == real.cost
    return first.memory_traffic, first.ops


# The same FLOPs, more work ----------------------------------------------------------------------------------


def test_a_copy_into_another_layout():
    assert found(lambda x: F.gelu(x.transpose(1, 2)), x) == (2 * MB, 1)
    assert found(lambda x: F.gelu(x.transpose(1, 2).contiguous()), x) == (4 * MB, 2)
    assert found(lambda x: F.gelu(x.contiguous()), x) == (2 * MB, 1)  # it already is


def test_a_cast_and_back():
    half = x.bfloat16()
    assert found(lambda x: F.layer_norm(x, (256,)), half) == (MB, 1)
    cast = found(lambda x: F.layer_norm(x.float(), (256,)).to(torch.bfloat16), half)
    assert cast == (MB // 2 + MB + 2 * MB + MB + MB // 2, 3)


def test_attention_fused_unfused_and_by_heads():
    assert found(lambda q: F.scaled_dot_product_attention(q, q, q), q) == (2 * Q, 1)

    def unfused(q: Tensor) -> Tensor:
        return ((q @ q.transpose(-1, -2)) * 0.125).softmax(-1) @ q

    products = (2 * Q + SCORES) + (SCORES + 2 * Q)  # q and its transpose are two views
    assert found(unfused, q) == (products + 2 * SCORES + 2 * SCORES, 4)

    def by_heads(q: Tensor) -> Tensor:
        return torch.stack([unfused(q[:, head]) for head in range(8)], 1)

    assert found(by_heads, q) == (products + 4 * SCORES + 2 * Q, 8 * 4 + 1)


def test_a_gather_where_a_sum_would_do_and_a_cat_of_what_was_whole():
    index = torch.arange(128)
    assert found(lambda x: x + 1, x) == (2 * MB, 1)
    assert found(lambda x, i: x[:, i] + 1, x, index) == (2 * MB + 128 * 8 + 2 * MB, 2)
    assert found(lambda x: torch.cat([x[:, :64], x[:, 64:]], 1) + 1, x) == (4 * MB, 2)


def test_repetition_where_broadcasting_would_do():
    assert found(lambda x: x[:, :, None].expand(8, 128, 4, 256) * 2, x) == (MB + 4 * MB, 1)
    repeated = found(lambda x: x.repeat_interleave(4, dim=1).view(8, 128, 4, 256) * 2, x)
    assert repeated == (MB + 4 * MB + 8 * MB, 2)


# One rule after another -------------------------------------------------------------------------------------


def test_what_is_given_twice_is_read_once():
    assert found(lambda x: x * x, x) == (2 * MB, 1)
    assert found(lambda x, y: x * y, x, x.clone()) == (3 * MB, 1)
    assert found(lambda x: x.add_(x), x.clone()) == (2 * MB, 1)


def test_views_and_what_does_nothing_are_free():
    assert found(lambda x: x.view(-1)[5:].unsqueeze(0).detach().expand(3, -1), x) == (0, 0)
    assert found(lambda x: F.dropout(x, 0.5, training=False), x) == (0, 0)
    assert found(nn.Sequential(nn.Dropout(), nn.Identity(), nn.Flatten()), x) == (0, 0)
    assert found(lambda x: x.float().to("cpu").reshape(-1), x) == (0, 0)
    assert found(lambda x: torch.empty_like(x).resize_(3).squeeze_(), x) == (0, 0)


def test_a_view_reads_what_it_addresses():
    assert found(lambda x: x[:, ::2] + 1, x) == (MB, 1)  # half in, half out
    assert found(lambda x: x[0, 0].unfold(0, 4, 1) + 1, x) == ((256 + 253 * 4) * 4, 1)  # windows overlap


@pytest.mark.parametrize(
    ("write", "traffic"),
    [
        (lambda x: x.zero_(), MB),
        (lambda x: x.fill_(1.0), MB),
        (lambda x: x.copy_(torch.empty_like(x)), 2 * MB),
        (lambda x: x.normal_(), MB),
        (lambda x: x.mul_(2), 2 * MB),
        (lambda x: x[:, :64].add_(1), MB),
        (lambda x: torch.zeros_like(x), MB),
        (lambda x: x.new_zeros(5), 20),
        (lambda x: torch.add(x, 1, out=torch.empty_like(x)), 2 * MB),
        (lambda x: x.bernoulli(), 2 * MB),
    ],
)
def test_what_is_only_overwritten_is_not_read(write, traffic):
    assert found(write, x.abs().clamp(max=1)) == (traffic, 1)


ROWS = 4 * 256 * 4  # bytes of four rows of 256 floats
FOUR = torch.arange(4)


@pytest.mark.parametrize(
    ("take", "traffic"),
    [
        (lambda w, i: F.embedding(i, w), 32 + 2 * ROWS),
        (lambda w, i: w[i], 32 + 2 * ROWS),
        (lambda w, i: w.index_select(0, i), 32 + 2 * ROWS),
        (lambda w, i: w.gather(0, i[:, None].expand(4, 256)), 32 + 2 * ROWS),  # the index has 4 numbers
        (lambda w, i: w.take(i), 32 + 2 * 16),
        (lambda w, i: F.embedding_bag(i[None], w), 32 + 16 + ROWS + ROWS // 4),  # offsets are made too
        (lambda w, i: w[[0, 0, 0, 0]], 32 + 2 * ROWS),  # the list becomes a tensor of 4 numbers
    ],
)
def test_gathers_read_what_they_take(take, traffic):
    assert found(take, torch.randn(50_000, 256), FOUR)[0] == traffic


@pytest.mark.parametrize(
    ("put", "traffic"),
    [
        (lambda w, i, v: w.index_put_((i,), v), 32 + 2 * ROWS),
        (lambda w, i, v: w.index_put_((i,), v, accumulate=True), 32 + 3 * ROWS),
        (lambda w, i, v: w.index_copy_(0, i, v), 32 + 2 * ROWS),
        (lambda w, i, v: w.index_add_(0, i, v), 32 + 3 * ROWS),
        (lambda w, i, v: w.index_fill_(0, i, 1.0), 32 + ROWS),
        (lambda w, i, v: w.scatter_(0, i[:, None].expand(4, 256), v), 32 + 2 * ROWS),
        (lambda w, i, v: w.scatter_add_(0, i[:, None].expand(4, 256), v), 32 + 3 * ROWS),
        (lambda w, i, v: w.scatter_reduce_(0, i[:, None].expand(4, 256), v, "amax"), 32 + 3 * ROWS),
        (lambda w, i, v: w.put_(i, v[0, :4]), 32 + 2 * 16),
        (lambda w, i, v: w.index_add(0, i, v), 32 + ROWS + 2 * 50_000 * 256 * 4),  # a new one, whole
    ],
)
def test_scatters_in_place_write_what_they_put(put, traffic):
    assert found(put, torch.randn(50_000, 256), FOUR, torch.randn(4, 256))[0] == traffic


def test_questions_about_values_read_and_an_op_without_a_formula_moves_what_it_moves():
    def asks(x: Tensor, mask: Tensor) -> Tensor:
        return x + 1 if mask.all() else x

    mask = torch.ones(16, dtype=torch.bool)
    assert found(asks, x, mask) == (17 + 1 + 2 * MB, 3)  # all, its answer, the sum


# Whole models -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_resnet18_moves_what_pytorchs_own_estimator_says(memory_format):
    # torch.distributed._tools.runtime_estimator, inputs and outputs of all ops but views: 84,029,088 read
    # and 32,921,504 written
    model = torchvision.models.resnet18().to(memory_format=memory_format)
    image = torch.randn(1, 3, 224, 224).to(memory_format=memory_format)
    assert found(model, image)[0] == 84_029_088 + 32_921_504
    assert trace(model.to("meta"), image.to("meta")).memory_traffic == 116_950_592


def test_a_training_step_moves_its_gradients_too():
    model = nn.Linear(8, 4, bias=False)
    report = trace(model, torch.randn(2, 8), train=True, backward=True)
    forward, weights_gradient = (16 + 32 + 8) * 4, (16 + 8 + 32) * 4  # x, w and y; x, dy and dw
    assert (report.memory_traffic, report.ops) == (forward + weights_gradient, 2)
    assert report.backward_cost.memory_traffic == weights_gradient
    assert found(model, torch.randn(2, 8), train=True, backward=True)[0] == report.memory_traffic


def test_a_fused_attention_moves_no_scores_in_its_backward_pass():
    def attend(*given: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*(2 * tensor for tensor in given))

    given = [torch.randn(2, 8, 512, 64, requires_grad=True) for _ in range(3)]
    products = 2 * 3 * 2 * Q  # forward and backward
    # forward: q, k, v, o; backward: q, k, v, o and do in, dq, dk and dv out
    assert found(attend, *given, train=True, backward=True) == (4 * Q + 8 * Q + products, 2 + 6)


def test_a_convolution_of_channels_last_gives_channels_last():
    def through(x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight).permute(0, 2, 3, 1).contiguous()

    def sizes(memory_format: torch.memory_format) -> tuple[int, int]:
        image = torch.randn(2, 3, 8, 8).to(memory_format=memory_format)
        return found(through, image, torch.randn(4, 3, 3, 3))

    convolved = (2 * 3 * 64 + 4 * 3 * 9 + 2 * 4 * 36) * 4
    assert sizes(torch.channels_last) == (convolved, 1)
    assert sizes(torch.contiguous_format) == (convolved + 2 * (2 * 4 * 36 * 4), 2)


def test_the_operator_database_moves_the_same_on_shapes_and_on_real_tensors():
    compared, different = 0, []
    for op, dtype in [case.values for case in CASES]:
        if dtype.is_complex:
            continue
        for sample in samples(op, dtype, 1):
            args = (sample.input, *sample.args)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what torch deprecates
                try:
                    costs = [
                        trace(lambda *a, op=op, **k: op(*a, **k), args, sample.kwargs, execute=kind).cost
                        for kind in ("meta", "real")
                    ]
                except TraceError:  # only values tell
                    continue
            compared += 1
            different += [op.full_name] if costs[0] != costs[1] else []
    assert different == []
    assert compared > 500
