"""Augment images at random: the strong augmentation of semi-supervised training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

COLOR_CHANNELS = 3


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by up to a tenth of its size, at least a pixel, along both axes.

    Zeros come in at the edges. Half of the images with three channels are flipped from left to
    right as well; those with other numbers of channels, like digits, are not.

    Args:
        images: floating-point [B, C, H, W]. Inputs of another form have no edges and are returned as they are.
        generator: on the CPU.
    """
    if images.dim() != 4:
        return images
    batch, channels, height, width = images.shape
    down, right = max(1, height // 10), max(1, width // 10)
    padded = F.pad(images, (right, right, down, down))
    rows = torch.randint(2 * down + 1, (batch, 1, 1, 1), generator=generator) + torch.arange(height)[:, None]
    columns = torch.randint(2 * right + 1, (batch, 1, 1, 1), generator=generator) + torch.arange(width)
    if channels == COLOR_CHANNELS:
        flipped = torch.rand(batch, 1, 1, 1, generator=generator) < 0.5
        columns = torch.where(flipped, columns.flip(3), columns)
    each, channel = torch.arange(batch)[:, None, None, None], torch.arange(channels)[:, None, None]
    return padded[tuple(index.to(images.device) for index in (each, channel, rows, columns))]
