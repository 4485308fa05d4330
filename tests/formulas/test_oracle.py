"""Formulas against arithmetic that is counted while it happens.

Each reference below computes an op in plain Python on numbers that count their own operations. Its values
must be torch's, so that the arithmetic is the op's; its operations must be what the formula says. Where the
convention departs from the arithmetic on purpose, the reference says so by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from itertools import chain, product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pytest_flops.metrics import Cost


class Num:
    """A real number; each operation on it is counted, on all numbers together."""

    operations = 0

    def __init__(self, value: float) -> None:
        self.value = value

    def _with(self, other: Any, function: Callable[[float, float], float]) -> Num:
        Num.operations += 1
        return Num(function(self.value, other.value if isinstance(other, Num) else other))

    def __add__(self, other: Any) -> Num:
        return self._with(other, lambda a, b: a + b)

    def __sub__(self, other: Any) -> Num:
        return self._with(other, lambda a, b: a - b)

    def __rsub__(self, other: Any) -> Num:
        return self._with(other, lambda a, b: b - a)

    def __mul__(self, other: Any) -> Num:
        return self._with(other, lambda a, b: a * b)

    def __truediv__(self, other: Any) -> Num:
        return self._with(other, lambda a, b: a / b)

    def max(self, other: Any) -> Num:
        return self._with(other, max)

    def min(self, other: Any) -> Num:
        return self._with(other, min)

    def apply(self, function: Callable[[float], float]) -> Num:
        """An elementary function: one operation."""
        return self._with(0.0, lambda a, _: function(a))

    __radd__, __rmul__ = __add__, __mul__


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def total(numbers: Sequence[Any]) -> Any:
    return reduce(lambda a, b: a + b, numbers)


def dot(a: Sequence[Any], b: Sequence[Any]) -> Any:
    return total([x * y for x, y in zip(a, b, strict=True)])


def nums(x: Tensor) -> Any:
    """Turn a tensor into nested lists of counting numbers."""
    return [nums(row) for row in x] if x.ndim else Num(x.item())


def columns(matrix: Sequence[Sequence[Any]]) -> list[list[Any]]:
    return [list(column) for column in zip(*matrix, strict=True)]


def mm(a: Any, b: Any) -> list[list[Any]]:
    return [[dot(row, column) for column in columns(b)] for row in a]


def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    out = mm(x, columns(weight))
    return out if bias is None else [[y + b for y, b in zip(row, bias, strict=True)] for row in out]


def flat(values: Any) -> Iterator[float]:
    if isinstance(values, (list, tuple)):
        for value in values:
            yield from flat(value)
    else:
        yield values.value if isinstance(values, Num) else values


torch.manual_seed(0)
_generator = torch.Generator().manual_seed(0)


def r(*shape: int) -> Tensor:
    return torch.rand(shape, generator=_generator, dtype=torch.float64) + 0.25


CASES: list[Any] = []


def oracle(name: str, op: Callable[..., Any], *args: Any) -> Callable[[Any], Any]:
    """Register the decorated reference for a torch call; it gets the tensors as nested lists of numbers."""

    def register(reference: Any) -> Any:
        CASES.append(pytest.param(op, args, reference, id=name))
        return reference

    return register


@pytest.mark.parametrize(("op", "args", "reference"), CASES)
def test_counts_what_the_arithmetic_does(
    op: Callable[..., Any], args: tuple[Any, ...], reference: Callable[..., Any], count: Callable[..., Cost]
) -> None:
    numbers = [nums(arg) if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in args]
    Num.operations = 0
    expected = list(flat(reference(*numbers)))
    operations = Num.operations
    actual = op(*args)
    torch.testing.assert_close(actual.flatten(), torch.tensor(expected, dtype=actual.dtype))
    assert count(lambda: op(*args), parts=False).flops == operations


def test_enough_operators_have_an_oracle() -> None:
    assert len({case.values[0] for case in CASES}) >= 40


# -- contraction --------------------------------------------------------------------------------------------

oracle("mm", torch.mm, r(2, 3), r(3, 5))(mm)
oracle("matmul", torch.matmul, r(2, 3), r(3, 5))(mm)
oracle("mv", torch.mv, r(4, 3), r(3))(lambda a, x: [dot(row, x) for row in a])
oracle("dot", torch.dot, r(7), r(7))(dot)
oracle("bmm", torch.bmm, r(2, 3, 4), r(2, 4, 5))(lambda a, b: [mm(x, y) for x, y in zip(a, b, strict=True)])
oracle("linear", F.linear, r(2, 3), r(5, 3))(linear)
oracle("linear-bias", F.linear, r(2, 3), r(5, 3), r(5))(linear)
oracle("outer", torch.outer, r(3), r(4))(lambda a, b: [[x * y for y in b] for x in a])


@oracle("addmm", lambda c, a, b: torch.addmm(c, a, b, beta=2, alpha=3), r(2, 5), r(2, 3), r(3, 5))
def _(c: Any, a: Any, b: Any) -> Any:
    pairs = zip(c, mm(a, b), strict=True)
    return [[2 * x + 3 * y for x, y in zip(bias, row, strict=True)] for bias, row in pairs]


@oracle("einsum-three", lambda a, b, c: torch.einsum("ij,jk,kl->il", a, b, c), r(2, 3), r(3, 4), r(4, 5))
def _(a: Any, b: Any, c: Any) -> Any:
    return mm(mm(a, b), c)


@oracle("einsum-batch", lambda a, b: torch.einsum("bij,bkj->bik", a, b), r(2, 3, 4), r(2, 5, 4))
def _(a: Any, b: Any) -> Any:
    return [mm(x, columns(y)) for x, y in zip(a, b, strict=True)]


@oracle("einsum-lone-index", lambda a, b: torch.einsum("ij,k->ik", a, b), r(2, 3), r(4))
def _(a: Any, b: Any) -> Any:
    return [[s * y for y in b] for s in map(total, a)]


@oracle("bilinear", F.bilinear, r(2, 3), r(2, 4), r(5, 3, 4))
def _(x: Any, y: Any, weight: Any) -> Any:
    def form(a: Any, w: Any, b: Any) -> Any:
        return total([a[i] * w[i][j] * b[j] for i in range(3) for j in range(4)])

    return [[form(a, w, b) for w in weight] for a, b in zip(x, y, strict=True)]


def complex_mm(a: Tensor, b: Tensor) -> Tensor:
    return torch.view_as_real(torch.view_as_complex(a) @ torch.view_as_complex(b))


@oracle("complex-mm", complex_mm, r(2, 3, 2), r(3, 5, 2))
def _(a: Any, b: Any) -> Any:
    def times(x: Any, y: Any) -> list[Any]:
        return [x[0] * y[0] - x[1] * y[1], x[0] * y[1] + x[1] * y[0]]

    def plus(x: Any, y: Any) -> list[Any]:
        return [x[0] + y[0], x[1] + y[1]]

    return [[reduce(plus, map(times, row, column)) for column in columns(b)] for row in a]


# -- convolution --------------------------------------------------------------------------------------------


def padded(x: Any, sizes: Sequence[int], padding: Sequence[int]) -> dict[tuple[int, ...], Any]:
    """Return the elements of one channel by position; what is outside is a zero like any other."""
    inside = {index: at(x, index) for index in product(*map(range, sizes))}
    ranges = [range(-p, size + p) for size, p in zip(sizes, padding, strict=True)]
    return {index: inside.get(index, Num(0.0)) for index in product(*ranges)}


def at(x: Any, index: Sequence[int]) -> Any:
    return reduce(lambda nested, i: nested[i], index, x)


def shape(x: Any) -> list[int]:
    return [len(x), *shape(x[0])] if isinstance(x, list) else []


def convolution(
    x: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    pad: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Any:
    _N, _Cin, *L = shape(x)
    Cout, width, *K = shape(weight)
    spans = zip(L, pad, dilation, K, stride, strict=True)
    out_ranges = [range((size + 2 * p - d * (k - 1) - 1) // s + 1) for size, p, d, k, s in spans]

    def element(channels: Any, kernel: Any, corner: Sequence[int]) -> Any:
        taps = [
            (
                c,
                k,
                tuple(
                    o * s - p + i * d for o, s, p, i, d in zip(corner, stride, pad, k, dilation, strict=True)
                ),
            )
            for c in range(width)
            for k in product(*map(range, K))
        ]
        return total([channels[c][position] * at(kernel[c], k) for c, k, position in taps])

    def image(sample: Any) -> Any:
        channels = [padded(channel, L, pad) for channel in sample]
        for out_channel in range(Cout):
            group = out_channel // (Cout // groups)
            for corner in product(*out_ranges):
                value = element(channels[group * width : (group + 1) * width], weight[out_channel], corner)
                yield value + bias[out_channel] if bias is not None else value

    return [list(image(sample)) for sample in x]


CONVOLUTIONS = {
    "conv1d": (F.conv1d, r(2, 3, 9), r(4, 3, 2), None, [1], [0], [1], 1),
    "conv1d-bias-strided": (F.conv1d, r(2, 3, 9), r(4, 3, 2), r(4), [3], [1], [1], 1),
    "conv2d-dilated": (F.conv2d, r(1, 2, 7, 6), r(3, 2, 2, 3), r(3), [1, 2], [1, 0], [2, 1], 1),
    "conv2d-grouped": (F.conv2d, r(2, 4, 5, 6), r(6, 2, 3, 2), r(6), [2, 1], [1, 1], [1, 1], 2),
    "conv2d-depthwise": (F.conv2d, r(1, 3, 5, 6), r(3, 1, 3, 2), None, [1, 1], [1, 0], [1, 1], 3),
    "conv3d": (F.conv3d, r(1, 2, 4, 5, 3), r(3, 2, 2, 3, 1), r(3), [1, 2, 1], [0, 1, 0], [1, 1, 1], 1),
}
for _name, (_op, *_args) in CONVOLUTIONS.items():
    oracle(_name, _op, *_args)(convolution)


def transposed(
    x: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    pad: Sequence[int],
    groups: int,
    dilation: Sequence[int],
) -> Any:
    """Spread each input element; of the whole result, margin included, the padding is cropped at the end."""
    _N, Cin, *L = shape(x)
    _Cin, width, *K = shape(weight)
    sizes = [(size - 1) * s + d * (k - 1) + 1 for size, s, d, k in zip(L, stride, dilation, K, strict=True)]

    def image(sample: Any) -> Any:
        sums: dict[Any, Any] = {}
        for c, i, o, k in product(range(Cin), product(*map(range, L)), range(width), product(*map(range, K))):
            out_channel = c // (Cin // groups) * width + o
            target = (
                out_channel,
                *(a * s + b * d for a, s, b, d in zip(i, stride, k, dilation, strict=True)),
            )
            value = at(sample[c], i) * at(weight[c][o], k)
            sums[target] = sums[target] + value if target in sums else value
        cropped = [range(p, size - p) for size, p in zip(sizes, pad, strict=True)]
        for target in product(range(width * groups), *cropped):
            value = sums.get(target, Num(0.0))
            yield value + bias[target[0]] if bias is not None else value

    return [list(image(sample)) for sample in x]


def conv_transpose(op: Any) -> Any:
    return lambda x, w, b, stride, pad, groups, dilation: op(x, w, b, stride, pad, 0, groups, dilation)


_transpose1d, _transpose2d = conv_transpose(F.conv_transpose1d), conv_transpose(F.conv_transpose2d)
TRANSPOSED = {
    "conv_transpose1d": (_transpose1d, r(2, 3, 5), r(3, 4, 3), None, [2], [0], 1, [1]),
    "conv_transpose1d-gaps": (_transpose1d, r(2, 3, 5), r(3, 4, 2), r(4), [4], [0], 1, [1]),
    "conv_transpose1d-dilated": (_transpose1d, r(1, 2, 5), r(2, 3, 3), r(3), [2], [1], 1, [2]),
    "conv_transpose1d-coprime": (_transpose1d, r(1, 2, 6), r(2, 3, 4), None, [2], [0], 1, [3]),
    "conv_transpose2d-grouped": (_transpose2d, r(1, 4, 3, 2), r(4, 3, 2, 3), r(6), [2, 1], [0, 1], 2, [1, 1]),
}
for _name, (_op, *_args) in TRANSPOSED.items():
    oracle(_name, _op, *_args)(transposed)


def complex_conv(x: Tensor, weight: Tensor) -> Tensor:
    return torch.view_as_real(F.conv1d(torch.view_as_complex(x), torch.view_as_complex(weight)))


@oracle("complex-conv1d", complex_conv, r(1, 2, 5, 2), r(3, 2, 2, 2))
def _(x: Any, weight: Any) -> Any:
    def times(a: Any, b: Any) -> list[Any]:
        return [a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]]

    def plus(a: Any, b: Any) -> list[Any]:
        return [a[0] + b[0], a[1] + b[1]]

    def element(kernel: Any, o: int) -> Any:
        return reduce(plus, [times(x[0][c][o + k], kernel[c][k]) for c in range(2) for k in range(2)])

    return [[element(kernel, o) for o in range(4)] for kernel in weight]


# -- normalisation: the statistics are plain numbers, for the convention does not count them -----------------


def normalized(row: Sequence[Num], weight: Sequence[Any], bias: Sequence[Any]) -> list[Any]:
    values = [x.value for x in row]
    mean = sum(values) / len(values)
    rstd = 1 / math.sqrt(sum((v - mean) ** 2 for v in values) / len(values) + 1e-5)
    return [(x - mean) * rstd * w + b for x, w, b in zip(row, weight, bias, strict=True)]


@oracle("layer_norm", F.layer_norm, r(3, 4), [4], r(4), r(4))
def _(x: Any, _shape: Any, weight: Any, bias: Any) -> Any:
    return [normalized(row, weight, bias) for row in x]


@oracle("group_norm", F.group_norm, r(2, 6, 3), 2, r(6), r(6))
def _(x: Any, groups: int, weight: Any, bias: Any) -> Any:
    def channels(per_channel: Any, g: int) -> list[Any]:
        return [value for value in per_channel[3 * g : 3 * g + 3] for _ in range(3)]

    rows = [([*chain(*image[3 * g : 3 * g + 3])], g) for image in x for g in range(groups)]
    return [normalized(row, channels(weight, g), channels(bias, g)) for row, g in rows]


@oracle("batch_norm", F.batch_norm, r(2, 3, 4), r(3), r(3), r(3), r(3))
def _(x: Any, mean: Any, var: Any, weight: Any, bias: Any) -> Any:
    rstd = [1 / math.sqrt(v.value + 1e-5) for v in var]
    return [
        [[(v - mean[c]) * rstd[c] * weight[c] + bias[c] for v in channel] for c, channel in enumerate(image)]
        for image in x
    ]


# -- pooling ------------------------------------------------------------------------------------------------


@oracle("avg_pool2d", F.avg_pool2d, r(2, 3, 7, 5), (3, 2), (2, 1), (1, 1))
def _(x: Any, kernel: Any, stride: Any, pad: Any) -> Any:
    return pooled(x, kernel, stride, pad, [4, 6], 0.0, lambda window: total(window) / len(window))


@oracle("max_pool2d", F.max_pool2d, r(2, 3, 7, 5), (3, 2), (2, 1), (1, 1))
def _(x: Any, kernel: Any, stride: Any, pad: Any) -> Any:
    return pooled(x, kernel, stride, pad, [4, 6], -math.inf, lambda window: reduce(Num.max, window))


@oracle("max_pool2d-ceil", lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True), r(1, 2, 6, 8))
def _(x: Any) -> Any:
    return pooled(x, (3, 3), (2, 2), (0, 0), [3, 4], -math.inf, lambda window: reduce(Num.max, window))


def pooled(x: Any, kernel: Any, stride: Any, pad: Any, size: Any, outside: float, combine: Any) -> Any:
    def window(channel: Any, o: Any) -> list[Num]:
        H, W = shape(channel)
        corner = [a * s - p for a, s, p in zip(o, stride, pad, strict=True)]
        taps = [(corner[0] + i, corner[1] + j) for i in range(kernel[0]) for j in range(kernel[1])]
        return [channel[i][j] if 0 <= i < H and 0 <= j < W else Num(outside) for i, j in taps]

    return [[[combine(window(c, o)) for o in product(*map(range, size))] for c in image] for image in x]


def adaptive(x: Any, outputs: int, combine: Any) -> Any:
    def windows(row: Any) -> Iterator[Any]:
        n = len(row)
        for o in range(outputs):
            yield combine(row[o * n // outputs : -(-(o + 1) * n // outputs)])

    return [[list(windows(channel)) for channel in image] for image in x]


for _L, _o in ((7, 3), (6, 4), (6, 3), (5, 8), (9, 1)):
    oracle(f"adaptive_avg_pool1d-{_L}-{_o}", F.adaptive_avg_pool1d, r(2, 3, _L), _o)(
        lambda x, o: adaptive(x, o, lambda window: total(window) / len(window))
    )
    oracle(f"adaptive_max_pool1d-{_L}-{_o}", F.adaptive_max_pool1d, r(2, 3, _L), _o)(
        lambda x, o: adaptive(x, o, lambda window: reduce(Num.max, window))
    )


# -- softmax and reductions ---------------------------------------------------------------------------------


def softmax(row: Sequence[Num]) -> list[Num]:
    """Without the subtraction of the maximum, which the convention does not count."""
    exps = [x.apply(math.exp) for x in row]
    denominator = total(exps)
    return [e / denominator for e in exps]


def logsumexp(row: Sequence[Num]) -> Num:
    return total([x.apply(math.exp) for x in row]).apply(math.log)


oracle("softmax", F.softmax, r(3, 5), -1)(lambda x, _dim: [softmax(row) for row in x])
oracle("softmax-first-dim", F.softmax, r(3, 5), 0)(lambda x, _dim: columns([softmax(c) for c in columns(x)]))
oracle("logsumexp", torch.logsumexp, r(3, 5), 1)(lambda x, _dim: [logsumexp(row) for row in x])


@oracle("log_softmax", F.log_softmax, r(3, 5), -1)
def _(x: Any, _dim: int) -> Any:
    return [[v - norm for v in row] for row in x for norm in [logsumexp(row)]]


def mean(row: Sequence[Num]) -> Num:
    return total(row) / len(row)


def variance(row: Sequence[Num]) -> Num:
    center = mean(row)
    squares = [d * d for d in [x - center for x in row]]
    return total(squares) / (len(row) - 1)


ROWS: dict[str, tuple[Any, Any]] = {
    "sum": (torch.sum, total),
    "mean": (torch.mean, mean),
    "prod": (torch.prod, lambda row: reduce(Num.__mul__, row)),
    "amax": (torch.amax, lambda row: reduce(Num.max, row)),
    "amin": (torch.amin, lambda row: reduce(Num.min, row)),
    "var": (torch.var, variance),
    "std": (torch.std, lambda row: variance(row).apply(math.sqrt)),
    "vector_norm": (
        lambda x, dim: torch.linalg.vector_norm(x, dim=dim),
        lambda row: total([x * x for x in row]).apply(math.sqrt),
    ),
}
for _name, (_op, _row) in ROWS.items():
    oracle(_name, _op, r(3, 5), 1)(lambda x, _dim, row=_row: [row(values) for values in x])


@oracle("cumsum", torch.cumsum, r(3, 5), 1)
def _(x: Any, _dim: int) -> Any:
    def running(row: Any) -> Iterator[Num]:
        state = None
        for value in row:
            state = value if state is None else state + value
            yield state

    return [list(running(row)) for row in x]


@oracle("cdist", torch.cdist, r(3, 4), r(5, 4))
def _(x: Any, y: Any) -> Any:
    def distance(a: Any, b: Any) -> Num:
        differences = [p - q for p, q in zip(a, b, strict=True)]
        return total([d * d for d in differences]).apply(math.sqrt)

    return [[distance(a, b) for b in y] for a in x]


# -- attention ----------------------------------------------------------------------------------------------


def attention(q: Any, k: Any, v: Any, mask: Callable[[int, int], float] | None = None) -> Any:
    scale = 1 / math.sqrt(len(q[0]))
    scores = [[score * scale for score in row] for row in mm(q, columns(k))]
    if mask is not None:
        scores = [[s + mask(i, j) for j, s in enumerate(row)] for i, row in enumerate(scores)]
    return mm([softmax(row) for row in scores], v)


sdpa = F.scaled_dot_product_attention
oracle("attention", sdpa, r(2, 3, 4), r(2, 5, 4), r(2, 5, 6))(lambda q, k, v: list(map(attention, q, k, v)))


@oracle("attention-causal", lambda q, k, v: sdpa(q, k, v, is_causal=True), r(2, 3, 4), r(2, 3, 4), r(2, 3, 6))
def _(q: Any, k: Any, v: Any) -> Any:
    return [
        attention(a, b, c, lambda i, j: -math.inf if j > i else 0.0) for a, b, c in zip(q, k, v, strict=True)
    ]


@oracle("attention-mask", sdpa, r(2, 3, 4), r(2, 5, 4), r(2, 5, 6), r(3, 5))
def _(q: Any, k: Any, v: Any, mask: Any) -> Any:
    return [attention(a, b, c, lambda i, j: mask[i][j]) for a, b, c in zip(q, k, v, strict=True)]


@oracle(
    "attention-grouped-queries",
    lambda q, k, v: sdpa(q, k, v, enable_gqa=True),
    r(1, 6, 3, 4),
    r(1, 2, 5, 4),
    r(1, 2, 5, 4),
)
def _(q: Any, k: Any, v: Any) -> Any:
    return [attention(q[0][head], k[0][head // 3], v[0][head // 3]) for head in range(6)]


# -- losses -------------------------------------------------------------------------------------------------


def pairs(x: Any, y: Any) -> list[tuple[Num, Num]]:
    return [pair for a, b in zip(x, y, strict=True) for pair in zip(a, b, strict=True)]


@oracle("mse_loss", F.mse_loss, r(3, 4), r(3, 4))
def _(x: Any, target: Any) -> Any:
    return mean([d * d for d in [a - t for a, t in pairs(x, target)]])


@oracle("l1_loss", F.l1_loss, r(3, 4), r(3, 4))
def _(x: Any, target: Any) -> Any:
    return mean([(a - t).apply(abs) for a, t in pairs(x, target)])


@oracle("binary_cross_entropy", F.binary_cross_entropy, r(3, 4) / 2, r(3, 4) / 2)
def _(x: Any, target: Any) -> Any:
    def loss(p: Num, t: Num) -> Num:
        likelihood = t * p.apply(math.log) + (1 - t) * (1 - p).apply(math.log)
        return likelihood.apply(lambda value: -value)

    return mean([loss(p, t) for p, t in pairs(x, target)])


@oracle("bce_with_logits", F.binary_cross_entropy_with_logits, r(3, 4), r(3, 4))
def _(x: Any, target: Any) -> Any:
    def loss(z: Num, t: Num) -> Num:
        return (1 - t) * z - z.apply(lambda value: math.log(sigmoid(value)))

    return mean([loss(z, t) for z, t in pairs(x, target)])


@oracle("cross_entropy", F.cross_entropy, r(3, 5), torch.tensor([2, 0, 4]))
def _(x: Any, target: Tensor) -> Any:
    def loss(row: Any, label: int) -> Num:
        norm = logsumexp(row)
        return [v - norm for v in row][label].apply(lambda value: -value)

    return mean([loss(row, label) for row, label in zip(x, target.tolist(), strict=True)])


# -- interpolation: weights are plain numbers, for they are the same for all channels ------------------------


@oracle("interpolate-bilinear", lambda x: F.interpolate(x, (5, 3), mode="bilinear"), r(1, 2, 3, 4))
def _(x: Any) -> Any:
    def taps(o: int, source: int, target: int) -> list[tuple[int, float]]:
        position = max((o + 0.5) * source / target - 0.5, 0.0)
        low = int(position)
        return [(low, 1 - position + low), (min(low + 1, source - 1), position - low)]

    def value(channel: Any, i: int, j: int) -> Num:
        return total([channel[a][b] * (u * v) for a, u in taps(i, 3, 5) for b, v in taps(j, 4, 3)])

    return [[[value(channel, i, j) for j in range(3)] for i in range(5)] for channel in x[0]]


@oracle("interpolate-nearest", lambda x: F.interpolate(x, (6, 8)), r(1, 2, 3, 4))
def _(x: Any) -> Any:
    return [[[channel[i // 2][j // 2] for j in range(8)] for i in range(6)] for channel in x[0]]


# -- recurrent cells ----------------------------------------------------------------------------------------


def gates(x: Any, h: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any) -> Any:
    return zip(linear(x, w_ih, b_ih), linear(h, w_hh, b_hh), strict=True)


CELL = (r(2, 3), r(2, 4))


def weights(G: int) -> tuple[Tensor, ...]:
    return r(G, 3), r(G, 4), r(G), r(G)


def lstm_step(x: Any, h: Any, c: Any, *params: Any) -> Any:
    def state(row: Any, cells: Any) -> list[Num]:
        i, f, g, o = row[:4], row[4:8], row[8:12], row[12:]
        i, f, o = ([v.apply(sigmoid) for v in gate] for gate in (i, f, o))
        g = [v.apply(math.tanh) for v in g]
        new = [f[n] * cells[n] + i[n] * g[n] for n in range(4)]
        return [o[n] * new[n].apply(math.tanh) for n in range(4)]

    sums = [[a + b for a, b in zip(*both, strict=True)] for both in gates(x, h, *params)]
    return [state(row, cells) for row, cells in zip(sums, c, strict=True)]


oracle("lstm_cell", lambda x, h, c, *w: torch.lstm_cell(x, [h, c], *w)[0], *CELL, r(2, 4), *weights(16))(
    lstm_step
)


def one_step_lstm(x: Tensor, h: Tensor, c: Tensor, *params: Tensor) -> Tensor:
    return torch.lstm(x[None], [h[None], c[None]], [*params], True, 1, 0.0, False, False, False)[0]


oracle("lstm", one_step_lstm, *CELL, r(2, 4), *weights(16))(lstm_step)


@oracle("gru_cell", torch.gru_cell, *CELL, *weights(12))
def _(x: Any, h: Any, *params: Any) -> Any:
    def state(a: Any, b: Any, old: Any) -> list[Num]:
        reset = [(a[n] + b[n]).apply(sigmoid) for n in range(4)]
        update = [(a[n] + b[n]).apply(sigmoid) for n in range(4, 8)]
        new = [(a[n + 8] + reset[n] * b[n + 8]).apply(math.tanh) for n in range(4)]
        return [(old[n] - new[n]) * update[n] + new[n] for n in range(4)]

    return [state(a, b, old) for (a, b), old in zip(gates(x, h, *params), h, strict=True)]


@oracle("rnn_tanh_cell", torch.rnn_tanh_cell, *CELL, *weights(4))
def _(x: Any, h: Any, *params: Any) -> Any:
    return [[(p + q).apply(math.tanh) for p, q in zip(a, b, strict=True)] for a, b in gates(x, h, *params)]


# -- pointwise ----------------------------------------------------------------------------------------------

POINTWISE: dict[str, tuple[Any, Any]] = {
    "gelu": (F.gelu, lambda x: x.apply(lambda v: v * (1 + math.erf(v / math.sqrt(2))) / 2)),  # one function
    "silu": (F.silu, lambda x: x.apply(lambda v: v * sigmoid(v))),  # one function
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.1), lambda x: x.max(0.0) + 0.1 * x.min(0.0)),
    "hardtanh": (F.hardtanh, lambda x: x.max(-1.0).min(1.0)),
    "hardsigmoid": (F.hardsigmoid, lambda x: (x + 3.0).max(0.0).min(6.0) / 6.0),
    "hardswish": (F.hardswish, lambda x: x * (x + 3.0).max(0.0).min(6.0) / 6.0),
    "softsign": (F.softsign, lambda x: x / (x.apply(abs) + 1.0)),
    "tanhshrink": (F.tanhshrink, lambda x: x - x.apply(math.tanh)),
    "clamp": (lambda x: torch.clamp(x, 0.4, 0.8), lambda x: x.max(0.4).min(0.8)),
    "clamp-min": (lambda x: torch.clamp(x, min=0.4), lambda x: x.max(0.4)),
}
for _name, (_op, _element) in POINTWISE.items():
    oracle(_name, _op, r(7) - 0.75)(lambda x, element=_element: [element(v) for v in x])


def each(function: Callable[..., Num]) -> Callable[..., list[Num]]:
    return lambda *rows: [function(*values) for values in zip(*rows, strict=True)]


oracle("addcmul", torch.addcmul, r(7), r(7), r(7))(each(lambda x, a, b: x + a * b))
oracle("addcdiv", torch.addcdiv, r(7), r(7), r(7))(each(lambda x, a, b: x + a / b))
oracle("lerp", torch.lerp, r(7), r(7), r(7))(each(lambda a, b, w: a + w * (b - a)))
oracle("add-alpha", lambda x, y: torch.add(x, y, alpha=3), r(7), r(7))(each(lambda x, y: x + 3 * y))
oracle("hypot", torch.hypot, r(7), r(7))(each(lambda x, y: (x * x + y * y).apply(math.sqrt)))
oracle("logaddexp", torch.logaddexp, r(7), r(7))(
    each(lambda x, y: (x.apply(math.exp) + y.apply(math.exp)).apply(math.log))
)
oracle("glu", F.glu, r(8))(lambda x: [a * b.apply(sigmoid) for a, b in zip(x[:4], x[4:], strict=True)])


# -- lookups that add ---------------------------------------------------------------------------------------


@oracle("index_add", lambda x, i, s: x.index_add(0, i, s), r(3, 2), torch.tensor([0, 2, 0, 1]), r(4, 2))
def _(x: Any, index: Tensor, source: Any) -> Any:
    for row, i in enumerate(index.tolist()):
        x[i] = [a + b for a, b in zip(x[i], source[row], strict=True)]
    return x


@oracle(
    "embedding_bag",
    lambda i, w: F.embedding_bag(i, w, mode="sum"),
    torch.tensor([[1, 2, 1], [0, 3, 2]]),
    r(4, 5),
)
def _(indices: Tensor, weight: Any) -> Any:
    return [[total(values) for values in columns([weight[i] for i in bag])] for bag in indices.tolist()]


# -- linear algebra -----------------------------------------------------------------------------------------

_spd = r(4, 4) @ r(4, 4).T * 0.1 + torch.eye(4, dtype=torch.float64)
_spd = (_spd + _spd.T) / 2 + 2 * torch.eye(4, dtype=torch.float64)


@oracle("cholesky", torch.linalg.cholesky, _spd)
def _(A: Any) -> Any:
    n = len(A)
    L: list[list[Any]] = [[0.0] * n for _ in range(n)]
    for j in range(n):
        for i in range(j, n):
            value = A[i][j]
            for k in range(j):
                value = value - L[i][k] * L[j][k]
            L[i][j] = value.apply(math.sqrt) if i == j else value / L[j][j]
    return L


@oracle("lu", lambda A: torch.linalg.lu_factor(A)[0], _spd + 5 * torch.eye(4, dtype=torch.float64))
def _(A: Any) -> Any:
    n = len(A)
    for k in range(n):
        for i in range(k + 1, n):
            A[i][k] = A[i][k] / A[k][k]
            for j in range(k + 1, n):
                A[i][j] = A[i][j] - A[i][k] * A[k][j]
    return A


@oracle(
    "solve_triangular", lambda A, b: torch.linalg.solve_triangular(A, b, upper=False), _spd.tril(), r(4, 3)
)
def _(A: Any, b: Any) -> Any:
    def solve(column: Any) -> list[Num]:
        x: list[Num] = []
        for i, value in enumerate(column):
            for j, known in enumerate(x):
                value = value - A[i][j] * known
            x.append(value / A[i][i])
        return x

    return columns([solve(column) for column in columns(b)])


@oracle("cross", lambda a, b: torch.linalg.cross(a, b), r(3), r(3))
def _(a: Any, b: Any) -> Any:
    return [a[(i + 1) % 3] * b[(i + 2) % 3] - a[(i + 2) % 3] * b[(i + 1) % 3] for i in range(3)]
