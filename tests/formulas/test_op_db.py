"""Every operator of PyTorch's own database has an answer, and the same one whole and taken apart."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from pytest_flops.counting.trace import trace
from pytest_flops.errors import TraceError
from pytest_flops.formulas import formula_for
from pytest_flops.formulas.registry import no_flops
from tests.formulas.conftest import Tally

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's test suite uses what torch deprecates
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.opinfo.core import OpInfo, SampleInput

# Whole ≠ parts: what a trace in inference mode counts, and a run in grad mode does not see alike
DIFFERENT = {
    "istft": "real tensors are checked for a window without gaps, by min and equal; metadata are not",
    "nn.functional.instance_norm": "its running statistics are means of their own, which no norm counts",
    "nn.functional.one_hot": "CPU tensors are checked for their range; indices are looked up, not computed",
    "nn.functional.scaled_dot_product_attention": "one formula stands for what backends do in several ways",
}
COMPLEX_CONVOLUTIONS = "nn.functional.conv"  # counted as four real ones; PyTorch's parts are three
UNAVAILABLE = {
    "jiterator": "runs on CUDA only",
    "nn.functional.batch_norm.without_cudnn": "runs on CUDA only",
    "torch.ops.aten._efficient_attention_forward": "runs on CUDA only",
    "torch.ops.aten._flash_attention_forward": "runs on CUDA only",
    "as_strided.partial_views": "a sample that needs its input's own storage",
}


def cases(wanted: torch.dtype) -> Iterator[Any]:
    for op in op_db:
        dtypes = op.supported_dtypes("cpu")
        if not dtypes or op.full_name.startswith(tuple(UNAVAILABLE)):
            continue
        if wanted in dtypes or not wanted.is_complex:
            dtype = wanted if wanted in dtypes else min(dtypes, key=str)
            yield pytest.param(op, dtype, id=f"{op.full_name}-{str(dtype).removeprefix('torch.')}")


CASES = [*cases(torch.float32), *cases(torch.complex64)]


def samples(op: OpInfo, dtype: torch.dtype, limit: int | None) -> Iterator[SampleInput]:
    torch.default_generator.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # `op.sample_inputs` wraps this to name the test that asks, and looks it up for 0.2 s a time
        yield from islice(op.sample_inputs_func(op, "cpu", dtype, False), limit)


def tally(op: OpInfo, sample: SampleInput, *, whole: bool) -> Tally:
    def copy(x: Any) -> Any:
        strided = isinstance(x, torch.Tensor) and x.layout is torch.strided
        return x.detach().clone() if strided else x

    sample = sample.transform(copy)
    torch.default_generator.manual_seed(0)
    with warnings.catch_warnings(), torch.inference_mode() if whole else torch.no_grad(), Tally() as found:
        warnings.simplefilter("ignore")
        op(sample.input, *sample.args, **sample.kwargs)
    return found


def check(op: OpInfo, dtype: torch.dtype, limit: int | None) -> None:
    for sample in samples(op, dtype, limit):
        whole, parts = tally(op, sample, whole=True), tally(op, sample, whole=False)
        assert not whole.unsupported
        assert not parts.unsupported
        gauss = dtype.is_complex and op.full_name.startswith(COMPLEX_CONVOLUTIONS)
        if op.full_name not in DIFFERENT and not gauss:
            assert whole.cost == parts.cost, f"{sample}: {whole.by_op} as a whole, {parts.by_op} in parts"


@pytest.mark.parametrize(("op", "dtype"), CASES)
def test_has_an_answer_whole_and_in_parts(op: OpInfo, dtype: torch.dtype) -> None:
    check(op, dtype, limit=2)


@pytest.mark.slow
@pytest.mark.parametrize(("op", "dtype"), CASES)
def test_has_an_answer_for_every_sample(op: OpInfo, dtype: torch.dtype) -> None:
    check(op, dtype, limit=None)


@pytest.mark.slow
def test_no_formula_is_zero_unless_it_is_zero_by_kind() -> None:
    most: dict[Any, int] = {}
    for case in CASES:
        for sample in samples(*case.values, limit=None):
            for func, flops in tally(case.values[0], sample, whole=True).by_op.items():
                most[func] = max(most.get(func, 0), flops)
    silent = {func.name() for func, flops in most.items() if not flops and formula_for(func) is not no_flops}
    assert not silent
    assert len(most) > 400, "the database has shrunk, or was not run"


def test_no_operator_is_left_out_but_for_a_reason() -> None:
    covered = {case.values[0].full_name for case in CASES}
    left_out = {op.full_name for op in op_db} - covered
    assert {name for name in left_out if not name.startswith(tuple(UNAVAILABLE))} == set()
    assert len(covered) > 600


def test_the_reasoned_differences_are_real() -> None:
    dtypes = {"istft": torch.complex64, "nn.functional.one_hot": torch.int64}
    different = {
        op.full_name
        for op in op_db
        if op.full_name in DIFFERENT
        for sample in samples(op, dtypes.get(op.full_name, torch.float32), None)
        if tally(op, sample, whole=True).cost != tally(op, sample, whole=False).cost
    }
    assert different == DIFFERENT.keys()


# These read values, or have no meta kernel: a trace runs them on real tensors
NEEDS_VALUES = {
    "allclose",
    "argwhere",
    "corrcoef",
    "cov",
    "equal",
    "geqrf",
    "histogram",
    "item",
    "linalg.lstsq",
    "linalg.lstsq.grad_oriented",
    "masked_select",
    "nn.functional.ctc_loss",
    "nn.functional.gaussian_nll_loss",
    "nonzero",
    "sparse.mm.reduce",
    "sparse.sampled_addmm",
    "to_sparse",
    "unique",
    "unique_consecutive",
}
if not torch._C._dispatch_has_kernel_for_dispatch_key("aten::_histogramdd_bin_edges", "Meta"):
    NEEDS_VALUES.add("histogramdd")  # torch 2.15 has the kernel


def check_shape_only(op: OpInfo, dtype: torch.dtype, limit: int | None) -> None:
    def run(sample: Any, args: Any, kwargs: Any) -> Any:
        return op(sample, *args, **kwargs)

    for sample in samples(op, dtype, limit):
        call = (sample.input, sample.args, sample.kwargs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            real = trace(run, call, execute="real")
            shapes = trace(run, call, execute="meta")
        assert not shapes.unsupported
        assert (shapes.flops, shapes.macs) == (real.flops, real.macs)


def shape_only_cases() -> Iterator[Any]:
    for case in CASES:
        if case.values[0].full_name not in NEEDS_VALUES:
            yield case


SHAPE_ONLY = list(shape_only_cases())


@pytest.mark.parametrize(("op", "dtype"), SHAPE_ONLY)
def test_costs_the_same_on_shapes_alone(op: OpInfo, dtype: torch.dtype) -> None:
    check_shape_only(op, dtype, limit=1)


@pytest.mark.slow
@pytest.mark.parametrize(("op", "dtype"), SHAPE_ONLY)
def test_every_sample_costs_the_same_on_shapes_alone(op: OpInfo, dtype: torch.dtype) -> None:
    check_shape_only(op, dtype, limit=20)


def test_the_operators_that_need_values_do() -> None:
    needing = set()
    for op in op_db:
        if op.full_name in NEEDS_VALUES:
            try:
                check_shape_only(op, min(op.supported_dtypes("cpu"), key=str), limit=20)
            except TraceError:
                needing.add(op.full_name)
    assert needing == NEEDS_VALUES


# -- gradients -----------------------------------------------------------------------------------------------


# PyTorch itself does not differentiate these for complex numbers
REAL_ONLY = {"svd", "linalg.svd", "svd_lowrank", "pca_lowrank", "to_sparse"}


def differentiable() -> Iterator[Any]:
    for case in CASES:
        op, dtype = case.values
        has_gradient = dtype.is_floating_point or (dtype.is_complex and op.full_name not in REAL_ONLY)
        if op.supports_autograd and has_gradient:
            yield case


def check_gradients(op: OpInfo, dtype: torch.dtype, limit: int | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = islice(op.sample_inputs_func(op, "cpu", dtype, True), limit)
        for sample in given:
            with Tally() as found:
                result = op(sample.input, *sample.args, **sample.kwargs)
                outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
                outputs = [leaf for leaf in outputs if leaf.requires_grad and leaf.layout is torch.strided]
                if outputs:
                    torch.autograd.backward(outputs, [torch.ones_like(leaf) for leaf in outputs])
            assert not found.unsupported


@pytest.mark.parametrize(("op", "dtype"), [*differentiable()])
def test_its_gradient_has_an_answer(op: OpInfo, dtype: torch.dtype) -> None:
    check_gradients(op, dtype, limit=1)


@pytest.mark.slow
@pytest.mark.parametrize(("op", "dtype"), [*differentiable()])
def test_the_gradient_of_every_sample_has_an_answer(op: OpInfo, dtype: torch.dtype) -> None:
    check_gradients(op, dtype, limit=None)
