"""What can be registered, what is found for an op, and what a cost is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils import flop_counter

from pytest_flops import trace
from pytest_flops.errors import FormulaError
from pytest_flops.formulas import formula_for, generation, register_flop_formula
from pytest_flops.formulas.composites import with_users_formula
from pytest_flops.formulas.registry import (
    is_composite,
    no_flops,
    one_per_element,
    reduction,
    registered_names,
    registrations_undone,
    torchs_formula_for,
    torchs_names,
    users_formulas,
)
from pytest_flops.metrics import Cost

aten = torch.ops.aten


@pytest.fixture
def triple() -> Iterator[Any]:
    with torch.library._scoped_library("flops_test", "FRAGMENT") as library:
        library.define("triple(Tensor x) -> Tensor")
        library.define("triple.scaled(Tensor x, float scale) -> Tensor")
        yield torch.ops.flops_test.triple


def test_costs_add_up_and_scale() -> None:
    assert Cost(3, 1) + Cost(4, 2) == Cost(7, 3)
    assert Cost(3, 1) + 4 == 4 + Cost(3, 1) == Cost(7, 1)
    assert Cost(3, 1) * 5 == Cost(15, 5)
    assert sum([Cost(3, 1), Cost(4, 2)], Cost(0)) == Cost(7, 3)


def test_a_custom_op_has_no_answer_until_it_is_registered(triple: Any) -> None:
    assert formula_for(triple.default) is None
    before = generation()
    register_flop_formula(triple)(lambda x, *, out: 3 * x.numel())
    assert generation() > before
    assert formula_for(triple.default)(torch.empty(2, 5), out=None) == 30  # type: ignore[misc]


def test_the_overload_comes_before_the_op(triple: Any) -> None:
    register_flop_formula([triple, triple.scaled])(lambda *_, **__: 1)
    register_flop_formula(triple.scaled, override=True)(lambda *_, **__: 2)
    assert formula_for(triple.default)() == 1  # type: ignore[misc]
    assert formula_for(triple.scaled)() == 2  # type: ignore[misc]


def test_an_op_can_be_named_before_its_library_is_loaded() -> None:
    register_flop_formula("flops_test::triple")(lambda *_, **__: 7)
    with torch.library._scoped_library("flops_test", "FRAGMENT") as library:
        library.define("triple(Tensor x) -> Tensor")
        assert formula_for(torch.ops.flops_test.triple.default)() == 7  # type: ignore[misc]


def test_registrations_can_be_undone(triple: Any) -> None:
    names, mm = registered_names(), formula_for(aten.mm.default)
    with registrations_undone():
        register_flop_formula(triple)(lambda *_, **__: 1)
        register_flop_formula(aten.mm, override=True)(lambda *_, **__: 2)
        assert formula_for(aten.mm.default)() == 2  # type: ignore[misc]
        inside = generation()
    assert registered_names() == names
    assert formula_for(triple.default) is None
    assert formula_for(aten.mm.default) is mm
    assert generation() > inside


def test_duplicates_are_refused_and_nothing_of_the_list_is_registered() -> None:
    with pytest.raises(FormulaError) as error:
        register_flop_formula(["mylib::new", aten.mm, aten.bmm])(no_flops)
    expected = "aten::mm, aten::bmm already has a formula; pass override=True to replace it"
    assert str(error.value) == expected
    assert "mylib::new" not in registered_names()


@pytest.mark.parametrize(
    ("op", "shown"),
    [
        (torch.mm, "<built-in method mm of type object at"),
        ("mm", "'mm' of type str"),
        ("my-lib::mm", "'my-lib::mm' of type str"),
        (3, "3 of type int"),
        ([aten.mm.default, None], "None of type NoneType"),
    ],
)
def test_other_values_are_refused_with_value_and_type(op: Any, shown: str) -> None:
    with pytest.raises(FormulaError, match=r"^a formula belongs to an op such as torch\.ops\.mylib") as error:
        register_flop_formula(op, override=True)
    assert shown in str(error.value)


@pytest.mark.parametrize(
    ("op", "formula"),
    [
        (aten.add_.Tensor, formula_for(aten.add.Tensor)),
        (aten.leaky_relu_.default, formula_for(aten.leaky_relu.default)),
        (aten.mm.out, formula_for(aten.mm.default)),
        (aten.view.default, no_flops),
        (aten.expand.default, no_flops),
        (aten.clone.default, no_flops),  # torch tags it pointwise
        (aten._to_copy.default, no_flops),
        (aten.where.self, no_flops),
        (aten.exp.default, one_per_element),
        (aten.gelu_.default, one_per_element),  # only its functional twin is tagged
        (aten.gelu.out, one_per_element),
        (aten.eq_.Scalar, one_per_element),
        (aten.max.dim, reduction),
        (aten.max.other, one_per_element),
        (aten.square.default, None),  # composite: torch tags it, but its parts count
        (aten.isfinite.default, None),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_every_op_has_an_answer_in_the_order_of_the_convention(op: Any, formula: Any) -> None:
    assert formula_for(op) is formula


def test_reductions_do_not_wait_for_torch_to_tag_them(monkeypatch: pytest.MonkeyPatch) -> None:
    untagged = ("sum", "prod", "amax", "amin", "any", "all", "argmax", "argmin")
    assert all(f"aten::{name}" in registered_names() for name in untagged)


def test_every_name_belongs_to_an_op() -> None:
    import torch._prims  # these register their ops
    import torch.ao.quantization.fx._decomposed
    import torch.nn.attention.varlen
    import torchvision  # noqa: F401

    def exists(name: str) -> bool:
        namespace, _, op = name.partition("::")
        packet = getattr(getattr(torch.ops, namespace), op.partition(".")[0], None)
        return packet is not None and ("." not in op or op.partition(".")[2] in packet.overloads())

    # Defined when first used, or by a library that need not be there
    lazy = {name for name in registered_names() if name.startswith(("torch_nn::", "transformers::"))}
    assert not {name for name in registered_names() - lazy if not exists(name)}


# -- what users add ------------------------------------------------------------------------------------------


def test_an_op_means_all_of_its_overloads_those_too_that_have_a_formula_by_themselves() -> None:
    assert {"aten::lstm.input", "aten::lstm.data"} <= registered_names()
    with pytest.raises(FormulaError, match=r"^aten::lstm already has a formula"):
        register_flop_formula(aten.lstm)(no_flops)
    register_flop_formula(aten.lstm, override=True)(one_per_element)
    assert formula_for(aten.lstm.input) is formula_for(aten.lstm.data) is one_per_element


def test_the_formulas_of_users_are_told_from_ours(triple: Any) -> None:
    assert not users_formulas()
    register_flop_formula(triple)(no_flops)
    register_flop_formula("aten::linear", override=True)(one_per_element)
    assert users_formulas() == {"flops_test::triple": no_flops, "aten::linear": one_per_element}
    assert with_users_formula() == (aten.linear.default,)


@pytest.fixture
def torchs_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flop_counter, "flop_registry", dict(flop_counter.flop_registry))


def test_a_formula_of_torchs_own_registry_is_honoured(triple: Any, torchs_registry: None) -> None:
    assert formula_for(triple.default) is None
    before = generation()

    @flop_counter.register_flop_formula(triple)
    def flops(x_shape: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return 6 * x_shape[0] * out_shape[1]

    assert generation() > before
    assert generation() == generation()  # what is counted now stays true
    for overload in (triple.default, triple.scaled):
        found = formula_for(overload)
        assert found is not None
        assert found(torch.empty(2, 5), out=torch.empty(2, 7)) == Cost(flops=84, macs=42)
        assert torchs_formula_for(overload) is not None
    assert torchs_names() == ["flops_test::triple"]
    register_flop_formula(triple)(no_flops)  # what is registered here comes first
    assert formula_for(triple.default) is no_flops
    assert torchs_formula_for(triple.default) is None
    assert not torchs_names()


def test_torchs_own_formulas_do_not_stand_in_for_ours(torchs_registry: None) -> None:
    assert aten.mm in flop_counter.flop_registry
    assert torchs_formula_for(aten.mm.default) is None
    assert not torchs_names()


def test_a_formula_of_torchs_registry_counts_from_when_it_is_there(torchs_registry: None) -> None:
    with torch.library._scoped_library("flops_test", "FRAGMENT") as library:
        library.define("whole(Tensor x) -> Tensor")
        library.impl("whole", lambda x: x.clone(), "CPU")
        library.impl("whole", torch.empty_like, "Meta")
        library.define("parts(Tensor x) -> Tensor")
        library.impl("parts", lambda x: x + 1, "CompositeImplicitAutograd")
        whole, parts = torch.ops.flops_test.whole, torch.ops.flops_test.parts
        x = torch.randn(2, 5, requires_grad=True)
        assert trace(whole, x).unsupported == {"flops_test.whole.default": 1}
        assert trace(parts, x).flops == 10
        flop_counter.register_flop_formula([whole, parts])(lambda shape, **_: 80 * shape[1])
        assert not trace(whole, x).unsupported
        assert (trace(whole, x).flops, trace(whole, x).macs) == (400, 200)
        report = trace(parts, x, backward=True)
        assert report.flops - report.backward_flops == 400
        assert report.by_torch == {"flops_test.parts.default": 1}


def test_the_report_says_what_counts_by_torchs_own_formulas(torchs_registry: None) -> None:
    with torch.library._scoped_library("flops_test", "FRAGMENT") as library:
        library.define("seen(Tensor x) -> Tensor")
        library.impl("seen", lambda x: x.clone(), "CPU")
        library.impl("seen", torch.empty_like, "Meta")
        library.define("around(Tensor x) -> Tensor")
        library.impl("around", lambda x: seen(x) + seen(x), "CompositeImplicitAutograd")
        seen, around = torch.ops.flops_test.seen, torch.ops.flops_test.around
        flop_counter.register_flop_formula(seen)(lambda shape, **_: 2 * shape[0] * shape[1])
        for execute in ("meta", "meta", "real"):  # found out, remembered, and not on shapes
            report = trace(lambda x: around(seen(x) * 2), torch.randn(2, 5), execute=execute)
            assert (report.flops, report.macs) == (3 * 20 + 10 + 10, 3 * 10)
            assert report.by_torch == report.to_dict()["by_torch"] == {"flops_test.seen.default": 3}
            assert "Counted as torch's 2 x MACs: flops_test.seen.default (3 calls)" in str(report)
    assert not trace(torch.nn.Linear(3, 4), torch.randn(2, 3)).by_torch


def test_an_op_without_kernels_has_no_formula() -> None:
    assert not is_composite(torch.ops.prim.layout.default)  # PyTorch raises when asked for its kernels
    assert formula_for(torch.ops.prim.layout.default) is None
    assert is_composite(aten.linear.default)
    assert not is_composite(aten.mm.default)
