"""Models whose parameters are spread over ranks, each in a process that is one of the ranks."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

SETUP = """
    import sys, warnings
    import torch, torch.distributed as dist
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from pytest_flops import TraceError, trace

    warnings.simplefilter("ignore")
    ranks = int(sys.argv[1])
    if ranks == 1:
        dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    else:  # communication that does nothing, as PyTorch's own tests use
        from torch.testing._internal.distributed.fake_pg import FakeStore
        dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())

    x = torch.randn(4, 8)

    def build():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))

    def refused(*args, **kwargs):
        try:
            trace(*args, **kwargs)
        except TraceError as err:
            return str(err)
"""
FULLY_SHARD = """
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        from torch.distributed._composable.fsdp import fully_shard

    def shard(model, mesh):
        for part in (model[0], model):
            fully_shard(part, mesh=mesh)
        return model

    def step(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss = model(x).sum()
        loss.backward()
        optimizer.step()
        return loss.item()
"""
TRAINING = """
    mesh = init_device_mesh("cpu", (ranks,))
    untraced = shard(build(), mesh)
    losses = [step(untraced) for _ in range(3)]
    for how in ({}, {"train": True}, {"train": True, "backward": True}):
        for steps_before in (0, 1):
            model = shard(build(), mesh)
            found = [step(model) for _ in range(steps_before)]
            report = trace(model, x, **how)
            assert (report.executed, report.unsupported, report.params) == ("meta", {}, 144), report
            # Two layers of 8x8 on 4 rows and a ReLU; backward a product each, and one for the ReLU.
            linear = 4 * 8 * 16
            backward = 2 * (8 * 8 * 7 + 8 * 3) + 4 * 8 * 15 + 32
            assert report.flops == 2 * linear + 32 + ("backward" in how) * backward, report.flops
            assert found + [step(model), step(model)][: 3 - steps_before] == losses[: 2 + steps_before]
            assert type(model[0].weight).__name__ == "DTensor"
    assert "real tensors: fully_shard spread" in refused(shard(build(), mesh), x, execute="real")
"""
PARALLEL = """
    from torch.distributed.tensor import Shard, distribute_tensor
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    model = parallelize_module(build(), mesh["tensor"], {"0": ColwiseParallel()})
    WHY = (
        "is a DTensor, and a count would mix the work of one rank with that of all. Count it before it is "
        "parallelized."
    )
    assert refused(model, x) == f"Sequential is spread over ranks: '0.weight' {WHY}"
    assert refused(lambda x: model(x), x) == f"<lambda> is spread over ranks: 'model.0.weight' {WHY}"
    assert WHY in refused(shard(model, mesh["data"]), x)
    part = distribute_tensor(x, mesh["tensor"], [Shard(0)])
    assert WHY in refused(nn.Linear(8, 8), part)
    weight = nn.Parameter(part)
    assert WHY in refused(lambda x: x + weight, x)
    table = build()
    table[2].register_buffer("table", part)
    assert refused(table, x) == f"Sequential is spread over ranks: '2.table' {WHY}"
"""
WRAPPED = """
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = FullyShardedDataParallel(build(), device_id=torch.device("cpu"))
    assert refused(model, x) == (
        "FullyShardedDataParallel is wrapped in FullyShardedDataParallel, which spreads its parameters over "
        "ranks: count it before it is wrapped."
    )
"""


def run(*parts: str, ranks: int) -> None:
    script = "".join(map(textwrap.dedent, (SETUP, *parts)))
    done = subprocess.run([sys.executable, "-c", script, str(ranks)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_fully_sharded_model_counts_as_a_whole_and_trains_on(ranks: int) -> None:
    run(FULLY_SHARD, TRAINING, ranks=ranks)


def test_tensor_parallelism_is_refused() -> None:
    run(FULLY_SHARD, PARALLEL, ranks=4)


def test_the_older_wrapper_is_refused() -> None:
    run(WRAPPED, ranks=1)
