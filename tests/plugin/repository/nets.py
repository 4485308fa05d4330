"""Four small models, and one change of each kind, by the name in the environment variable EDIT."""

import os

import torch
import torch.nn.functional as F
from torch import nn

EDIT = os.environ.get("EDIT", "")


class Mlp(nn.Module):
    """Twelve layers in a row, and a head."""

    def __init__(self):
        super().__init__()
        layers = [nn.Linear(32, 32) for _ in range(12)]
        if EDIT == "layer norm inserted":
            layers.insert(2, nn.LayerNorm(32))
        if EDIT == "dropout added":
            layers.append(nn.Dropout(0.1))
        self.refine = nn.Sequential(*layers)
        setattr(self, "classifier" if EDIT == "renamed" else "fc", nn.Linear(32, 10))
        if EDIT == "model cast":
            self.double()

    def forward(self, x):
        x = x.to(self.refine[0].weight.dtype)
        x = self.refine(x)
        if EDIT == "cast and back":
            x = x.double().float()
        return self.classifier(x) if EDIT == "renamed" else self.fc(x)


class Conv(nn.Module):
    """A stem and three residual blocks."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=1 if EDIT == "stride" else 2, padding=1)
        blocks = 4 if EDIT == "extra layer" else 2 if EDIT == "block removed" else 3
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(blocks))
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + F.relu(block(x))
        if EDIT == "clone":
            x = x.clone()
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    """Self-attention with two heads."""

    def __init__(self):
        super().__init__()
        self.size = 24 if EDIT == "head dimension" else 16
        self.qkv = nn.Linear(32, 6 * self.size)
        self.proj = nn.Linear(2 * self.size, 32)

    def forward(self, x):
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, 2, self.size).permute(2, 0, 3, 1, 4)
        if EDIT == "contiguous":
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        if EDIT == "naive attention":
            out = ((q * self.size**-0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(batch, length, -1))


class Block(nn.Module):
    """Attention and a feed-forward layer."""

    def __init__(self):
        super().__init__()
        width = 96 if EDIT == "wider block" else 64
        self.attn = Attention()
        self.up, self.down = nn.Linear(32, width), nn.Linear(width, 32)

    def forward(self, x):
        x = x + self.attn(x)
        return x + self.down(F.gelu(self.up(x)))


class Lm(nn.Module):
    """A vocabulary and four blocks."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5000 if EDIT == "vocabulary" else 100, 32)
        self.layers = nn.ModuleList(Block() for _ in range(4))
        self.norm = nn.LayerNorm(32)

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class Mixer(nn.Module):
    """A bias for each position, and a cell that runs a number of times."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, 16))
        self.cell = nn.Linear(16, 16)

    def forward(self, x):
        bias = self.bias.repeat(64, 1) if EDIT == "repeat" else self.bias.expand(64, 16)
        x = x + bias
        for _ in range(2 if EDIT == "loop twice" else 1):
            x = torch.tanh(self.cell(x))
        return x
