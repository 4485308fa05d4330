"""The fixed workload that latencies are compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

REFERENCE_VERSION = 1
"""Which workload `reference_on` returns. A change of its work raises it: older ratios do not compare then."""


class _Sizes(NamedTuple):
    image: int
    matrix: int
    vector: int
    layers: int


_SIZES = {
    "cpu": _Sizes(image=28, matrix=256, vector=2**20, layers=20),
    "cuda": _Sizes(image=224, matrix=1024, vector=2**24, layers=10),
}


def reference_on(device: torch.device) -> Callable[[], None]:
    """Return the reference workload: about 6 ms on one core of a server, of what models are made of.

    About half of it is arithmetic and memory: two 3×3 convolutions of 64 channels, two matrix products, the
    addition of vectors that a core's own cache does not hold. The other half is overhead: layers of all kinds
    on next to no data. They are of many kinds, so that much code runs: other processes on the machine slow
    down much code more than a loop over one operator. All is float32; on CUDA it is larger, to outweigh its
    launches.
    """
    sizes = _SIZES[device.type]
    options: dict[str, Any] = {"dtype": torch.float32, "device": device}
    image = torch.full((1, 64, sizes.image, sizes.image), 0.5, **options)
    kernel = torch.full((64, 64, 3, 3), 0.01, **options)
    matrix = torch.full((sizes.matrix, sizes.matrix), 0.1, **options)
    vector = torch.ones(sizes.vector, **options)
    result = torch.empty_like(vector)
    rows, layers = torch.ones(4, 8, **options), _small_layers(options)

    def reference() -> None:
        for _ in range(2):
            F.conv2d(image, kernel, padding=1)
            torch.mm(matrix, matrix)
        torch.add(vector, 1.0, out=result)
        for _ in range(sizes.layers):
            y = layers(rows)
            y = torch.cat([y, rows]).view(2, 4, 8).transpose(0, 1).reshape(4, 16)
            y = torch.mm(y, y.t()).mean(0, keepdim=True)

    return reference


def _small_layers(options: dict[str, Any]) -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 8, **options),
        nn.LayerNorm(8, **options),
        nn.GELU(),
        nn.Conv1d(4, 4, 3, padding=1, **options),
        nn.ReLU(),
        nn.Linear(8, 8, **options),
        nn.Softmax(-1),
    ).eval()
