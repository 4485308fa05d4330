"""What only running shows, as data: how long a model takes and how much CUDA memory, and on which machine.

No torch here: the numbers are stored, compared and printed without it. `latency` and `cuda_memory` take them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Latency:
    """How long one forward pass takes, by itself and against a fixed reference workload run in turn with it.

    `ratio` is the median over the pairs of (a run of the model / the runs of the reference around it): what
    budgets compare. `median_ms` is the median time of one forward pass, without the time that it waited for a
    core (see `latency`), `spread` the interquartile range of the ratios as a fraction of their median,
    `samples` the number of pairs. `reference` is the version of the workload: ratios to different ones do not
    compare.
    """

    ratio: float
    median_ms: float
    spread: float
    samples: int
    reference: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of one model on one machine; None where it was not asked for.

    `cuda_memory` is the peak allocated during the forward pass over what was allocated before, in bytes.
    """

    latency: Latency | None = None
    cuda_memory: int | None = None
