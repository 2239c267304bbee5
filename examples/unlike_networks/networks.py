"""Five unlike networks: all map images [B, 1, H, W] to logits [B, C]."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]


def perceptron(shape: Shape, classes: int) -> nn.Module:
    """One wide hidden layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[1] * shape[2], 200), nn.ReLU(), nn.Linear(200, classes))


def convolutional(shape: Shape, classes: int) -> nn.Module:
    """Two convolutions, then means over a grid of four by four."""
    body = nn.Conv2d(shape[0], 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(32 * 16, classes))


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.added = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.added(x)  # type: ignore[no-any-return]


def residual(shape: Shape, classes: int) -> nn.Module:
    """Four residual blocks."""
    blocks = [Residual(64) for _ in range(4)]
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[1] * shape[2], 64), *blocks, nn.Linear(64, classes))


class Rows(nn.Module):
    """Reads the rows of an image, with a recurrent layer or with self-attention."""

    def __init__(self, shape: Shape, classes: int, *, attends: bool) -> None:
        super().__init__()
        self.row = nn.Linear(shape[2], 64)
        self.place = nn.Parameter(torch.randn(shape[1], 64))
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
        self.body = layer if attends else nn.GRU(64, 64, batch_first=True)
        self.head = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, classes))

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(self.row(x.squeeze(1)) + self.place)
        return self.head((out[0] if isinstance(out, tuple) else out).mean(1))  # type: ignore[no-any-return]


def recurrent(shape: Shape, classes: int) -> nn.Module:
    return Rows(shape, classes, attends=False)


def attention(shape: Shape, classes: int) -> nn.Module:
    return Rows(shape, classes, attends=True)
