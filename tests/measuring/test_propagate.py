"""`propagate`: the nodes of a trace, what is read around them, and what is left untouched."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.profiler import profile
from torch.overrides import _get_current_function_mode_stack, handle_torch_function, has_torch_function_unary
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from pytest_flops import Measurement, MeasurementError, Measurements, propagate, trace
from pytest_flops.measuring.probes import CpuScale, CudaProbe, Memory, probes_for
from pytest_flops.measuring.propagate import measurements_of
from pytest_flops.measuring.ready import Ready
from tests.fakes import Script
from tests.nets import Calls

X = torch.randn(3, 5)


def by_name(measurements: tuple[Measurement, ...]) -> dict[str, Measurement]:
    return {measured.node.name: measured for measured in measurements}


# -- the same nodes as trace ----------------------------------------------------------------------------


def without_ops_in_one_place(model: Calls, x: Tensor) -> Tensor:
    """`contiguous` runs no op on the first call and one on the second; `size` never does."""
    x = x.contiguous() * x.size(1)
    return model.lin(x).t().contiguous() + len(x)


def value_dependent(model: Calls, x: Tensor) -> Tensor:
    return model.lin(x) if x.square().sum() > -1 else x


def forces(model: Calls, x: Tensor) -> Tensor:
    x = x.requires_grad_()
    return torch.autograd.grad(model.lin(x).sum(), x)[0]


def negated_forces(model: Calls, x: Tensor) -> Tensor:
    return -forces(model, x) * 2


def generating(model: Calls, x: Tensor) -> Iterator[Tensor]:
    yield from (model.lin(x) + i for i in range(3))


@pytest.mark.parametrize(
    "forward", [without_ops_in_one_place, value_dependent, forces, negated_forces, generating]
)
def test_nodes_are_those_of_the_trace(forward):
    model = Calls(forward)
    report = trace(model, X)
    assert tuple(measured.node for measured in propagate(model, X)) == report.nodes
    assert report.flops > 0


@pytest.mark.parametrize(
    "name", ["resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "maxvit_rmlp_pico_rw_256"]
)
def test_nodes_of_real_models_are_those_of_the_trace(name):
    model = timm.create_model(name)
    x = torch.randn(1, 3, 256 if "256" in name else 224, 256 if "256" in name else 224)
    measurements = propagate(model, x, warmup=0)
    assert tuple(measured.node for measured in measurements) == trace(model, x).nodes
    untimed = [measured.node.op for measured in measurements if measured.time_ms is None]
    assert untimed == ["placeholder", "output"]


def test_functions_and_keyword_inputs_are_measured():
    def scaled(x: Tensor, *, by: Tensor) -> Tensor:
        return x * by

    measurements = by_name(propagate(scaled, X, {"by": torch.ones(5)}))
    assert list(measurements) == ["x", "by", "mul", "output"]
    assert measurements["mul"].time_ms is not None


def test_another_path_than_the_counted_one_is_an_error():
    turns = itertools.count()

    def moody(model: Calls, x: Tensor) -> Tensor:
        return model.lin(x) + 1 if next(turns) else model.lin(x) - 1

    with pytest.raises(MeasurementError) as caught:
        propagate(Calls(moody), X)
    assert str(caught.value) == (
        "Calls takes other steps when it is measured than when it is counted: step 2 is call_function add, "
        "where call_function sub was counted. Its forward pass depends on values, on the device or on chance."
    )


def test_a_longer_path_than_the_counted_one_is_an_error():
    turns = itertools.count()
    with pytest.raises(MeasurementError, match="step 2 is output, where call_function add was counted"):
        propagate(Calls(lambda model, x: model.lin(x) if next(turns) else model.lin(x) + 1), X)


# -- time -----------------------------------------------------------------------------------------------


class FakeTimer:
    """A timer whose time passes only when a model says so."""

    def __init__(self) -> None:
        self.ms = 0.0

    def __enter__(self) -> None: ...

    def __exit__(self, *error: Any) -> None: ...

    def before(self) -> float:
        return self.ms

    after = before

    def elapsed_ms(self, before: float, after: float) -> float:
        return after - before

    def wait(self, ms: float) -> None:
        self.ms += ms


def test_time_is_that_of_the_work():
    timer = FakeTimer()

    def between_steps(model: Calls, x: Tensor) -> Tensor:
        timer.wait(100)
        y = model.lin(x)
        timer.wait(1000)
        return y + 1

    model = Calls(between_steps)
    model.lin.register_forward_pre_hook(lambda *_: timer.wait(2))
    model.lin.register_forward_hook(lambda *_: timer.wait(0.5))
    measurements = by_name(measurements_of(Ready.of(model, X, None), timer, None))
    assert (measurements["lin"].time_ms, measurements["add"].time_ms) == (2.5, 0.0)


def test_time_passes_by_this_machines_own_clock():
    measurements = by_name(propagate(Calls(lambda model, x: model.lin(x) + 1), X))
    assert measurements["lin"].time_ms > 0
    assert measurements["add"].time_ms > 0


def test_the_model_runs_once_unmeasured_then_for_its_time_and_for_its_memory():
    seen: list[bool] = []

    def watched(model: Calls, x: Tensor) -> Tensor:
        seen.append(x.is_meta)
        return model.lin(x)

    propagate(Calls(watched), X)
    assert seen == [True, False, False, False]
    propagate(Calls(watched), X, warmup=0)
    assert seen[4:] == [True, False, False]


def modes() -> list[Any]:
    return [*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack()]


def test_no_mode_is_active_while_a_node_works():
    seen: list[list[Any]] = []

    def overridable(x: Tensor) -> Tensor:
        if has_torch_function_unary(x):
            return handle_torch_function(overridable, (x,), x)
        seen.append(modes())
        return x + 1

    model = Calls(lambda model, x: overridable(model.lin(x)))
    model.lin.register_forward_pre_hook(lambda *_: seen.append(modes()))
    trace(model, X)
    assert all(seen)  # or the two below prove nothing
    seen.clear()
    propagate(model, X, warmup=0)
    assert seen[2:] == [[]] * 4  # in two runs


def test_attention_takes_its_fast_path_as_without_us(monkeypatch):
    fused, calls = torch._transformer_encoder_layer_fwd, []
    monkeypatch.setattr(
        torch, "_transformer_encoder_layer_fwd", lambda *args: calls.append("fused") or fused(*args)
    )
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(2, 3, 8)
    trace(layer, x)
    assert calls == []
    propagate(nn.Sequential(layer), x, warmup=0)
    assert calls == ["fused"] * 2


def test_a_mode_of_the_user_stays():
    def on_meta_by_default(model: Calls, x: Tensor) -> Tensor:
        with torch.device("meta"):
            made.append(model.lin(x).device.type)
            made.append(torch.ones(2).device.type)
        return x + 1

    made: list[str] = []
    names = list(by_name(propagate(Calls(on_meta_by_default), X, warmup=0)))
    assert names == ["inputs", "lin", "ones", "add", "output"]
    assert made[2:] == ["cpu", "meta"] * 2


# -- memory ---------------------------------------------------------------------------------------------


def test_cpu_memory_is_what_the_allocator_gives_out_and_takes_back():
    def wasteful(model: Calls, x: Tensor) -> Tensor:
        y = model.lin(x)
        z = y + 1
        del y
        return (z * 2).softmax(0)

    table = [
        (m.node.name, m.memory_before_bytes, m.memory_after_bytes, m.memory_peak_bytes)
        for m in propagate(Calls(wasteful), torch.randn(64, 5))
        if m.time_ms is not None
    ]
    size = 64 * 4 * 4
    assert [row[:3] for row in table] == [
        ("lin", 0, size),
        ("add", size, 2 * size),
        ("mul", size, 2 * size),
        ("softmax", 2 * size, 3 * size),
    ]
    assert all(peak >= after for _, _, after, peak in table)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_cpu_memory_of_real_models_is_what_trace_predicts(name):
    model, x = timm.create_model(name), torch.randn(1, 3, 224, 224)
    measurements = propagate(model, x)
    assert measurements.peak_memory_bytes == trace(model, x).peak_memory
    linear = [measured for measured in measurements if measured.node.module_type == "Linear"]
    assert len(linear) > 40
    assert all(measured.memory_peak_bytes == measured.node.peak_memory for measured in linear)


def test_a_profiler_that_runs_already_is_left_alone():
    with profile(profile_memory=True) as profiler:
        measured = by_name(propagate(Calls(lambda model, x: model.lin(x)), X))["lin"]
    assert measured.memory_before_bytes is measured.memory_after_bytes is measured.memory_peak_bytes is None
    assert measured.memory_delta_bytes is None
    assert measured.time_ms > 0
    assert any(event.name == "aten::linear" for event in profiler.function_events)
    assert isinstance(probes_for(torch.device("cpu"))[1], CpuScale)


def test_a_model_that_profiles_itself_has_times():
    def profiled(model: Calls, x: Tensor) -> Tensor:
        with profile():
            return model.lin(x)

    assert by_name(propagate(Calls(profiled), X))["lin"].time_ms > 0


def scripted(*readings: tuple[float, int, int]) -> Measurements:
    probe = Script(*readings)
    model = Calls(lambda model, x: model.lin(x) + x.size(0))
    return measurements_of(Ready.of(model, X, None), probe, probe, warmup=0)


def test_readings_reach_the_node_they_were_taken_around():
    measurements = scripted(
        *((0.0, 100, 100), (2.5, 140, 190)),  # lin
        *((3.0, 140, 140), (3.5, 140, 140)),  # size: no op, so no node
        *((4.0, 140, 140), (5.0, 130, 160)),  # add
    )
    found = [
        (m.node.name, m.time_ms, m.memory_before_bytes, m.memory_after_bytes, m.memory_peak_bytes)
        for m in measurements
    ]
    assert found == [
        ("inputs", None, None, None, None),
        ("lin", 2.5, 100, 140, 190),
        ("add", 1.0, 140, 130, 160),
        ("output", None, None, None, None),
    ]
    assert [m.memory_delta_bytes for m in measurements] == [None, 40, -10, None]


def test_the_table_has_the_columns_of_the_seed_and_totals():
    measurements = scripted(
        *((0.0, 100, 100), (2.5, 5140, 5190)),  # lin
        *((3.0, 5140, 5140), (3.5, 5140, 5140)),  # size: no op, so no node
        *((4.0, 5140, 5140), (5.0, 130, 5160)),  # add
    )
    header, *rows, empty, totals = measurements.table().splitlines()[1:]
    columns = "node_name node_op op_target nn_module_stack[-1] flops time(ms) mem_before_op mem_after_op"
    assert header.split() == [*columns.split(), "mem_delta"]
    assert [" ".join(row.split()) for row in rows[1:-1]] == [
        "inputs placeholder inputs Calls 0",
        "lin call_module lin Linear 120 2.500 100 5,140 +5,040",
        "add call_function <built-in function add> Calls 12 1.000 5,140 130 -5,010",
        "output output output Calls 0",
    ]
    assert (empty, totals) == ("", "Total: 132 FLOPs, 3.500 ms, peak memory 5,190 B")
    assert (measurements.time_ms, measurements.peak_memory_bytes) == (3.5, 5190)


def test_the_table_leaves_out_the_memory_that_nobody_knows():
    timer = Script(*[(0.0, 0, 0), (1.0, 0, 0)] * 3)
    model = Calls(lambda model, x: model.lin(x) + x.size(0))
    measurements = measurements_of(Ready.of(model, X, None), timer, None, warmup=0)
    assert measurements.table().splitlines()[-1] == "Total: 132 FLOPs, 2.000 ms"
    assert "None" not in measurements.table()
    assert measurements.peak_memory_bytes is None


@pytest.mark.parametrize(("clock", "said"), [(float("nan"), "nan"), (float("inf"), "inf"), (-1.0, "-1.0")])
def test_a_broken_clock_is_an_error(clock, said):
    readings = [(0.0, 0, 0), (clock, 0, 0)] * 3
    with pytest.raises(MeasurementError) as caught:
        scripted(*readings)
    assert str(caught.value) == f"The clock says that node lin took {said} ms: nothing was measured."


class FakeEvent:
    def __init__(self, log: list[Any], *, enable_timing: bool) -> None:
        assert enable_timing
        self.log = log

    def record(self, stream: Any) -> None:
        self.log.append(("record", stream))

    def elapsed_time(self, other: FakeEvent) -> float:
        return 7.25 if other is not self else 0.0


def test_the_cuda_probe_reads_its_own_device(monkeypatch):
    log: list[Any] = []
    answers = {"memory_allocated": 100, "max_memory_allocated": 150, "current_stream": "stream"}
    for name in ("reset_peak_memory_stats", "synchronize", *answers):
        monkeypatch.setattr(
            torch.cuda, name, lambda device, name=name: log.append((name, device)) or answers.get(name)
        )
    monkeypatch.setattr(torch.cuda, "Event", lambda **options: FakeEvent(log, **options))
    second = torch.device("cuda", 1)
    probe, scale = probes_for(second)
    assert probe is scale
    assert isinstance(probe, CudaProbe)
    with probe:
        before = probe.before()
        work = len(log)
        after = probe.after()
    assert probe.memory(before, after) == Memory(100, 100, 150)
    assert probe.elapsed_ms(before, after) == 7.25
    # The clock is read next to the work: last before it, first after it.
    assert log[work - 1] == ("record", "stream")
    assert log[work + 1] == ("record", "stream")
    assert log[:2] == [("synchronize", second), ("reset_peak_memory_stats", second)]
    assert log[-1] == ("synchronize", second)
    assert {device for name, device in log if name != "record"} == {second}


# -- what cannot be measured ----------------------------------------------------------------------------


def test_out_of_memory_names_the_node():
    class Greedy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x + 1) + x.repeat(1 << 30, 1 << 12)[:3, :5]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.big = Greedy()

        def forward(self, x: Tensor) -> Tensor:
            return self.big(x + 1)

    with pytest.raises(MeasurementError) as caught:
        propagate(Net(), X)
    assert str(caught.value).startswith(
        "Net ran out of memory on cpu, at node repeat (repeat) in module 'big': "
    )
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to."), MemoryError()])
def test_any_allocator_out_of_memory_names_the_node(error):
    def fail(module: nn.Module, inputs: tuple[Tensor]) -> None:
        if not inputs[0].is_meta:
            raise error

    model = Calls(lambda model, x: model.lin(x + 1))
    model.lin.register_forward_pre_hook(fail)
    with pytest.raises(MeasurementError) as caught:
        propagate(model, X)
    assert str(caught.value) == (
        "Calls ran out of memory on cpu, at node lin (lin): "
        f"{'CUDA out of memory. Tried to.' if str(error) else 'MemoryError'}"
    )


def test_other_errors_are_the_model_s_own():
    def fail(module: nn.Module, inputs: tuple[Tensor]) -> None:
        if not inputs[0].is_meta:
            raise RuntimeError("mine")

    model = Calls(lambda model, x: model.lin(x))
    model.lin.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match=r"^mine$"):
        propagate(model, X)


def test_a_model_on_meta_is_refused():
    with pytest.raises(MeasurementError) as caught:
        propagate(nn.Linear(5, 4, device="meta"), X)
    assert str(caught.value) == "Cannot measure Linear: it is on meta. Move it to cpu or cuda."


def test_a_model_on_two_devices_is_refused():
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3, device="meta"))
    with pytest.raises(MeasurementError) as caught:
        propagate(model, X)
    message = "Cannot measure Sequential: it is spread over cpu, meta. Move it to one device."
    assert str(caught.value) == message


# -- what is left ---------------------------------------------------------------------------------------


class Writer(nn.Module):
    """Writes to all that it reaches: parameters (also through views), buffers, inputs, attributes, RNG."""

    def __init__(self, error: bool = False) -> None:
        super().__init__()
        self.direct = nn.Parameter(torch.ones(5))
        self.viewed = nn.Parameter(torch.ones(2, 5))
        self.data = nn.Parameter(torch.ones(5))
        self.norm = nn.BatchNorm1d(5)
        self.register_buffer("average", torch.ones(5))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.error = error
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.direct.mul_(2)
        self.viewed[1].add_(1)
        self.data.data.sub_(1)
        self.average.lerp_(x.mean(0), 0.5)
        self.steps += 1
        x.mul_(3)
        x = F.batch_norm(x, self.norm.running_mean, self.norm.running_var, training=True)
        self.last = x + torch.rand(5)
        if self.error and not x.is_meta:
            raise KeyError("afterwards")
        return self.last * self.direct


@pytest.mark.parametrize("error", [False, True])
def test_the_model_its_inputs_and_the_process_are_left_as_found(error):
    model, x = Writer(error).train(), X.clone()
    found = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seed = torch.get_rng_state()
    if error:
        with pytest.raises(KeyError, match="afterwards"):
            propagate(model, x)
    else:
        propagate(model, x)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, found[name]), name
    assert torch.equal(x, X)
    assert torch.equal(torch.get_rng_state(), seed)
    assert model.last is None
    assert model.training
    assert model.norm.training
    assert not any("_compiled_call_impl" in module.__dict__ for module in model.modules())
    assert model.direct.grad is None
    assert modes() == []


def test_the_model_runs_in_eval_mode_without_gradients():
    seen: list[tuple[bool, bool]] = []

    def watched(model: Calls, x: Tensor) -> Tensor:
        seen.append((model.training, model.lin(x).requires_grad))
        return x + 1

    propagate(Calls(watched).train(), X)
    assert seen == [(False, False)] * 4


# -- CUDA -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_memory_and_time_are_those_of_the_allocator():
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    model = nn.Sequential(nn.Linear(256, 512, bias=False), nn.ReLU()).to(device)
    x = torch.randn(1024, 256)  # on the CPU: propagate moves it
    measured = by_name(propagate(model, x))
    result = 1024 * 512 * 4
    assert measured["_0"].memory_delta_bytes == result
    assert measured["_0"].memory_peak_bytes >= measured["_0"].memory_after_bytes
    assert measured["_1"].memory_delta_bytes == result
    assert measured["_0"].time_ms > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_out_of_memory_names_the_node():
    model = Calls(lambda model, x: model.lin(x).repeat(1 << 30, 1 << 12)).cuda()
    with pytest.raises(MeasurementError, match=r"out of memory on cuda:0, at node repeat \(repeat\): "):
        propagate(model, X)
