"""The state of the process: what every run finds, and what comes back after it.

What is around a model must not change its count, and what a model changes must not stay: that somebody
looks for anomalies, or that `forward` sets the number of threads, is no matter of the next test's.
"""

from __future__ import annotations

import contextlib
import functools
import random
import sys
import types
import warnings
from collections.abc import Callable
from functools import partial
from operator import methodcaller
from typing import Any

import torch
import torch.backends.opt_einsum
import torch.nn.functional as F
import torch.nn.utils.parametrize
import torch.overrides
import torch.utils._python_dispatch
from torch.nn.modules import module as module_code
from torch.utils._device import DeviceContext

from pytest_flops.counting import declared
from pytest_flops.counting.places import is_same, put_back

Switch = tuple[Callable[[], Any], Callable[[Any], Any]]

# Private, most of what follows: the public functions set several of these at once, import the compiler or
# warn, and the attributes of `torch.backends` cannot be set once something has imported torch.testing.
_BY_NAME = (
    *("float32_matmul_precision", "cublas_allow_tf32", "cudnn_allow_tf32", "onednn_allow_tf32"),
    *("mkldnn_enabled", "mkldnn_deterministic", "nnpack_enabled", "qengine", "warnAlways"),
    *("cudnn_enabled", "cudnn_benchmark", "cudnn_deterministic", "deterministic_fill_uninitialized_memory"),
    *("sdp_priority_order", "math_sdp_allow_fp16_bf16_reduction", "graph_executor_optimize"),
)
"""Switches that torch._C has a `_get_` and a `_set_` for; the first sets some of the others, too."""
_PRECISIONS = [
    ("generic", "all"),
    *((backend, op) for backend in ("cuda", "mkldnn") for op in ("all", "matmul", "conv", "rnn")),
]
_GLOBALS = (
    *((module_code, name) for name in vars(module_code) if name.startswith("_global_")),
    (torch.nn.utils.parametrize, "_cache"),
    (F, "scaled_dot_product_attention"),
    (torch, "set_autocast_enabled"),
    (torch, "clear_autocast_cache"),
    (declared, "counter"),
)
"""Hooks on the calls of all modules; what parametrizations have computed; what a run replaces itself."""


_AUTOCAST_KINDS = [kind for kind in ("cpu", "cuda", "xpu", "mps") if torch.amp.is_autocast_available(kind)]


@functools.cache
def _switches() -> tuple[Switch, ...]:
    """Return how each switch of this version of torch is read and written."""
    c = torch._C
    named = [(getattr(c, f"_get_{n}", None), getattr(c, f"_set_{n}", None)) for n in _BY_NAME]
    attention = [
        (getattr(c, f"_get_{n}_sdp_enabled", None), getattr(c, f"_set_sdp_use_{n}", None))
        for n in ("flash", "mem_efficient", "math", "cudnn")
    ]
    return (
        (torch.get_default_dtype, torch.set_default_dtype),
        (torch.is_grad_enabled, c._set_grad_enabled),
        (torch.get_num_threads, torch.set_num_threads),
        (torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled),
        (_anomaly, lambda was: torch.set_anomaly_enabled(*was)),
        (_determinism, lambda was: c._set_deterministic_algorithms(was[0], warn_only=was[1])),
        (c._is_multithreading_enabled, c._set_multithreading_enabled),
        (c._is_view_replay_enabled, c._set_view_replay_enabled),
        (c._check_sparse_tensor_invariants, c._set_check_sparse_tensor_invariants),
        (torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
        *((partial(_autocast, kind), partial(_set_autocast, kind)) for kind in _AUTOCAST_KINDS),
        (_opt_einsum, lambda was: _opt_einsum(*was)),
        (lambda: list(warnings.filters), _set_filters),
        *((read, write) for read, write in (*named, *attention) if read and write),
        *map(_precision, _PRECISIONS if hasattr(c, "_get_fp32_precision_getter") else ()),
    )


def _precision(place: tuple[str, str]) -> Switch:
    c = torch._C
    return partial(c._get_fp32_precision_getter, *place), partial(c._set_fp32_precision_setter, *place)


def _read(read: Callable[[], Any]) -> Any:
    """Return how a switch is set; None where PyTorch complains of two ways, an old one and a new one."""
    try:
        return read()
    except RuntimeError:
        return None


def _anomaly() -> tuple[bool, bool]:
    return torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()


def _determinism() -> tuple[bool, bool]:
    return torch._C._get_deterministic_algorithms(), torch._C._get_deterministic_algorithms_warn_only()


def _autocast(device: str) -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)


def _set_autocast(device: str, was: tuple[bool, torch.dtype]) -> None:
    torch.set_autocast_enabled(device, was[0])
    torch.set_autocast_dtype(device, was[1])


def _opt_einsum(*was: Any) -> tuple[bool, Any]:
    """Set the flags of einsum, if any are given; return those that it had."""
    found: tuple[bool, Any] = torch.backends.opt_einsum.set_flags(*was)  # type: ignore[no-untyped-call]
    return found


def _set_filters(was: list[Any]) -> None:
    warnings.filters[:] = was  # type: ignore[index]


def settle() -> None:
    """Turn off what makes PyTorch take another way through the same model; `ProcessState` brings it back."""
    torch.backends.mha.set_fastpath_enabled(False)
    torch.set_anomaly_enabled(False)
    torch._C._set_deterministic_algorithms(False, warn_only=False)
    # TorchScript learns from its first runs, and computes with what it has learned: not the same ops
    torch._C._set_graph_executor_optimize(False)
    _leave_autocast()
    if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
        torch.compiler.set_stance("force_eager")


def _leave_autocast() -> None:
    """Go outside of all blocks of autocast, which would cast parameters and leave meta inputs alone.

    PyTorch keeps the casts of weights until the outermost block ends, which is then the model's own.
    """
    for kind in _AUTOCAST_KINDS:
        torch.set_autocast_enabled(kind, False)
    torch.set_autocast_cache_enabled(True)
    while _autocast_nesting():
        torch.autocast_decrement_nesting()


def take_plain_ways() -> None:
    """Turn off what runs whole on some devices and in some versions; `ProcessState` brings it back."""
    torch.backends.cuda.enable_math_sdp(True)
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch._C._set_mkldnn_enabled(False)
    torch._C._set_cudnn_enabled(False)
    _opt_einsum(False)


class ProcessState:
    """The state of the process when this is made; `restore` brings it back, any number of times."""

    def __init__(self) -> None:
        self._switches = [(read, write, _read(read)) for read, write in _switches()]
        self._device = default_device()
        self._globals = [(room, name, getattr(room, name)) for room, name in _GLOBALS]
        self._held = [(held, held.copy()) for _, _, held in self._globals if isinstance(held, dict)]
        self._random = [(write, read()) for read, write in _random_states()]
        self._nesting = _autocast_nesting()
        self._modes = _Modes()
        self._stance = _stance()
        self._guard: torch.inference_mode | None = None

    def inference_mode(self, mode: bool) -> torch.inference_mode:
        """Return the context of inference mode or not; `restore` leaves it, if it was not left whole."""
        self._guard = torch.inference_mode(mode)
        return self._guard

    def start_afresh(self) -> None:
        """Let every run draw the same numbers, and take away what others have left for it to find."""
        torch.default_generator.manual_seed(0)
        if _cuda_is_used():
            torch.cuda.manual_seed_all(0)
        random.seed(0)
        if (numpy := sys.modules.get("numpy")) is not None:
            numpy.random.seed(0)
        torch.clear_autocast_cache()
        for held, _ in self._held:
            held.clear()

    def restore(self) -> None:
        """Bring back the state."""
        self._modes.restore()
        if self._guard is not None:
            leave_inference_mode(self._guard)
        for room, name, was in self._globals:
            if getattr(room, name) is not was:
                setattr(room, name, was)
        while _autocast_nesting() > self._nesting:
            torch.autocast_decrement_nesting()
        while _autocast_nesting() < self._nesting:
            torch.autocast_increment_nesting()
        torch.clear_autocast_cache()  # the user's block may go on: none of its casts may come from this run
        for read, write, was in self._switches:
            if was is not None and _read(read) != was:
                write(was)
        if default_device() != self._device:
            torch.set_default_device(None if self._device.type == "cpu" else self._device)
        for held, was in self._held:
            if not is_same(held, was):
                put_back(held, was)
        for write, was in self._random:
            write(was)
        if self._stance is not None and _stance() is not self._stance:
            sys.modules["torch._dynamo.eval_frame"]._set_stance(self._stance)


def leave_inference_mode(guard: torch.inference_mode) -> None:
    """Leave inference mode where that was broken off: else Python does, as late as it lets the guard go."""
    if hasattr(guard, "_inference_mode_context"):  # private: it has been entered
        guard.__exit__(None, None, None)


_MANAGER: Any = contextlib._GeneratorContextManager  # private: what the decorator `contextmanager` makes
_BETWEEN = (_MANAGER.__enter__.__code__, _MANAGER.__exit__.__code__)


def end_broken_contexts(traceback: types.TracebackType | None) -> None:
    """End the blocks of `contextmanager` that were broken off while they were entered or left.

    Else Python ends them, as late as it lets the traceback go. PyTorch takes a mode off in such a block while
    the mode answers: it would be back after the run, and stay.
    """
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_code in _BETWEEN:
            frame.f_locals["self"].gen.close()
        traceback = traceback.tb_next


class _Modes:
    """The modes that are active: another set only where entering or leaving one was broken off."""

    _FLAGS = ("_is_in_torch_dispatch_mode", "_is_in_non_infra_torch_dispatch_mode")
    _ROOM: Any = torch.utils._python_dispatch

    def __init__(self) -> None:
        self._functions = _function_modes()
        self._dispatch = _dispatch_modes()
        self._flags = {name: getattr(self._ROOM, name) for name in self._FLAGS if hasattr(self._ROOM, name)}

    def restore(self) -> None:
        """Leave those that are on top of those before, and enter those that are missing."""
        c = torch._C
        pop, push = c._pop_torch_function_stack, c._push_on_torch_function_stack
        _restack(self._functions, _function_modes, pop, push)
        pop, push = partial(c._pop_torch_dispatch_stack, None), c._push_on_torch_dispatch_stack
        _restack(self._dispatch, _dispatch_modes, pop, push)
        for name, was in self._flags.items():
            setattr(self._ROOM, name, was)


def _restack(
    before: list[Any], stack: Callable[[], list[Any]], pop: Callable[[], Any], push: Callable[[Any], object]
) -> None:
    """Bring a stack of modes back one by one, so that this can be broken off and done again."""
    while (now := stack()) and not any(now[-1] is mode for mode in before):
        if isinstance(now[-1], DeviceContext):  # of a new default device, which is somebody else's to end
            return
        pop()
    for mode in before[len(now) :]:
        push(mode)


def _function_modes() -> list[Any]:
    found: list[Any] = torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return found


def _dispatch_modes() -> list[Any]:
    c = torch._C
    return [c._get_dispatch_stack_at(place) for place in range(c._len_torch_dispatch_stack())]


def _autocast_nesting() -> int:
    """Return how many blocks of autocast are open: told only by changing it, which nothing may break off."""
    _, nesting = map(_called, (torch.autocast_increment_nesting, torch.autocast_decrement_nesting))
    return int(nesting)


_called = methodcaller("__call__")


def _stance() -> Any:
    """Return what torch.compile is told to do, where it is loaded at all."""
    return getattr(sys.modules.get("torch._dynamo.eval_frame"), "_stance", None)


def _cuda_is_used() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _random_states() -> list[Switch]:
    """Return how the state of each generator of the process is read and written."""
    found: list[Switch] = [(torch.get_rng_state, torch.set_rng_state), (random.getstate, random.setstate)]
    if _cuda_is_used():
        found.append((torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all))
    if (numpy := sys.modules.get("numpy")) is not None:
        found.append((numpy.random.get_state, numpy.random.set_state))
    return found


def default_device() -> torch.device:
    """Return the device that tensors are made on where none is named."""
    try:
        return torch.get_default_device()
    except AttributeError:  # torch 2.5, once the default has been set back to None
        return torch.device("cpu")
