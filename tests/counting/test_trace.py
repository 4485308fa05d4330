"""`trace`: counts, where they are attributed, what runs and what is refused."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pytest_flops import Cost, FormulaError, TraceError, register_flop_formula, trace
from pytest_flops.counting.inputs import Inputs
from pytest_flops.counting.subject import Subject
from pytest_flops.counting.trace import Mode, Run
from pytest_flops.results.report import Report
from tests.nets import Calls, Toy

X = torch.randn(3, 5)
LINEAR = 3 * (2 * 5 - 1) * 4 + 3 * 4  # 3x5 through Linear(5, 4): (2k-1)mn and the bias


def rows(report: Report) -> list[tuple[str, str, str, int]]:
    return [(node.name, node.op, node.module, node.flops) for node in report.nodes]


# -- counts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("add_one", "flops"), [(False, 40), (True, 44)])
def test_seed_toys(add_one: bool, flops: int) -> None:
    assert trace(Toy(add_one), torch.randn(1, 5)).flops == flops


@pytest.fixture(scope="module")
def timm() -> Any:
    return pytest.importorskip("timm")


IMAGE = torch.randn(1, 3, 224, 224)


def unfused_vit(timm: Any) -> nn.Module:
    from timm.layers import set_fused_attn

    set_fused_attn(False)  # what TIMM_FUSED_ATTN=0 does at import
    try:
        return timm.create_model("vit_base_patch16_224")
    finally:
        set_fused_attn(True)


def test_published_totals(timm: Any) -> None:
    resnet = trace(timm.create_model("resnet50"), IMAGE)
    assert (resnet.flops, resnet.macs, resnet.params) == (8_228_544_512, 4_089_184_256, 25_557_032)
    assert trace(unfused_vit(timm), IMAGE).flops == 35_164_979_280


@pytest.fixture(
    scope="module", params=["resnet18", "vit_tiny_patch16_224", "convnext_atto", "mobilenetv3_small_050"]
)
def small(request: pytest.FixtureRequest, timm: Any) -> nn.Module:
    return timm.create_model(request.param)


def on_meta(model: nn.Module, x: Tensor) -> Report:
    import copy

    return trace(copy.deepcopy(model).to("meta"), x)


def under(context: Callable[[], Any]) -> Callable[[nn.Module, Tensor], Report]:
    def run(model: nn.Module, x: Tensor) -> Report:
        with context():
            return trace(model, x)

    return run


VARIANTS: dict[str, Callable[[nn.Module, Tensor], Report]] = {
    "real tensors": lambda model, x: trace(model, x, execute="real"),
    "meta model": on_meta,
    "meta input": lambda model, x: trace(model, x.to("meta")),
    "channels last": lambda model, x: trace(
        model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    ),
    "real channels last": lambda model, x: trace(
        model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last), execute="real"
    ),
    "no_grad": under(torch.no_grad),
    "inference_mode": under(torch.inference_mode),
    "enable_grad": under(torch.enable_grad),
    "autocast": under(lambda: torch.autocast("cpu", dtype=torch.bfloat16)),
    "default device meta": under(lambda: torch.device("meta")),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_count_is_the_same_everywhere(small: nn.Module, variant: str) -> None:
    expected = trace(small, IMAGE)
    found = VARIANTS[variant](small, IMAGE)
    assert [(n.name, n.flops, n.macs) for n in found.nodes if n.flops] == [
        (n.name, n.flops, n.macs) for n in expected.nodes if n.flops
    ]
    assert not found.unsupported
    assert found.executed == ("real" if variant.startswith("real") else "meta")


def test_grad_mode_counts_what_inference_mode_counts(small: nn.Module) -> None:
    """The base ops that autograd decomposes into have formulas that agree with the composites'."""
    subject, inputs = Subject.of(small), Inputs.of(IMAGE, {})
    run = Run(subject, Mode(), real=True, inference=False)
    assert run.attempt(inputs) is None
    found = run.report(inputs, "")
    expected = trace(small, IMAGE)
    assert (found.flops, found.macs) == (expected.flops, expected.macs)


# -- attribution ----------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = shared

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(self.a(x))) + x


class Nest(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        shared = nn.Linear(4, 4)
        self.first = Block(shared)
        self.second = Block(shared)
        self.idle = nn.Linear(7, 7)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)))


def test_modules_are_inclusive_and_sum_to_the_root() -> None:
    linear, add = 2 * 7 * 4 + 2 * 4, 2 * 4
    report = trace(Nest(), torch.randn(2, 4))
    assert {path: total.flops for path, total in report.modules.items()} == {
        "": 6 * linear + 3 * add,
        "first": 4 * linear + add,  # its own two calls, and both calls of the module it shares with `second`
        "first.a": 2 * linear,
        "first.b": 2 * linear,
        "second": 2 * linear + add,
        "second.a": 2 * linear,
        "idle": 0,
    }
    assert report.modules[""].flops == report.flops == sum(node.flops for node in report.nodes)
    assert report.functions == {("first", "add"): add, ("second", "add"): add, ("", "relu"): add}


def test_steps_read_like_fx() -> None:
    linear, add = 2 * 7 * 4 + 2 * 4, 2 * 4
    assert rows(trace(Nest(), torch.randn(2, 4))) == [
        ("x", "placeholder", "", 0),
        ("first_a", "call_module", "first.a", linear),
        ("first_a_1", "call_module", "first.a", linear),
        ("first_b", "call_module", "first.b", linear),
        ("add", "call_function", "first", add),
        ("second_a", "call_module", "second.a", linear),
        ("second_a_1", "call_module", "second.a", linear),
        ("first_b_1", "call_module", "first.b", linear),
        ("add_1", "call_function", "second", add),
        ("relu", "call_function", "", add),
        ("output", "output", "", 0),
    ]


def test_a_module_made_on_the_spot_belongs_to_the_module_around_it() -> None:
    report = trace(Calls(lambda self, x: nn.ReLU()(self.lin(x))), X)
    assert report.functions == {("", "relu"): 12}
    assert report.flops == LINEAR + 12


def test_the_work_of_a_users_hook_belongs_to_its_module() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 4))
    model[0].register_forward_hook(lambda module, args, output: output * 2)
    assert trace(model, X).modules["0"].flops == LINEAR + 12


# -- what can be given ----------------------------------------------------------------------------------


@dataclasses.dataclass
class Output:
    logits: Tensor


def lin(self: Any, x: Tensor) -> Tensor:
    return self.lin(x)


def each(self: Any, tensors: Iterator[Tensor]) -> Tensor:
    return torch.cat([self.lin(x) for x in tensors])


@pytest.mark.parametrize(
    ("forward", "args", "flops"),
    [
        pytest.param(lin, (X,), LINEAR, id="a tensor"),
        pytest.param(each, ((x for x in [X, X]),), 2 * LINEAR, id="a generator"),
        pytest.param(each, (iter([X, X]),), 2 * LINEAR, id="an iterator"),
        pytest.param(
            lambda self, d: self.lin(d["a"]) + d["b"],
            ({"a": X, "b": torch.ones(3, 4)},),
            LINEAR + 12,
            id="a dict",
        ),
        pytest.param(lambda self, x: {"out": self.lin(x)}, (X,), LINEAR, id="dict output"),
        pytest.param(lambda self, x: Output(self.lin(x)), (X,), LINEAR, id="dataclass output"),
        pytest.param(lambda self, x: None, (X,), 0, id="no output"),
        pytest.param(lambda self: self.lin.weight.sum(), (), 19, id="no input"),
        pytest.param(lin, (torch.randn(0, 5),), 0, id="an empty batch"),
    ],
)
def test_inputs_and_outputs_of_every_kind(forward: Callable[..., Any], args: Any, flops: int) -> None:
    assert trace(Calls(forward), args).flops == flops


def test_keyword_inputs_are_named() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor, *, mask: Tensor, scale: float = 1.0, **rest: Any) -> Tensor:
            return (x * scale).masked_fill(mask, 0.0)

    mask = torch.ones(3, 5, dtype=torch.bool)
    report = trace(Masked(), (X,), {"mask": mask, "scale": 2.0, "extra": [X]})
    assert report.inputs == ("x: float32[3, 5]", "mask: bool[3, 5]", "scale: 2.0", "extra[0]: float32[3, 5]")
    assert [node.name for node in report.nodes[:4]] == ["x", "mask", "scale", "extra"]


def test_an_iterator_is_still_there_for_the_real_run() -> None:
    report = trace(Calls(lambda self, xs: [self.lin(x) * x.sum().item() for x in xs]), ((x for x in [X, X]),))
    assert (report.executed, report.flops) == ("real", 2 * (LINEAR + 14 + 12))


@pytest.mark.parametrize(
    ("model", "args", "name", "flops"),
    [
        pytest.param(lambda a, b: a @ b, (X, torch.randn(5, 2)), "<lambda>", 54, id="a function"),
        pytest.param(nn.Linear(5, 4).forward, (X,), "Linear.forward", LINEAR, id="a method of a module"),
        pytest.param(torch.compile(nn.Linear(5, 4)), (X,), "Linear", LINEAR, id="compiled module"),
        pytest.param(torch.compile(lambda x: x + 1), (X,), "<lambda>", 15, id="compiled function"),
        pytest.param(nn.DataParallel(nn.Linear(5, 4)), (X,), "Linear", LINEAR, id="DataParallel"),
    ],
)
def test_models_of_every_kind(model: Any, args: Any, name: str, flops: int) -> None:
    report = trace(model, args)
    assert (report.model, report.flops) == (name, flops)


def test_compiled_submodules_run_eagerly_under_their_own_names() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(5, 4)), nn.ReLU())
    model[0] = torch.compile(model[0])
    model.compile()
    report = trace(model, X)
    assert {path: total.flops for path, total in report.modules.items()} == {
        "": LINEAR + 12, "0": LINEAR, "0.0": LINEAR, "1": 12,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "resnet50",
            "Cannot count 'resnet50': expected a torch.nn.Module, a method of one or a function, not str.",
        ),
        (
            nn.Sequential(nn.LazyLinear(3)),
            "Cannot count Sequential yet: module '0' (LazyLinear) has parameters that take their shape "
            "from the first input. Call the model once on real input first.",
        ),
    ],
)
def test_what_is_refused(model: Any, message: str) -> None:
    with pytest.raises(TraceError) as info:
        trace(model, X)
    assert str(info.value) == message


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")  # it is what this test is about
def test_torchscript_is_refused() -> None:
    for scripted in (torch.jit.script(nn.Linear(5, 4)), torch.jit.trace(nn.Linear(5, 4), X)):
        with pytest.raises(TraceError) as info:
            trace(scripted, X)
        assert str(info.value) == (
            "Linear is TorchScript, which hides its modules: count the model that torch.jit.script or "
            "torch.jit.trace was called on."
        )


def test_wrong_execute() -> None:
    with pytest.raises(TraceError, match=r"^execute='cuda': choose one of 'auto', 'meta', 'real'\.$"):
        trace(nn.Linear(5, 4), X, execute="cuda")  # type: ignore[arg-type]


def yields(self: Any, x: Tensor) -> Iterator[Tensor]:
    for _ in range(3):
        yield self.lin(x)


async def waits(self: Any, x: Tensor) -> Tensor:
    return self.lin(x)


def works_on_threads(self: Any, x: Tensor) -> Tensor:
    with ThreadPoolExecutor(2) as pool:
        return sum(pool.map(self.lin, [x, x]))


def loses_a_thread(self: Any, x: Tensor) -> Tensor:
    thread = threading.Thread(target=self.lin, args=(x,))
    thread.start()
    thread.join()
    return x


def test_the_body_of_a_generator_runs() -> None:
    assert trace(Calls(yields), X).flops == 3 * LINEAR


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (waits, "Calls is asynchronous: count a function that runs it to its end."),
        (
            works_on_threads,
            "Calls runs module 'lin' on another thread, where its work cannot be seen: count a version that "
            "runs on one.",
        ),
    ],
)
def test_work_that_would_not_be_seen_is_refused(forward: Callable[..., Any], message: str) -> None:
    with pytest.raises(TraceError) as info:
        trace(Calls(forward), X)
    assert str(info.value) == message


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the thread's refusal
def test_a_thread_whose_error_nobody_sees_is_refused_too() -> None:
    with pytest.raises(TraceError, match="on another thread"):
        trace(Calls(loses_a_thread), X)


def test_a_class_is_refused() -> None:
    with pytest.raises(TraceError, match=r"^Net is a class: count an instance of it\.$"):
        trace(type("Net", (nn.Module,), {}), X)


def test_only_what_torch_compiled_is_looked_through() -> None:
    model = Calls(lambda self, x: self.head(self._orig_mod(x)))
    model._orig_mod, model.head = nn.Linear(5, 4), nn.Linear(4, 4)
    assert trace(model, X).flops == LINEAR + 3 * 7 * 4 + 12


def test_names_with_dots() -> None:
    model = Calls(lambda self, x: self._modules["a.b"](x))
    model._modules["a.b"] = nn.Linear(5, 4)
    assert trace(model, X).modules["a.b"].flops == LINEAR


def test_arguments_are_fresh_for_every_run() -> None:
    @dataclasses.dataclass
    class Batch:
        x: Tensor
        calls: int = 0

    def forward(self: Any, batch: Batch) -> Tensor:
        batch.calls += 1
        batch.x = self.lin(batch.x)
        return batch.x * batch.x.sum().item() * batch.calls

    batch = Batch(X)
    assert trace(Calls(forward), batch).flops == LINEAR + 11 + 12 + 12
    assert batch.x is X
    assert batch.calls == 0


def test_iterators_inside_structures() -> None:
    def forward(self: Any, given: Any) -> list[Tensor]:
        return [self.lin(x) * x.sum().item() for x in given["xs"]]

    report = trace(Calls(forward), {"xs": (x for x in [X, X])})
    assert (report.executed, report.flops) == ("real", 2 * (LINEAR + 14 + 12))
    assert report.inputs == (
        "inputs[0]['xs'][0]: float32[3, 5]",
        "inputs[0]['xs'][1]: float32[3, 5]",
    )


def test_arithmetic_of_numpy_is_reported() -> None:
    report = trace(Calls(lambda self, x: torch.from_numpy(self.lin(x).detach().numpy() * 2)), X)
    assert (report.executed, report.unsupported) == ("real", {"Tensor.numpy": 1})


def test_a_swallowed_numpy_read_is_not_believed() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        try:
            x.numpy()
        except Exception:
            return x
        return self.lin(x)

    assert trace(Calls(forward), X).flops == LINEAR


def test_backward_inside_the_users_inference_mode() -> None:
    model = nn.Linear(5, 4)
    expected = trace(model, X, backward=True)
    with torch.inference_mode():
        found = trace(model, X, backward=True)
    assert (found.executed, found.flops) == ("meta", expected.flops)


def test_traces_on_several_threads_take_turns() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU())
    expected = trace(model, X, backward=True).flops
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: trace(model, X, backward=True).flops, range(12)))
    assert found == [expected] * 12
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch._C._get_mkldnn_enabled()


def test_higher_order_operators_are_refused_in_words() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))

    with pytest.raises(
        TraceError, match=r"^Calls calls a higher-order operator, which hides its work: count"
    ):
        trace(Calls(forward), X)


# -- values ---------------------------------------------------------------------------------------------


def reads_a_sum(self: Any, x: Tensor) -> Tensor:
    return self.lin(x) * x.sum().item()


def writes_then_reads(self: Any, x: Tensor) -> Tensor:
    out = torch.zeros(3, 4)
    out[:] = self.lin(x)
    return out * out.sum().item()


def swallows(self: Any, x: Tensor) -> Tensor:
    try:
        return reads_a_sum(self, x)
    except RuntimeError:
        return x


def picks(self: Any, x: Tensor) -> Tensor:
    return self.lin(x)[torch.cat([x[:, :4]]) > -1e9].sum()


def through_numpy(self: Any, x: Tensor) -> Tensor:
    return self.lin(torch.from_numpy(x.numpy() + 1))


def grows_its_output(self: Any, x: Tensor) -> Tensor:
    out = torch.empty(0)
    torch.add(x, x, out=out)
    return out * 2


@pytest.mark.parametrize(
    ("forward", "flops"),
    [
        (reads_a_sum, LINEAR + 14 + 12),
        (writes_then_reads, LINEAR + 11 + 12),
        (swallows, LINEAR + 14 + 12),
        (picks, LINEAR + 12 + 11),
        (through_numpy, LINEAR),
        (grows_its_output, 15 + 15),
    ],
)
@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
def test_a_model_that_reads_values_runs_on_real_tensors(forward: Callable[..., Any], flops: int) -> None:
    report = trace(Calls(forward), X)
    assert (report.executed, report.flops) == ("real", flops)
    assert report.reason.startswith("in its own forward: ")
    assert trace(Calls(forward), X, execute="real").flops == flops


def test_a_model_of_forces_runs_with_autograd() -> None:
    def forces(self: Any, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(self.lin(x).sum(), x)[0]

    report = trace(Calls(forces), X)
    assert report.executed == "real"
    assert report.flops > LINEAR + 11


def branches_on_its_mask(self: Any, x: Tensor, mask: Tensor) -> Tensor:
    return x if mask.all() else self.lin(x)


def counts_positions(self: Any, x: Tensor) -> Tensor:
    positions = torch.arange(x.shape[0], device=x.device)
    return self.lin(x) if positions.max().item() == 2 else x


def indexes_with_a_mask(self: Any, x: Tensor, mask: Tensor) -> Tensor:
    return self.lin(x)[mask] * 2


def packs(self: Any, x: Tensor, lengths: Tensor) -> Tensor:
    packed = nn.utils.rnn.pack_padded_sequence(x[None], lengths, batch_first=True)
    return self.lin(packed.data)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("forward", "extra", "flops"),
    [
        (branches_on_its_mask, [torch.tensor([True, False])], LINEAR + 1),  # and the `and` of two
        (counts_positions, [], LINEAR + 2),  # and the maximum of three
        (indexes_with_a_mask, [torch.tensor([True, False, True])], LINEAR + 8),
        (packs, [torch.tensor([2])], LINEAR // 3 * 2),
    ],
)
def test_whole_numbers_keep_their_values(
    device: str, forward: Callable[..., Any], extra: list[Tensor], flops: int
) -> None:
    report = trace(Calls(forward).to(device), (X.to(device), *extra))
    assert (report.executed, report.flops) == ("meta", flops)
    if device == "cpu":
        assert trace(Calls(forward), (X, *extra), execute="real").flops == flops


def test_values_on_meta_are_an_error_that_says_so() -> None:
    with pytest.raises(TraceError) as info:
        trace(Calls(reads_a_sum).to("meta"), X)
    assert str(info.value) == (
        "Calls needs values that a shape-only run has not, in its own forward: aten.item.default reads "
        "a value. Give it real tensors: a model and inputs on the CPU, and no execute='meta'."
    )
    with pytest.raises(
        TraceError, match=r"^Calls cannot run on real tensors: it, or an input, lives on meta\.$"
    ):
        trace(Calls(lin).to("meta"), X, execute="real")


# By what does not run on shapes alone: why
MISSING: dict[str, tuple[Callable[..., Any], str]] = {
    "a value": (lambda x: x.sum().item(), "aten.item.default reads a value"),
    "a size": (torch.nonzero, "the size of what aten.nonzero.default returns depends on values"),
    "a size by a mask": (
        lambda x: x[x > 0],
        "the size of what aten.index.Tensor returns depends on values",
    ),
    "a kernel": (torch.geqrf, "aten.geqrf.default has no kernel for shapes alone"),
}


@pytest.mark.parametrize(("forward", "why"), MISSING.values(), ids=MISSING)
def test_what_a_shape_only_run_lacks_is_said(forward: Callable[..., Any], why: str) -> None:
    assert trace(forward, X).reason == f"in its own forward: {why}"
    with pytest.raises(TraceError, match=f"a shape-only run has not, in its own forward: {re.escape(why)}"):
        trace(forward, X, execute="meta")


def test_what_does_not_fit_is_no_want_of_values() -> None:
    with torch.device("meta"):
        model, x = nn.Linear(3, 4), torch.empty(2, 5)
    with pytest.raises(RuntimeError, match="must have same reduction dim") as info:
        trace(model, x)
    assert not isinstance(info.value, TraceError)
    assert info.value.__notes__ == ["pytest-flops was running Linear on shapes alone, in its own forward."]


# -- ops without an answer, and formulas of one's own ---------------------------------------------------


@pytest.fixture(scope="module")
def ops() -> Iterator[Any]:
    with torch.library._scoped_library("flops_test", "FRAGMENT") as library:
        library.define("plain(Tensor x) -> Tensor")
        library.impl("plain", lambda x: x * 2, "CPU")
        library.impl("plain", torch.empty_like, "Meta")
        library.define("no_meta(Tensor x) -> Tensor")
        library.impl("no_meta", lambda x: x * 2, "CPU")
        library.define("wrong(Tensor x) -> Tensor")
        library.impl("wrong", torch.empty_like, "Meta")
        library.impl("wrong", torch.empty_like, "CPU")
        yield torch.ops.flops_test


def test_an_op_without_an_answer_is_reported_then_counted(ops: Any) -> None:
    model = Calls(lambda self, x: ops.plain(ops.plain(self.lin(x))))
    report = trace(model, X)
    assert (report.executed, report.flops) == ("meta", LINEAR)
    assert report.unsupported == {"flops_test.plain.default": 2}

    register_flop_formula(ops.plain)(lambda x, *, out: Cost(3 * x.numel(), 1))
    report = trace(model, X)
    assert (report.flops, report.macs, report.unsupported) == (LINEAR + 72, 60 + 2, {})


def test_an_op_without_a_meta_kernel_runs_for_real(ops: Any) -> None:
    register_flop_formula(ops.no_meta)(lambda x, *, out: out.numel())
    report = trace(Calls(lambda self, x: ops.no_meta(self.lin(x))), X)
    assert (report.executed, report.flops) == ("real", LINEAR + 12)


def test_a_formula_that_returns_nonsense(ops: Any) -> None:
    register_flop_formula(ops.wrong)(lambda x, *, out: 1.5)
    with pytest.raises(FormulaError) as info:
        trace(Calls(lambda self, x: ops.wrong(x)), X)
    assert str(info.value) == (
        "The formula of flops_test.wrong.default returned 1.5: it must return an int, or a Cost of ints."
    )


# -- the model's own errors -----------------------------------------------------------------------------


def test_the_models_exception_comes_through_with_its_place() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("my own")

    with pytest.raises(KeyError, match="my own") as info:
        trace(nn.Sequential(nn.Linear(5, 4), nn.Sequential(Broken())), X)
    assert info.traceback[-1].name == "forward"
    assert info.value.__notes__ == ["pytest-flops was running Sequential on shapes alone, in module '1.0'."]


def test_a_call_that_does_not_fit_the_signature() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'input'") as info:
        trace(nn.Linear(5, 4))
    assert info.value.__notes__ == ["pytest-flops was running Linear on shapes alone, in its own forward."]


def test_inputs_on_another_device_than_the_model_count_all_the_same() -> None:
    assert trace(nn.Linear(5, 4, device="meta"), X).flops == LINEAR
    assert trace(nn.Linear(5, 4), X.to("meta")).flops == LINEAR


# -- train ----------------------------------------------------------------------------------------------


def test_train_mode_counts_what_eval_skips() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5)).eval()
    evaluated, trained = trace(model, X), trace(model, X, train=True)
    assert (evaluated.mode, trained.mode) == ("eval", "train")
    assert trained.flops > evaluated.flops == LINEAR
    assert not model.training


def test_layers_dropped_at_random_are_the_same_ones_every_time() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        import random

        for _ in range(20):
            if torch.rand(()) < 0.5:
                x = x * 2
            if random.random() < 0.5:
                x = x * 2
        return x

    assert len({trace(Calls(forward), X).flops for _ in range(5)}) == 1


def test_frozen_modules_stay_frozen_in_train_mode() -> None:
    class Frozen(nn.Dropout):
        def train(self, mode: bool = True) -> Frozen:
            return super().train(False)

    assert trace(nn.Sequential(nn.Linear(5, 4), Frozen(0.5)), X, train=True).flops == LINEAR
