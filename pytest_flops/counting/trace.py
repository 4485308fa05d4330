"""`trace`: one shape-only run of a model, and what every step of it costs."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves  # private, for want of a public one

from pytest_flops.counting.backward import TrainingRecorder, asking_as, go_under_autograd, run_backward
from pytest_flops.counting.inputs import Inputs
from pytest_flops.counting.op_results import meta_like
from pytest_flops.counting.preserve import Untouched
from pytest_flops.counting.process import settle
from pytest_flops.counting.recorder import Recorder, recording
from pytest_flops.counting.shapes import CPU, NeedsRealTensorsError, ShapeMode
from pytest_flops.counting.sharding import make_whole
from pytest_flops.counting.subject import Subject
from pytest_flops.counting.whole import counting_composites_whole, kernels_in_place, take_kernels_away
from pytest_flops.errors import TraceError
from pytest_flops.formulas import FORMULAS_VERSION
from pytest_flops.results.report import Report

Execute = Literal["auto", "meta", "real"]


def trace(
    model: Callable[..., Any],
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    train: bool = False,
    backward: bool = False,
    execute: Execute = "auto",
) -> Report:
    """Run a model once on shapes alone and return what each step costs, as a `Report`.

    `model` is a `torch.nn.Module`, a method of one, or any function. `args` is the tuple of its positional
    arguments (anything else is taken as the only one), `kwargs` are its keyword arguments; an iterator among
    them is read here, and the model gets all its items.

    The model runs in eval mode, or in training mode with `train=True`, and is left exactly as it was found.
    `backward=True` counts the backward pass of a scalar loss as well: of the scalars that the model returns,
    or else of any loss of all its outputs, which itself is not counted. No gradient is written.

    Where the forward pass depends on values, `execute="auto"` runs it again on real tensors; "meta" and
    "real" insist on one kind. The report says in `executed` which it was, and the counts are the same.

    Raises `TraceError` for what cannot be counted, and whatever the model itself raises.
    """
    if execute not in ("auto", "meta", "real"):
        raise TraceError(f"execute={execute!r}: choose one of 'auto', 'meta', 'real'.")
    return traced(Prepared.of(model, args, kwargs), Mode(train, backward), execute).report()


@dataclass(frozen=True)
class Prepared:
    """A model and its arguments, ready for any number of runs: to count, to time, to weigh."""

    given: Callable[..., Any]
    """The model as the user gave it, compiled if it was."""
    subject: Subject
    """What is under its wrappers."""
    inputs: Inputs
    """Its arguments; what can be read only once has been read, and every run gets it anew."""

    @classmethod
    def of(
        cls, model: Callable[..., Any], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Prepared:
        """Prepare a model and the arguments of `trace`; raise `TraceError` for what cannot be counted."""
        inputs = Inputs.of(args, kwargs or {})
        return cls(model, Subject.of(model, inputs), inputs)


@dataclass(frozen=True)
class Mode:
    """What is run: the forward pass in eval or training mode, and the backward pass or not."""

    train: bool = False
    backward: bool = False

    def __str__(self) -> str:
        return ("train" if self.train else "eval") + (" with backward" if self.backward else "")


# A run changes what belongs to the whole process: random states, backends, the modules' calls.
_one_at_a_time = threading.RLock()


@dataclass(frozen=True)
class Traced:
    """A model that has been run once for its count, and what that run tells of later ones."""

    prepared: Prepared
    """What was run."""
    run: Run
    """The run that counted."""
    reason: str = ""
    """Why it needed real tensors; "" where it did not."""

    def report(self) -> Report:
        """Return what the run found."""
        return self.run.report(self.prepared.inputs, self.reason)


def traced(prepared: Prepared, mode: Mode, execute: Execute = "auto") -> Traced:
    """Run a prepared model as `trace` does."""
    with _one_at_a_time:
        return _traced(prepared, mode, execute)


def _traced(prepared: Prepared, mode: Mode, execute: Execute) -> Traced:
    subject, inputs, reason = prepared.subject, prepared.inputs, ""
    if execute != "real":
        run = Run(subject, mode, real=False)
        failure = run.attempt(inputs)
        if failure is None:
            return Traced(prepared, run)
        if execute == "meta" or subject.lives_on_meta or inputs.on_meta or subject.is_sharded:
            raise run.explain(failure)
        reason = run.reason(failure)
    elif subject.lives_on_meta or inputs.on_meta:
        raise TraceError(f"{subject.name} cannot run on real tensors: it, or an input, lives on meta.")
    elif subject.is_sharded:
        raise TraceError(
            f"{subject.name} cannot run on real tensors: fully_shard spread its parameters over ranks."
        )
    run = Run(subject, mode, real=True)
    failure = run.attempt(inputs)
    if failure is not None and _forbidden_by_inference_mode(failure):
        run = Run(subject, mode, real=True, inference=False)
        failure = run.attempt(inputs)
    if failure is not None:
        raise run.explain(failure)
    return Traced(prepared, run, reason)


class Run:
    """One run of the forward pass under the recording modes."""

    def __init__(self, subject: Subject, mode: Mode, *, real: bool, inference: bool = True) -> None:
        self._subject = subject
        self._mode = mode
        self._real = real
        self.inference = inference and not mode.backward
        kind = Recorder if self.inference else TrainingRecorder
        self.recorder = kind(subject.name if subject.root is None else type(subject.root).__name__)
        self._shapes = ShapeMode(
            real=real,
            symbolic=() if real else subject.symbolic,
            autograd=not self.inference,
            open_loose=self.recorder.open_loose,
        )

    def attempt(self, inputs: Inputs) -> Exception | None:
        """Run the model; return what went wrong, if anything did, also when the model swallowed it."""
        for name in inputs.named(self._subject.signature):
            self.recorder.mark("placeholder", name)
        found = Untouched(self._subject.modules.values(), self._subject.reached)
        around, kernels = self._surroundings(found, inputs), kernels_in_place()
        put_back = partial(self._put_back, found, around, kernels)
        try:
            try:
                with found, around as (args, kwargs):
                    self._finish(self._subject.run(args, kwargs))
            finally:
                put_back()
        except Exception as err:
            return err
        finally:
            put_back()  # again: an exception from outside may have broken the first time off
        return self._shapes.failure or self.recorder.problem

    def _put_back(self, found: Untouched, around: Any, kernels: int) -> None:
        """Put all back, as far as that is not done yet."""
        around.gen.close()  # by now, and not when Python finds the time: what it ends may be somebody else's
        take_kernels_away(kernels)
        self._shapes.close()
        found.restore()

    def _finish(self, output: Any) -> None:
        if isinstance(output, (Awaitable, AsyncIterator)):
            if isinstance(output, Coroutine):
                output.close()
            raise TraceError(
                f"{self._subject.name} is asynchronous: count a function that runs it to its end."
            )
        if any(isinstance(leaf, Iterator) for leaf in tree_leaves(output)):
            raise TraceError(
                f"{self._subject.name} returns an iterator inside its output, whose work is not done yet: "
                "count a function that runs it to its end."
            )
        self.recorder.mark("output", "output")
        if self._mode.backward and isinstance(self.recorder, TrainingRecorder):
            with self.recorder.backward():
                run_backward(self._subject.name, output)

    @contextmanager
    def _surroundings(
        self, found: Untouched, inputs: Inputs
    ) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
        """Set all up for the run; yield its own arguments."""
        with ExitStack() as stack:
            settle()
            self._subject.set_mode(train=self._mode.train)
            if self._subject.is_sharded:
                make_whole(found.modules)
            stack.enter_context(found.process.inference_mode(self.inference))
            if isinstance(self.recorder, TrainingRecorder):
                go_under_autograd(self.recorder, found, on_meta=not self._real)
            given = inputs.fresh(self._real_input if self._real else _symbolic_input)
            stack.enter_context(self._shapes)
            stack.enter_context(recording(self.recorder, self._shapes, self._subject.modules))
            stack.enter_context(counting_composites_whole(self.recorder, under_autograd=not self.inference))
            yield given

    def _real_input(self, tensor: Tensor) -> Tensor:
        device = self._subject.device
        made = tensor if device is None else tensor.to(device)
        return asking_as(tensor, made.detach()) if tensor.requires_grad and not self.inference else made

    def wrote(self, tensor: Tensor) -> bool:
        """Tell whether the forward pass writes into a tensor that was there before it."""
        return self._shapes.wrote(tensor)

    def reason(self, failure: Exception) -> str:
        """Say in one line why the shape-only run could not go on, and where."""
        return f"in {self._place}: {_first_line(failure)}"

    def explain(self, failure: Exception) -> Exception:
        """Return what to raise for a failed run: the model's own exception, with a line on where it was."""
        if isinstance(failure, TraceError):
            return failure
        if not self._real and isinstance(self._shapes.failure, NeedsRealTensorsError):
            return TraceError(
                f"{self._subject.name} needs values that a shape-only run has not, {self.reason(failure)}. "
                "Give it real tensors: a model and inputs on the CPU, and no execute='meta'."
            ).with_traceback(failure.__traceback__)
        for sign, remedy in _BEYOND.items():
            if sign in str(failure):
                return TraceError(f"{self._subject.name} {remedy} ({self.reason(failure)}).")
        kind = "real tensors" if self._real else "shapes alone"
        add_note(failure, f"pytest-flops was running {self._subject.name} on {kind}, in {self._place}.")
        return failure

    @property
    def _place(self) -> str:
        path = self.recorder.where
        return f"module {path!r}" if path else "its own forward"

    def report(self, inputs: Inputs, reason: str) -> Report:
        """Return what the run recorded."""
        unsupported: dict[str, int] = {}
        for step in self.recorder.steps:
            for op, calls in step.all_unsupported():
                unsupported[op] = unsupported.get(op, 0) + calls
        return Report(
            model=self._subject.name,
            mode=str(self._mode),
            inputs=inputs.described(self._subject.signature),
            executed="real" if self._real else "meta",
            reason=reason,
            params=sum(parameter.numel() for parameter in self._subject.parameters),
            nodes=self.recorder.nodes(),
            module_types=self._subject.types,
            unsupported=unsupported,
            formulas=FORMULAS_VERSION,
            torch=torch.__version__,
            parameter_memory=self._subject.memory,
        )


_NO_FLEX = "calls flex_attention, which hides its work: use F.scaled_dot_product_attention"
_BEYOND = {
    "HigherOrderOperator flex_attention": _NO_FLEX,
    "FlexAttention": _NO_FLEX,
    "HigherOrderOperator": "calls a higher-order operator, which hides its work: count it without",
    "NestedTensorImpl": "uses a strided nested tensor, which hides its sizes: use layout=torch.jagged",
}
"""What PyTorch says where a count cannot go, and what we say instead."""


def add_note(err: BaseException, note: str) -> None:
    """Add a line to an exception, as `BaseException.add_note` does since Python 3.11."""
    err.__notes__ = [*getattr(err, "__notes__", ()), note]


def _symbolic_input(tensor: Tensor) -> Tensor:
    if tensor.is_meta or tensor.is_floating_point() or tensor.is_complex():
        made = meta_like(tensor)
        asks = tensor.requires_grad and not torch.is_inference_mode_enabled()
        return asking_as(tensor, made) if asks else made
    return tensor.to(CPU)


def _forbidden_by_inference_mode(err: Exception) -> bool:
    """Tell whether a model uses autograd inside its forward pass, as models of forces do."""
    return isinstance(err, RuntimeError) and ("nference" in str(err) or "grad" in str(err))


def _first_line(err: BaseException) -> str:
    line = (str(err).strip() or type(err).__name__).splitlines()[0]
    return line if len(line) <= 160 else f"{line[:157]}..."
