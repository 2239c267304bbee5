"""A small transformer that predicts the next character, on the pages of help that Python brings along."""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn

LENGTH = 32
WIDTH = 48
CHARACTERS = 128


def load(root: Path | None, train: bool) -> tuple[Tensor, Tensor]:
    """Return characters int64 [n, 32], and as targets those that follow each of them, int64 [n, 32]."""
    del root
    pages = [text for number, text in enumerate(topics.values()) if (number % 5 > 0) == train]
    letters = torch.tensor(list("\n".join(pages).encode("ascii", "replace")))[: (3000 if train else 300) * LENGTH + 1]
    return letters[:-1].reshape(-1, LENGTH), letters[1:].reshape(-1, LENGTH)


class Transformer(nn.Module):
    """Two layers of attention in which no character sees a later one."""

    def __init__(self, length: int, classes: int) -> None:
        super().__init__()
        self.letters, self.positions = nn.Embedding(classes, WIDTH), nn.Parameter(0.02 * torch.randn(length, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, nhead=4, dim_feedforward=2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, classes)

    def forward(self, x: Tensor) -> Tensor:
        later = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        seen: Tensor = self.layers(self.letters(x) + self.positions, mask=later, is_causal=True)
        logits: Tensor = self.head(self.norm(seen))
        return logits.movedim(-1, 1)  # [B, classes, length]: dimension 1 is that of the classes


def model(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build a network that maps int64 [B, 32] to logits [B, 128, 32]."""
    (length,) = input_shape
    return Transformer(length, num_classes)
