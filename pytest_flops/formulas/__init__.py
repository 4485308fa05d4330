"""What an op costs: FLOPs and multiply-accumulates from the shapes that go in and come out.

Counting convention
-------------------

A FLOP is one real addition, subtraction, multiplication, division, comparison or elementary function (exp,
sqrt, a Bessel function: one each), whatever the dtype. It is counted exactly, the −1 of a dot product
included:

* contraction: (m,k)·(k,n) takes (2k−1)·m·n, a bias m·n more. With `beta·bias + alpha·product`, a factor
  other than 1 is a multiplication per element, and beta = 0 drops the addition. Convolution:
  2·(Cin/groups)·ΠK − 1 per output element, and its bias; padding counts as work. Transposed convolution:
  every product, and the additions that join them. Einsum: two operands at a time from left to right,
  whatever path is taken.
* pointwise: 1 per output element. Ops that do several count them (`addcmul` 2, `lerp` 3, `hardswish` 5);
  named smooth activations (GELU, SiLU, ELU, softplus…) are one elementary function; leaky ReLU is max(0,x)
  + slope·min(0,x): 4. The gradient of an activation is its derivative times what comes in: 2.
* reduction: n−1 per output, mean n, variance 4n, norm 2n. Softmax 3n−1 per row, log-softmax 3n, logsumexp
  2n; subtracting the maximum, which only guards against overflow, is not counted.
* normalisation: 2 per element, 1 each for a scale and a shift. Statistics are not counted, so train and
  eval mode agree. (`rms_norm` reaches ATen as its parts, and counts them all.)
* counters: adding to a whole number that stands alone (a tensor without dimensions, such as a batch norm's
  `num_batches_tracked`) is bookkeeping, and counts as little as arithmetic of Python numbers.
* pooling: average ΠK per output, max ΠK−1; a window counts whole where it covers padding. Adaptive windows
  count what they hold.
* attention: QKᵀ, scale, mask (if there is one, or causal), softmax, dropout (1 per score if p > 0), AV. A
  causal mask counts in full. Grouped queries count like as many heads of their own. Scores are those of what
  queries and keys broadcast to; values that broadcast further enlarge the last product alone.
* attention of packed sequences, each with a length of its own (`torch.nn.attention.varlen`): by their
  lengths, where these have values. In a run that has not, as if every query met the longest sequence of keys.
* attention's gradient: dV and dP from the values, softmax's 4n−1 per row, dQ and dK, each scaled: twice the
  products of the forward pass, whether autograd or a fused kernel computes them. That such a kernel computes
  the scores again is not counted (torch.utils.flop_counter counts it: five products where these are four).
* recurrent layers: linear maps with their biases and the pointwise work of each step, LSTM 13 per feature
  of the state, GRU 10, plain 2. Packed sequences count the steps they hold.
* dropout: 0 in eval; in training 2 per element (scale the mask, apply it). Feature and alpha dropout: their
  parts.
* sorting, selection, search: comparisons of a textbook algorithm. FFT: 5·n·⌈log₂ n⌉, half for real input.
  Linear algebra: the counts of Golub & Van Loan and LAPACK. Interpolation: the weighted sum of the taps.
* sparse operands: what they store, 2 per stored element and column; coalescing, one addition per element that
  falls together with another. Quantised ops: as those they stand for.
* complex numbers: in real FLOPs: addition 2, product 6, quotient 11, modulus 4; a complex
  multiply-accumulate is 4 real ones. Any other function 2, one for each real number that comes out.
* zero by kind: views, copies, casts, layout, creation, random numbers, lookup, and selection by a mask that
  is already there (`where`, `masked_fill`); conjugation, which is a flag; arithmetic of Python numbers.
* gradients: see each op. `convolution_backward` honours groups and counts the gradients that are asked for.

`macs` are the multiply-accumulates of contractions (matrix products, convolutions, attention, recurrent
layers) and of nothing else: twice that is what `torch.utils.flop_counter` and published GMACs call FLOPs.

What a count is not
-------------------

It is neither time nor energy, nor the instructions that a kernel runs: it does not know about tensor cores,
memory traffic, fusion, or work that a backend skips (masked scores, padding) or repeats. It depends on
shapes, never on values: where work depends on data (`unique`, `matrix_exp`, NMS), a stated closed form in
the shapes stands for it.

Every op has an answer
----------------------

For each ATen op, in order: its formula; the one that torch.utils.flop_counter was given, in FLOPs of two for
each multiply-accumulate; zero by kind; one per output element if torch tags it pointwise; a reduction if it
tags it so; the sum over its decomposition; else it is *unsupported*, and reported. An op that torch itself
composes of others (`square`, `isfinite`) is taken apart rather than tagged, for its parts are all that is
seen outside of inference mode.

`register_flop_formula` adds an answer, also for custom ops, and for composites: that holds under autograd
too, where the gradient is that of the parts. Only inside `torch.func` and forward-mode differentiation it is
not asked, and the op is reported.

Formulas are integer algebra on sizes: products of the dimensions that the maths names, so that symbolic
sizes go through the common ones.
"""

from __future__ import annotations

from pytest_flops.formulas import (  # noqa: F401  # each registers the formulas of its kind of op
    attention,
    contraction,
    convolution,
    einsum,
    indexing,
    interpolation,
    linalg,
    loss,
    normalization,
    ordering,
    packed_attention,
    pointwise,
    pooling,
    prims,
    quantized,
    recurrent,
    reduction,
    softmax,
    sparse,
    spectral,
    vision,
    zero,
)
from pytest_flops.formulas.registry import (
    DECOMPOSE,
    Formula,
    formula_for,
    generation,
    register_flop_formula,
    seal,
)

seal()

FORMULAS_VERSION: int = 2
"""Stored with every baseline; grows when any formula changes its count."""

__all__ = [
    "DECOMPOSE",
    "FORMULAS_VERSION",
    "Formula",
    "formula_for",
    "generation",
    "register_flop_formula",
]
