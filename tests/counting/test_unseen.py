"""Work outside PyTorch's dispatcher never passes as zero, and its author can state what it costs."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pytest_flops import TraceError, declared_cost, propagate, trace
from pytest_flops.counting.trace import Execute
from pytest_flops.results.report import KERNEL

X = torch.randn(3, 4)
LINEAR, ELEMENTS = 3 * 4 * 7 + 12, 12


class Net(nn.Module):
    """A Linear(4, 4), and after it whatever a test wants."""

    def __init__(self, after: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.after = after

    def forward(self, x: Tensor) -> Any:
        return self.after(self.lin(x))


def copy(x: Tensor, out: Tensor) -> None:
    """Stand in for a kernel that takes addresses."""
    ctypes.memmove(out.data_ptr(), x.data_ptr(), x.nbytes)


def copied(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    copy(x, out)
    return out + 1


def copied_below(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    ctypes.memmove(out.untyped_storage().data_ptr(), x.untyped_storage().data_ptr(), x.nbytes)
    return out + 1


# Ways out of PyTorch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("execute", ["auto", "real"])
@pytest.mark.parametrize(
    ("after", "found"),
    [
        (lambda x: torch.from_numpy(x.numpy() * 2), {"Tensor.numpy": 1}),
        (lambda x: torch.from_numpy(x.numpy(force=True) * 2), {"Tensor.numpy": 1}),
        (lambda x: torch.from_numpy(np.asarray(x) * 2), {"Tensor.__array__": 1}),
        (lambda x: torch.tensor([[2 * a for a in row] for row in x.tolist()]), {"Tensor.tolist": 1}),
        (lambda x: torch.from_dlpack(x.__dlpack__()), {"Tensor.__dlpack__": 1}),
        (lambda x: torch.from_numpy(np.from_dlpack(x) * 2), {"Tensor.__dlpack__": 1}),
        (copied, {"Tensor.data_ptr": 2}),
        (copied_below, {f"{KERNEL}, near Net": 1}),
    ],
)
def test_values_that_leave_pytorch_are_reported(
    after: Callable[[Tensor], Any], found: dict[str, int], execute: Execute
) -> None:
    report = trace(Net(after), X, execute=execute)
    assert (report.executed, report.unsupported) == ("real", found)
    assert report.flops >= LINEAR


@pytest.mark.parametrize(
    "after",
    [
        lambda x: x[: int(x.argmax().tolist() > 99) + 2],
        lambda x: x if hasattr(x, "__cuda_array_interface__") else x * 2,
        lambda x: x * len(torch.arange(3).tolist()),
        lambda x: x * int(torch.arange(3).numpy().sum()),
        lambda x: x * torch.tensor([[True]]).tolist()[0][0],
        lambda x: x * torch.empty(0).sum() + torch.cat([torch.empty(0, 4), x]),
        lambda x: torch.empty_like(x).copy_(x),
        lambda x: (x, torch.empty(3)),
        lambda x: torch.empty(3, 4).normal_() + x,
        lambda x: torch.add(x, x, out=torch.empty(3, 4)),
        lambda x: torch.zeros(3, 4) + x + torch.zeros_like(x),
        lambda x: torch.empty(3, 4, device=x.device).to(torch.half).fill_(1.0) + x,
        lambda x: torch.zeros_like(torch.empty(3, 4)) + x,
    ],
)
@pytest.mark.parametrize("execute", ["auto", "real"])
def test_what_models_do_every_day_is_not(after: Callable[[Tensor], Any], execute: Execute) -> None:
    assert trace(Net(after), X, execute=execute).unsupported == {}


def scratch(x: Tensor) -> Tensor:
    out = torch.empty(3, 4)
    for row in range(3):
        out[row] = x[row] * 2
    return out.sum(0)


@pytest.mark.parametrize("execute", ["auto", "real"])
def test_scratch_space_that_is_filled_is_not(execute: Execute) -> None:
    assert trace(Net(scratch), X, execute=execute).unsupported == {}


def test_pytorch_s_own_code_may_look_at_addresses() -> None:
    lstm = nn.LSTM(4, 4)

    def forward(x: Tensor) -> Any:
        lstm.flatten_parameters()
        return torch.utils.checkpoint.checkpoint(lstm, x, use_reentrant=False)

    assert trace(forward, X).unsupported == {}


def test_a_foreign_operator_is_trusted_to_write() -> None:
    """Its schema may not say that it does, and it is reported by its own name."""
    with torch.library._scoped_library("unseen_test", "FRAGMENT") as library:
        library.define("fill(Tensor x, Tensor out) -> ()")
        library.impl("fill", lambda x, out: None, "CompositeExplicitAutograd")

        def after(x: Tensor) -> Tensor:
            out = torch.empty(3, 4)
            torch.ops.unseen_test.fill(x, out)
            return out + 1

        assert trace(Net(after), X, execute="real").unsupported == {"unseen_test.fill.default": 1}


# Kernels of an extension ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Any:
    if not (shutil.which("c++") or shutil.which("g++")) or not shutil.which("ninja"):
        pytest.skip("there is no compiler for extensions: it takes c++ and ninja")
    from torch.utils.cpp_extension import load

    return load(
        "flops_kernels",
        [str(Path(__file__).with_name("kernels.cpp"))],
        extra_cflags=["-O0"],
        build_directory=str(tmp_path_factory.mktemp("kernels")),
    )


def calls(kernels: Any, name: str, times: int) -> Callable[[Tensor], Tensor]:
    def into(x: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
        out = make(x)
        kernels.into(x, out, times)
        return out + 1

    return {
        "made": lambda x: kernels.made(x, times, False),
        "made of zeros": lambda x: kernels.made(x, times, True),
        "made and moved": lambda x: kernels.made(x, times, False).mT.contiguous().half(),
        "made and joined": lambda x: torch.cat([kernels.made(x, times, True), x]) * 1,
        "wrapped": lambda x: kernels.wrapped(x, times),
        "into empty": lambda x: into(x, torch.empty_like),
        "into zeros": lambda x: into(x, torch.zeros_like),
        "into a copy": lambda x: into(x, torch.clone),
        "into its input": lambda x: into(x, lambda x: x),
        "after a choice": lambda x: kernels.made(x[x.sum(1).abs() > -1], times, True) * 1,
    }[name]


KERNELS = [
    "made",
    "made of zeros",
    "made and moved",
    "made and joined",
    "wrapped",
    "into empty",
    "into zeros",
]
KERNELS += ["into a copy", "into its input", "after a choice"]


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("times", [1, 5])
def test_a_kernel_is_reported(kernels: Any, name: str, times: int) -> None:
    report = trace(Net(calls(kernels, name, times)), X)
    assert report.executed == "real"
    assert [found.partition(",")[0] for found in report.unsupported] == [KERNEL]
    assert "Too low: work that PyTorch does not see: kernel outside PyTorch" in str(report)


UNSEEN_BY_REAL_RUNS = ("wrapped", "into a copy", "into its input")


@pytest.mark.parametrize("name", [name for name in KERNELS if name not in UNSEEN_BY_REAL_RUNS])
def test_a_kernel_is_reported_by_a_real_run_too(kernels: Any, name: str) -> None:
    report = trace(Net(calls(kernels, name, 2)), X, execute="real")
    assert report.unsupported == {f"{KERNEL}, near Net": 1}


def test_a_kernel_cannot_run_on_shapes(kernels: Any) -> None:
    model = Net(calls(kernels, "made", 1))
    for given in (lambda: trace(model, X, execute="meta"), lambda: trace(model.to("meta"), X)):
        with pytest.raises(TraceError) as info:
            given()
        assert str(info.value).startswith(
            "Net calls a kernel outside PyTorch, which needs real tensors, in its own "
        )
        assert str(info.value).endswith(
            "yet. Give it real tensors: a model and inputs on the CPU, and no execute='meta'."
        )


def test_an_error_of_the_model_s_own_is_no_kernel() -> None:
    def after(x: Tensor) -> Tensor:
        if x.is_meta:
            raise RuntimeError("no data")
        return x

    assert trace(Net(after), X).unsupported == {}


FAILS = """
import ctypes
import pytest
import pytest_flops

def kernel(x):
    y = torch.empty_like(x)
    ctypes.memmove(y.data_ptr(), x.data_ptr(), x.nbytes)
    return y

def declared(x):
    with pytest_flops.declared_cost(flops=5):
        return kernel(x)

def test_fails(flops):
    flops(kernel, torch.ones(3))

@pytest.mark.flops_budget(unsupported="warn")
def test_warned(flops):
    assert flops(kernel, torch.ones(3)).flops == 0

def test_declared(flops):
    assert flops(declared, torch.ones(3)).flops == 5
"""


def test_a_kernel_fails_a_test_with_advice_that_works(run_inside: Any) -> None:
    result = run_inside(FAILS, "--flops-update")
    result.assert_outcomes(failed=1, passed=2)
    result.stdout.fnmatch_lines(
        [
            "kernel: every work needs a count, but PyTorch does not see that of Tensor.data_ptr (2 calls)",
            "State what it costs where it is called, `with pytest_flops.declared_cost(flops=...):`, or *",
        ]
    )
    assert "register_flop_formula" not in result.stdout.str()


# What its author declares -----------------------------------------------------------------------------------


def declaring(kernels: Any) -> Callable[[Tensor], Tensor]:
    def after(x: Tensor) -> Tensor:
        with declared_cost(flops=7 * ELEMENTS, macs=3 * ELEMENTS):
            y = kernels.made(x * 1, 3, False)
        return y + 1

    return after


def test_a_declared_kernel_counts_as_that(kernels: Any) -> None:
    for execute in ("auto", "real"):
        report = trace(Net(declaring(kernels)), X, execute=execute)  # type: ignore[arg-type]
        assert (report.executed, report.unsupported) == ("real", {})
        assert report.flops == LINEAR + 7 * ELEMENTS + ELEMENTS
        assert report.macs == 3 * 4 * 4 + 3 * ELEMENTS
        assert report.functions == {("", "declared_cost"): 7 * ELEMENTS, ("", "add"): ELEMENTS}


def twice_as_dear(x: Tensor, lin: nn.Module) -> Tensor:
    with declared_cost(flops=1000, macs=400):
        x = lin(x).relu()
        with declared_cost(flops=5):
            x = x + 1
    return x * 2


@pytest.mark.parametrize("execute", ["meta", "real"])
def test_nothing_that_is_seen_in_the_block_counts(execute: Execute) -> None:
    lin = nn.Linear(4, 4)
    report = trace(lambda x: twice_as_dear(x, lin), X, execute=execute)
    assert (report.flops, report.macs) == (1000 + ELEMENTS, 400)
    assert [node.name for node in report.nodes] == ["x", "declared_cost", "mul", "output"]
    assert report.nodes[1].peak_memory == 3 * 4 * 4 * 2  # memory is what it is


def test_a_block_inside_a_module_belongs_to_it() -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with declared_cost(flops=100):
                return x.clone()

    model = nn.Sequential(Inner(), nn.Sequential(Inner(), Inner()))
    totals = {path: total.flops for path, total in trace(model, X).modules.items()}
    assert totals == {"": 300, "0": 100, "1": 200, "1.0": 100, "1.1": 100}


def test_a_block_inside_a_leaf_belongs_to_the_leaf() -> None:
    model = nn.Sequential(nn.ReLU())

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        with declared_cost(flops=100):
            return output * 2

    model[0].register_forward_hook(hook)
    assert trace(model, X).modules["0"].flops == ELEMENTS + 100


class Kernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        with declared_cost(flops=100):
            return x * 3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        with declared_cost(flops=200, macs=20):
            return gradient * 3


@pytest.mark.parametrize("execute", ["meta", "real"])
def test_a_backward_pass_has_a_block_of_its_own(execute: Execute) -> None:
    report = trace(Net(Kernel.apply), X, train=True, backward=True, execute=execute)
    plain = trace(Net(lambda x: x), X, train=True, backward=True)
    assert report.flops - plain.flops == 300
    assert report.backward_flops - plain.backward_flops == 200
    assert report.unsupported == {}


@pytest.mark.parametrize("cost", [{"flops": -1}, {"flops": 1.5}, {"flops": True}, {"flops": 1, "macs": "2"}])
def test_what_is_no_cost_is_refused(cost: dict[str, Any]) -> None:
    def forward(x: Tensor) -> Tensor:
        with declared_cost(**cost):
            return x

    name, value = list(cost.items())[-1]
    with pytest.raises(TraceError) as info:
        trace(forward, X)
    assert str(info.value) == f"declared_cost({name}={value!r}): expected a whole number, at least 0."


def test_a_block_that_raises_is_closed() -> None:
    def forward(x: Tensor) -> Tensor:
        try:
            with declared_cost(flops=100):
                raise KeyError
        except KeyError:
            return x + 1

    assert trace(forward, X).flops == 100 + ELEMENTS


def test_where_nobody_counts_a_block_does_nothing() -> None:
    first, second = declared_cost(flops=1), declared_cost(flops=2)
    assert first is second
    with first, second, first:
        pass
    trace(nn.Linear(4, 4), X)
    assert declared_cost(flops=1) is first


def test_a_thread_beside_a_count_is_not_counted() -> None:
    from concurrent.futures import ThreadPoolExecutor

    def declare() -> None:
        with declared_cost(flops=100):
            pass

    def forward(x: Tensor) -> Tensor:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(declare).result()
        return x + 1

    assert trace(forward, X).flops == ELEMENTS


def test_it_loads_no_torch() -> None:
    program = "import sys; from pytest_flops import declared_cost\nwith declared_cost(flops=1): pass\n"
    program += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


def test_a_declared_block_is_measured_as_one_step() -> None:
    lin = nn.Linear(4, 4)
    measured = propagate(lambda x: twice_as_dear(x, lin), X)
    assert [found.node.name for found in measured] == ["x", "declared_cost", "mul", "output"]
    assert [found.time_ms is not None for found in measured] == [False, True, True, False]
