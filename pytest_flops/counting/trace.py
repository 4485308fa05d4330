"""`trace`: one shape-only run of a model, and what every step of it costs."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves  # private, for want of a public one

from pytest_flops.counting.autocast import Autocast, tell_of_autocast
from pytest_flops.counting.backward import TrainingRecorder, asking_as, go_under_autograd, losses_of
from pytest_flops.counting.devices import Devices
from pytest_flops.counting.inputs import Inputs
from pytest_flops.counting.op_results import meta_like
from pytest_flops.counting.preserve import Untouched
from pytest_flops.counting.process import settle
from pytest_flops.counting.recorder import Recorder, recording
from pytest_flops.counting.shapes import CPU, NeedsAutogradError, NeedsRealTensorsError, ShapeMode
from pytest_flops.counting.sharding import make_whole
from pytest_flops.counting.subclasses import (
    classes_refused,
    has_code,
    like_its_class,
    make_constructible,
    parts_of,
    take_constructors_back,
    with_parts,
)
from pytest_flops.counting.subject import Subject
from pytest_flops.counting.tally import added_up
from pytest_flops.counting.tracebacks import model_lines, shortened
from pytest_flops.counting.unseen import ADDRESSES, asked_for_data
from pytest_flops.counting.whole import counting_composites_whole, kernels_in_place, take_kernels_away
from pytest_flops.errors import TraceError
from pytest_flops.formulas import FORMULAS_VERSION
from pytest_flops.formulas.fingerprint import fingerprint_for
from pytest_flops.results.report import KERNEL, Report

__tracebackhide__ = True  # pytest shows the lines of the model instead

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

    @property
    def lacks_values(self) -> str:
        """Why a run on real tensors is out of reach; "" where it is not."""
        if self.subject.lives_on_meta or self.inputs.on_meta:
            return "it, or an input, lives on meta"
        return "fully_shard spread its parameters over ranks" if self.subject.is_sharded else ""


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
    met_kernel: bool = False
    """Whether it needed them for a kernel that PyTorch does not know."""

    def report(self) -> Report:
        """Return what the run found."""
        return self.run.report(self.prepared.inputs, self.reason, met_kernel=self.met_kernel)


def traced(prepared: Prepared, mode: Mode, execute: Execute = "auto") -> Traced:
    """Run a prepared model as `trace` does."""
    with _one_at_a_time:
        return _traced(prepared, mode, execute)


def _traced(prepared: Prepared, mode: Mode, execute: Execute) -> Traced:
    if execute == "real":
        if prepared.lacks_values:
            raise TraceError(f"{prepared.subject.name} cannot run on real tensors: {prepared.lacks_values}.")
        run, failure = _attempted(prepared, mode, real=True)
        if failure is not None:
            raise run.explain(failure)
        return Traced(prepared, run)
    first, first_failure = _attempted(prepared, mode, real=False)
    if first_failure is None:
        return Traced(prepared, first)
    if execute == "meta" or prepared.lacks_values:
        raise first.explain(first_failure)
    run, failure = _attempted(prepared, mode, real=True)
    if failure is None:
        return Traced(prepared, run, first.reason(first_failure), first.met_kernel(first_failure))
    explained = run.explain(failure)
    if explained is failure and first.where == run.where and _is_alike(first_failure, failure):
        raise first.told(first_failure, failure)
    raise explained


def _attempted(prepared: Prepared, mode: Mode, *, real: bool) -> tuple[Run, Exception | None]:
    """Run a model, and again where it takes autograd or constructors that PyTorch refuses under a mode."""
    inference = True
    made: list[type[Tensor]] = []
    while True:
        run = Run(prepared.subject, mode, real=real, inference=inference, made=made)
        failure = run.attempt(prepared.inputs)
        if failure is None:
            return run, None
        if refused := [kind for kind in classes_refused(failure) if kind not in made]:
            made += refused
        elif run.inference and (run.needs_autograd or (real and _forbidden_by_inference_mode(failure))):
            inference = False
        else:
            return run, failure


class Run:
    """One run of the forward pass under the recording modes."""

    def __init__(
        self,
        subject: Subject,
        mode: Mode,
        *,
        real: bool,
        inference: bool = True,
        made: Sequence[type[Tensor]] = (),
    ) -> None:
        self._subject = subject
        self._mode = mode
        self._real = real
        self._made = made
        self.inference = inference and not mode.backward
        kind = Recorder if self.inference else TrainingRecorder
        self.recorder = kind(subject.name if subject.root is None else type(subject.root).__name__)
        self._shapes = ShapeMode(
            real=real,
            symbolic=() if real else with_parts(subject.symbolic),
            autograd=not self.inference,
            functions=self.recorder,
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
        take_constructors_back(self._made)
        self._shapes.close()
        found.restore()
        self.recorder.devices = self.recorder.autocast = None  # which would keep the model alive

    def _finish(self, output: Any) -> None:
        if isinstance(output, (Awaitable, AsyncIterator)):
            if isinstance(output, Coroutine):
                output.close()
            raise TraceError(
                f"{self._subject.name} is asynchronous: count a function that runs it to its end."
            )
        leaves = tree_leaves(output)
        if any(isinstance(leaf, Iterator) for leaf in leaves):
            raise TraceError(
                f"{self._subject.name} returns an iterator inside its output, whose work is not done yet: "
                "count a function that runs it to its end."
            )
        self._shapes.returned(leaves)
        self.recorder.mark("output", "output")
        if self._mode.backward and isinstance(self.recorder, TrainingRecorder):
            with self.recorder.unpaid():
                losses = losses_of(self._subject.name, output)
            with self.recorder.backward():
                torch.autograd.backward(*losses)

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
            make_constructible(self._made)
            devices = Devices(self._subject, inputs)
            self.recorder.devices = None if self._real else devices
            tell_of_autocast(self.recorder, Autocast(devices, self._shapes, real=self._real))
            if isinstance(self.recorder, TrainingRecorder):
                go_under_autograd(self.recorder, found, on_meta=not self._real)
            given = inputs.fresh(self._real_input if self._real else partial(_symbolic_input, self._shapes))
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
            return failure.with_traceback(model_lines(failure))
        if not self._real and self.met_kernel(failure):
            return TraceError(
                f"{self._subject.name} calls a kernel outside PyTorch, which needs real tensors, "
                f"{self.reason(failure).rstrip('.')}. {_GIVE_REAL}"
            ).with_traceback(model_lines(failure))
        if not self._real and isinstance(self._shapes.failure, NeedsRealTensorsError):
            return TraceError(
                f"{self._subject.name} needs values that a shape-only run has not, {self.reason(failure)}. "
                f"{_GIVE_REAL}"
            ).with_traceback(model_lines(failure))
        for sign, remedy in _BEYOND.items():
            if sign in str(failure):
                return TraceError(f"{self._subject.name} {remedy} ({self.reason(failure)}).")
        return self.noted(failure)

    @property
    def _place(self) -> str:
        return f"module {self.where!r}" if self.where else "its own forward"

    @property
    def where(self) -> str:
        """The path of the module at which the run stopped."""
        return self.recorder.where

    @property
    def needs_autograd(self) -> bool:
        """Whether the model stopped at something that inference mode leaves out."""
        return isinstance(self._shapes.failure, NeedsAutogradError)

    def met_kernel(self, failure: Exception) -> bool:
        """Tell whether a run on shapes stopped at a kernel that neither PyTorch nor its author told of."""
        is_declared = failure is self.recorder.failed_declared
        return self._shapes.failure is None and asked_for_data(failure) and not is_declared

    def noted(self, failure: Exception) -> Exception:
        """Return the model's own exception, with a line on where it was."""
        kind = "real tensors" if self._real else "shapes alone"
        add_note(failure, f"pytest-flops was running {self._subject.name} on {kind}, in {self._place}.")
        return shortened(failure)

    def told(self, failure: Exception, again: Exception) -> Exception:
        """Return what to raise for a fault of the model's own, which came `again` on real tensors.

        That is what went wrong first, not what trying again made of it. Where an op refused its arguments the
        words are those of its real kernel, and only the lines are from before: these hold no values.
        """
        if self._shapes.failure is None:
            return self.noted(failure)
        return again.with_traceback(model_lines(failure))

    def report(self, inputs: Inputs, reason: str, *, met_kernel: bool = False) -> Report:
        """Return what the run recorded; `met_kernel` says that a run on shapes stopped at one."""
        by_torch, own_formulas = self._by_others()
        return Report(
            model=self._subject.name,
            mode=str(self._mode),
            inputs=inputs.described(self._subject.signature),
            executed="real" if self._real else "meta",
            reason=reason,
            held=self._subject.held,
            nodes=self.recorder.nodes(),
            module_types=self._subject.types,
            unsupported=self._unsupported(met_kernel),
            by_torch=by_torch,
            own_formulas=own_formulas,
            peak_owners=self._shapes.memory.owners(),
            formulas=FORMULAS_VERSION,
            torch=torch.__version__,
        )

    def _unsupported(self, met_kernel: bool) -> dict[str, int]:
        found = added_up(
            (f"{KERNEL}, near {step.module or step.module_type}" if name == KERNEL else name, calls)
            for step in self.recorder.steps
            for tally in step.tallies
            if tally.unsupported
            for name, calls in tally.unsupported.items()
        )
        if met_kernel and not any(name in ADDRESSES or name.startswith(KERNEL) for name in found):
            found[KERNEL] = 1
        return found

    def _by_others(self) -> tuple[dict[str, int], dict[str, str]]:
        """Return the calls of ops that torch's formulas counted, and the fingerprints of users' formulas."""
        tallies = (tally for step in self.recorder.steps for tally in step.tallies if tally.by_others)
        found = added_up(calls for tally in tallies for calls in (tally.by_others or {}).items())
        users = {op: mark for op in sorted(found) if (mark := fingerprint_for(op)) is not None}
        return {op: calls for op, calls in found.items() if op not in users}, users


_GIVE_REAL = "Give it real tensors: a model and inputs on the CPU, and no execute='meta'."
_NO_FLEX = "calls flex_attention, which hides its work: use F.scaled_dot_product_attention"
_BEYOND = {
    "HigherOrderOperator flex_attention": _NO_FLEX,
    "FlexAttention": _NO_FLEX,
    "HigherOrderOperator": "calls a higher-order operator, which hides its work: count it without",
    "Creating a new Tensor subclass": (
        "makes a tensor of its own class in a way that PyTorch refuses while a count runs: let the class use "
        "torch.Tensor._make_subclass in its __new__"
    ),
    "NestedTensorImpl": (
        "uses a strided nested tensor, as attention over jagged ones does, which hides its sizes: use "
        "layout=torch.jagged, and attend over padded tensors with a mask or by torch.nn.attention.varlen"
    ),
}
"""What PyTorch says where a count cannot go, and what we say instead."""


def add_note(err: BaseException, note: str) -> None:
    """Add a line to an exception, as `BaseException.add_note` does since Python 3.11."""
    err.__notes__ = [*getattr(err, "__notes__", ()), note]


def _symbolic_input(shapes: ShapeMode, tensor: Tensor) -> Tensor:
    if has_code(type(tensor)) and tensor.layout is torch.strided:
        shapes.make_symbolic(parts_of(tensor))
        return tensor
    if tensor.is_meta or tensor.is_floating_point() or tensor.is_complex():
        made = like_its_class(tensor, meta_like(tensor))
        asks = tensor.requires_grad and not torch.is_inference_mode_enabled()
        return asking_as(tensor, made) if asks else made
    return tensor.to(CPU)


def _is_alike(one: Exception, other: Exception) -> bool:
    """Tell whether two exceptions at the same place are the same fault, which shapes word differently."""
    return type(one) is type(other) and not isinstance(one, NeedsRealTensorsError)


def _forbidden_by_inference_mode(err: Exception) -> bool:
    """Tell whether a model uses autograd inside its forward pass, as models of forces do."""
    return isinstance(err, RuntimeError) and ("nference" in str(err) or "grad" in str(err))


def _first_line(err: BaseException) -> str:
    line = (str(err).strip() or type(err).__name__).splitlines()[0]
    return line if len(line) <= 160 else f"{line[:157]}..."
