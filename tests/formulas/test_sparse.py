"""Sparse tensors: made, turned into one another, masked, coalesced, and their products' gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pytest_flops import trace
from pytest_flops.formulas import formula_for
from pytest_flops.metrics import Cost

pytestmark = pytest.mark.filterwarnings("ignore:Sparse:UserWarning")  # a prototype, it says

aten = torch.ops.aten
DENSE = torch.tensor([[0.0, 1, 0, 2], [0, 0, 3, 0], [4, 0, 0, 5], [0, 0, 0, 6]])  # 6 elements of 16
INDICES, VALUES = DENSE.nonzero().T.contiguous(), DENSE[DENSE != 0]
LAYOUTS = [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc]


def blocks(layout: torch.layout) -> dict[str, Any]:
    return {"blocksize": (2, 2)} if layout in (torch.sparse_bsr, torch.sparse_bsc) else {}


def counted(run: Callable[..., Any], *args: Any) -> Cost:
    report = trace(run, args, execute="real")
    assert not report.unsupported
    return Cost(report.flops, report.macs)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_conversion_is_free(layout: torch.layout) -> None:
    assert counted(lambda x: x.to_sparse(layout=layout, **blocks(layout)).to_dense(), DENSE) == Cost(0)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("other", LAYOUTS, ids=str)
def test_conversion_of_one_into_another_is_free(layout: torch.layout, other: torch.layout) -> None:
    sparse = DENSE.to_sparse(layout=layout, **blocks(layout))
    try:
        sparse.to_sparse(layout=other, **blocks(other))
    except (RuntimeError, NotImplementedError):
        pytest.skip("PyTorch does not do it either")
    assert counted(lambda x: x.to_sparse(layout=other, **blocks(other)), sparse) == Cost(0)


CREATION: dict[str, Callable[..., Any]] = {
    "coo": lambda i, v: torch.sparse_coo_tensor(i, v, (4, 4), is_coalesced=True),
    "csr": lambda i, v: torch.sparse_csr_tensor(torch.tensor([0, 2, 3, 5, 6]), i[1], v, (4, 4)),
    "csc": lambda i, v: torch.sparse_csc_tensor(torch.tensor([0, 2, 3, 5, 6]), i[1], v, (4, 4)),
    "compressed": lambda i, v: torch.sparse_compressed_tensor(
        torch.tensor([0, 2, 3, 5, 6]), i[1], v, (4, 4), layout=torch.sparse_csr
    ),
    "bsr": lambda i, v: torch.sparse_bsr_tensor(
        torch.tensor([0, 1, 2]), torch.tensor([0, 1]), v.new_ones(2, 2, 2), (4, 4)
    ),
    "empty": lambda i, v: torch.sparse_coo_tensor(size=(4, 4)),
    "diagonals": lambda i, v: torch.sparse.spdiags(torch.ones(2, 4), torch.tensor([0, 1]), (4, 4)),
    "mask": lambda i, v: DENSE.sparse_mask(torch.sparse_coo_tensor(i, v, (4, 4), is_coalesced=True)),
    "parts": lambda i, v: torch.sparse_coo_tensor(i, v, (4, 4), is_coalesced=True).values(),
}


@pytest.mark.parametrize("make", CREATION.values(), ids=CREATION)
def test_creation_is_free(make: Callable[..., Any]) -> None:
    assert counted(make, INDICES, VALUES) == Cost(0)


def test_compressed_indices_are_free() -> None:
    rows = INDICES[0]
    assert counted(aten._convert_indices_from_coo_to_csr.default, rows, 4) == Cost(0)
    crow = aten._convert_indices_from_coo_to_csr(rows, 4)
    assert counted(aten._convert_indices_from_csr_to_coo.default, crow, INDICES[1]) == Cost(0)
    shapes = trace(aten._convert_indices_from_coo_to_csr.default, (rows.to("meta"), 4), execute="meta")
    assert (shapes.flops, shapes.unsupported) == (0, {})


def test_coalescing_adds_what_falls_together() -> None:
    indices = torch.tensor([[0, 1, 0, 0, 1], [2, 1, 2, 2, 0]])  # three times (0, 2)
    values = torch.randn(5, 3)
    sparse = torch.sparse_coo_tensor(indices, values, (2, 4, 3))
    assert counted(lambda x: x.coalesce(), sparse) == Cost(2 * 3)
    complex_ = torch.sparse_coo_tensor(indices, values.to(torch.complex64), (2, 4, 3))
    assert counted(lambda x: x.coalesce(), complex_) == Cost(2 * 2 * 3)
    once = sparse.coalesce()
    assert counted(lambda x: x.coalesce(), once) == Cost(0)


def test_the_gradient_of_a_product_that_reduces() -> None:
    a, b = DENSE.to_sparse_csr(), torch.randn(4, 7)
    products = 6 * 7  # stored elements and columns
    to_sparse, to_dense = Cost(2 * products - 6, products), Cost(2 * products, products)
    formula = formula_for(aten._sparse_mm_reduce_impl_backward.default)
    for mask in ((True, True), (True, False), (False, True)):
        cost = formula(a, b, b, "sum", None, mask, out=None)  # type: ignore[misc]
        asked = zip((to_sparse, to_dense), mask, strict=True)
        assert cost == sum((each for each, wanted in asked if wanted), Cost(0))


def test_a_half_of_the_weight() -> None:
    a, b, out = torch.ones(8, 6), torch.ones(12, 5), torch.ones(8, 5)  # 12 columns, of which 6 are stored
    product = Cost(8 * 5 * 11, 8 * 5 * 6)
    assert formula_for(aten._sparse_semi_structured_mm.default)(a, None, b, out=out) == product  # type: ignore[misc]
    add = formula_for(aten._sparse_semi_structured_addmm.default)
    assert add(out, a, None, b, out=out) == product + 40  # type: ignore[misc]
    assert add(out, a, None, b, out=out, alpha=2, beta=0) == product + 40  # type: ignore[misc]


@pytest.mark.parametrize("reduce", ["sum", "mean", "amax"])
def test_a_training_step_with_a_sparse_matrix(reduce: str) -> None:
    a, x = DENSE.to_sparse_csr(), torch.randn(4, 7, requires_grad=True)
    report = trace(lambda a, x: torch.sparse.mm(a, x, reduce), (a, x), execute="real", backward=True)
    assert not report.unsupported
    assert report.backward_macs == 6 * 7
