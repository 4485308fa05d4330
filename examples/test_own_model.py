"""A model of your own, on the CPU. What `forward` does outside of any module counts as well."""

import pytest
import torch
from torch import nn


class Classifier(nn.Module):
    """Embeds a sequence, attends to a learned query, and classifies."""

    def __init__(self, width=64, classes=10):
        super().__init__()
        self.encoder = nn.GRU(32, width, batch_first=True)
        self.query = nn.Parameter(torch.zeros(width))
        self.head = nn.Linear(width, classes)

    def forward(self, x, lengths=None):
        states, _ = self.encoder(x)
        scores = states @ self.query
        if lengths is not None:
            steps = torch.arange(x.shape[1])
            scores = scores.masked_fill(steps >= lengths[:, None], float("-inf"))
        pooled = (scores.softmax(-1)[..., None] * states).sum(1)
        return self.head(pooled)


@pytest.mark.flops_budget(flops="3M", modules={"encoder": "2.5M", "head": "10k"})
def test_classifier(flops):
    model = Classifier()
    plain = flops.named("plain")(model, torch.randn(4, 15, 32))
    masked = flops.named("masked")(model, torch.randn(4, 15, 32), lengths=torch.tensor([15, 9, 4, 1]))
    assert masked.flops - plain.flops == 4 * 15  # the comparisons of the mask
