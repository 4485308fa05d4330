"""One run of a model with a reading before and after each step."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

# Private, for want of a public way to let a leaf run without the mode that recorded its call.
from torch.overrides import _get_current_function_mode_stack

from pytest_flops.counting.live_memory import LiveMemory
from pytest_flops.counting.recorder import Recorder, Step, recording
from pytest_flops.counting.tally import Tally
from pytest_flops.errors import MeasurementError
from pytest_flops.measuring.probes import Probe
from pytest_flops.measuring.ready import Ready, first_line, is_out_of_memory
from pytest_flops.metrics import Cost


class _Open:
    """Which step is open, and nothing else: a run that measures does not count."""

    tally: Tally | None = None
    answered = 0
    memory = LiveMemory()

    def read(self, tensor: Any, name: str) -> Any:
        """Values may leave PyTorch while time is taken."""
        return tensor

    def with_values(self, tensor: Any, reason: str) -> Any:
        """All values are there."""
        return tensor

    def refuse(self, reason: str) -> None:
        """A run on real tensors goes on."""

    def need_autograd(self, reason: str) -> None:
        """The run that counted had it if the model needs it."""

    def trust(self) -> None:
        """Nothing is counted."""


class Stopwatch(Recorder):
    """Record the steps of one forward pass with a reading before and after each."""

    def __init__(self, root_type: str, probe: Probe) -> None:
        super().__init__(root_type)
        self.probe = probe
        self.readings: dict[int, tuple[Any, Any]] = {}

    def run_step(
        self, step: Step, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run the work of one step between two readings, without any mode of ours."""
        position = len(self.steps)
        self.steps.append(step)
        self.meter.tally = step
        with self._aside():
            before = self.probe.before()
            try:
                return run(*args, **kwargs)
            finally:
                self.readings[position] = before, self.probe.after()
                self.meter.tally = None

    def run_inside(
        self, path: str, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run what a module does inside a step: it is measured with the step."""
        return run(*args, **kwargs)

    @contextmanager
    def declared(self, cost: Cost) -> Iterator[None]:
        """Run a block whose cost its author declares between two readings, as the step that was counted."""
        if self.meter.tally is not None:
            yield
            return
        position = len(self.steps)
        with self._aside():
            before = self.probe.before()
            try:
                with super().declared(cost):
                    yield
            finally:
                self.readings[position] = before, self.probe.after()

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Take this mode off the stack for the work of a leaf: PyTorch's fast paths refuse under a mode."""
        stack = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
        if not stack or stack[-1] is not self:  # a function's own call: PyTorch has taken it off already
            yield
            return
        self.__exit__(None, None, None)
        try:
            yield
        finally:
            self.__enter__()


def recorded_pass(ready: Ready, probe: Probe) -> Stopwatch:
    """Run the model once and let a probe read before and after each step.

    Raises `MeasurementError` where it runs out of memory, naming the node.
    """
    args, kwargs = ready.fresh_inputs()
    stopwatch = Stopwatch(ready.run.recorder.root_type, probe)
    for name in ready.inputs.named(ready.subject.signature):
        stopwatch.mark("placeholder", name)
    try:
        with _recorded(ready, stopwatch), probe:
            ready.subject.run(args, kwargs)
    except (MemoryError, RuntimeError) as err:
        if not is_out_of_memory(err):
            raise
        place = _place(ready.run.recorder, stopwatch)
        raise MeasurementError(
            f"{ready.subject.name} ran out of memory on {ready.device}, {place}: {first_line(err)}"
        ) from err
    stopwatch.mark("output", "output")
    return stopwatch


@contextmanager
def _recorded(ready: Ready, stopwatch: Stopwatch) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(ready.surroundings())
        if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(recording(stopwatch, _Open(), ready.subject.modules))
        yield


def visible_positions(recorder: Recorder) -> list[int]:
    """Return the positions of the steps that a run sees which does not count ATen ops."""
    return [position for position, step in enumerate(recorder.steps) if not step.is_loose]


def _place(counted: Recorder, timed: Recorder) -> str:
    """Return the node at which a timed run stopped, by the name that it has in the trace."""
    last = len(timed.steps) - 1
    step, positions = timed.steps[last], visible_positions(counted)
    node = counted.nodes_by_step().get(positions[last]) if last < len(positions) else None
    where = f" in module {step.module!r}" if step.module and step.op != "call_module" else ""
    return f"at node {node.name if node else step.name} ({step.target}){where}"
