"""A small segmentation net, on images of discs and squares that are drawn here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

SIZE = 24
BACKGROUND, DISC, SQUARE, OUTLINE = 0, 1, 2, 255


class Shapes(Dataset[dict[str, Any]]):
    """Noisy images with a disc and a square each, and a mask with the class of each pixel."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        generator = torch.Generator().manual_seed(self.seed * 1_000_000 + index)
        rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
        mask = torch.full((SIZE, SIZE), BACKGROUND)
        for kind in (DISC, SQUARE):
            y, x = torch.randint(6, SIZE - 6, (2,), generator=generator)
            down, across = (rows - y).abs(), (columns - x).abs()
            distance = (down**2 + across**2).sqrt() if kind == DISC else torch.maximum(down, across)
            mask[distance <= 5] = OUTLINE  # where it is not said what a pixel is
            mask[distance <= 4] = kind
        bright = 0.6 * ((mask == DISC) | (mask == SQUARE))
        image = bright + 0.15 * torch.randn(SIZE, SIZE, generator=generator)
        return {"image": image.unsqueeze(0), "mask": mask}


def load(root: Path | None, train: bool) -> Shapes:
    """Return a data set of dicts; `data.input_key` and `data.label_key` say which entry is which."""
    del root
    return Shapes(300, seed=0) if train else Shapes(60, seed=1)


def model(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build a network that maps float32 [B, 1, 24, 24] to logits [B, 3, 24, 24]."""
    down = [nn.Conv2d(input_shape[0], 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU()]
    between = [nn.Conv2d(32, 32, 5, padding=2), nn.GroupNorm(4, 32), nn.ReLU(), nn.Conv2d(32, 32, 5, padding=2), nn.ReLU()]
    return nn.Sequential(*down, *between, nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, num_classes, 1))
