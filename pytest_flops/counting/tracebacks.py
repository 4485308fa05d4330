"""Tracebacks of a model's own errors: its lines, without ours and those that PyTorch puts between them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import TracebackType

import torch

_OURS = os.path.join(os.path.dirname(os.path.dirname(__file__)), "")
_TORCH = os.path.join(os.path.dirname(torch.__file__), "")


def shortened(err: Exception) -> Exception:
    """Leave only the model's lines in the traceback of an exception, unless it is a fault of ours."""
    frames = [*_frames(err)]
    is_ours = bool(frames) and _is_in(frames[-1], _OURS)
    return err if is_ours else err.with_traceback(model_lines(err))


def model_lines(err: Exception) -> TracebackType | None:
    """Return the part of an exception's traceback that is neither our code nor PyTorch's.

    Between the model's lines are a hundred others, which call modules, record and answer ops; and pytest
    shows the arguments of the last, with the values of the weights.
    """
    following: TracebackType | None = None
    for frame in reversed([*_frames(err)]):
        if not _is_in(frame, _OURS, _TORCH):
            following = TracebackType(following, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
    return following


def _frames(err: Exception) -> Iterator[TracebackType]:
    frame = err.__traceback__
    while frame is not None:
        yield frame
        frame = frame.tb_next


def _is_in(frame: TracebackType, *places: str) -> bool:
    return frame.tb_frame.f_code.co_filename.startswith(places)
