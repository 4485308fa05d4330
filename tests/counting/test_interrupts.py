"""A trace may be broken off at any moment: see `tests/interrupts.py`, which breaks off thousands."""

from __future__ import annotations

import contextlib
import functools
import gc
import types
from collections.abc import Iterator

import pytest
import torch

from pytest_flops import trace
from tests.interrupts import WAYS, Busy, apart, broken_off, damage, lines_where


# What is raised while Python drops a tensor cannot be: Python says so, and goes on.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("way", WAYS)
@apart
def test_a_trace_that_is_broken_off_leaves_all_as_it_was(way: str) -> None:
    assert list(damage(24, seed=len(way), **WAYS[way])) == []


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Keep Python from collecting garbage in the middle of a run: what is raised there is swallowed."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@apart
def test_inference_mode_within_inference_mode_is_left_first() -> None:
    model, x = Busy(), torch.ones(3, 5)
    run = functools.partial(trace, model, x)
    run()
    code = torch.inference_mode.__enter__.__code__
    entering, _ = lines_where(run, lambda frame: frame.f_code is code)
    for moment in (
        line + shift for line in entering for shift in range(-3, 4)
    ):  # runs differ by a line or two
        err = broken_off(run, moment)  # kept: what only its end would undo stays broken
        assert err is not None
        assert not torch.is_inference_mode_enabled()


@pytest.mark.usefixtures("no_collector")
@apart
def test_a_mode_that_pytorch_was_about_to_put_back_does_not_come_back_later() -> None:
    model, x = Busy(), torch.ones(3, 5)
    run = functools.partial(trace, model, x)
    run()
    exit_code = contextlib._GeneratorContextManager.__exit__.__code__

    def is_leaving(frame: types.FrameType) -> bool:
        manager = frame.f_locals.get("self") if frame.f_code is exit_code else None
        return manager is not None and manager.gen.gi_code.co_name == "_pop_mode_temporarily"

    leaving, _ = lines_where(run, is_leaving)
    assert leaving
    for moment in [line + shift for line in leaving[:12] for shift in range(-2, 3)]:
        err = broken_off(run, moment)
        assert err is not None
        del err  # with its traceback go the contexts that were not left
        gc.collect()
        assert (torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()) == (0, 0)


def test_no_exception_is_left_behind_as_the_context_of_later_ones() -> None:
    with pytest.raises(KeyError) as caught:
        _ = {}[1]
    assert caught.value.__context__ is None
