"""Rotate blocks of a vector at random with two Walsh-Hadamard transforms, and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from feddkd.compression.draws import draw_signs, generator_of


def transform(columns: Tensor, spare: Tensor) -> tuple[Tensor, Tensor]:
    """Apply the Walsh-Hadamard transform to each column.

    Each of the log2(h) stages adds and subtracts rows, in an order that is fixed: the result has the
    same bits on every machine. Twice the transform is h times the identity.

    Args:
        columns: float32 [h, t], contiguous, h a power of two; it is overwritten.
        spare: like `columns`; its values do not matter.

    Returns:
        The transform, and the tensor that is now spare: the two arguments in some order.
    """
    height = len(columns)
    distance = 1
    while distance < height:
        shape = height // (2 * distance), 2, -1
        first, second = columns.view(shape).unbind(1)
        total, difference = spare.view(shape).unbind(1)
        torch.add(first, second, out=total)
        torch.sub(first, second, out=difference)
        columns, spare = spare, columns
        distance *= 2
    return columns, spare


@dataclass(frozen=True)
class Rotation:
    """Turns vectors of up to len(first) elements by H S2 H S1: S1 and S2 change signs, H is the transform.

    One transform would not be random enough: a vector with few elements that are not zero becomes one
    with few distinct magnitudes, whatever the signs.

    Attributes:
        first, second: +1 or -1, float32 [h]; a vector of fewer elements takes the first of them.
    """

    first: Tensor
    second: Tensor

    @classmethod
    def of(cls, seed: int, height: int, device: torch.device) -> Rotation:
        """Draw the signs from a seed on the CPU and move them to a device."""
        generator = generator_of(seed)
        return cls(draw_signs(height, generator).to(device), draw_signs(height, generator).to(device))

    def forward(self, blocks: Tensor) -> Tensor:
        """Rotate each row and multiply it by its length.

        Args:
            blocks: float32 [t, h], h a power of two; it is overwritten.

        Returns:
            float32 [h, t]: the rotated rows are columns, which the transform is fast for.
        """
        height = blocks.shape[1]
        columns = torch.empty_like(blocks).view(height, -1).copy_(blocks.mul_(self.first[:height]).t())
        columns, spare = transform(columns, blocks.view_as(columns))
        columns.mul_(self.second[:height, None])
        return transform(columns, spare)[0]

    def backward(self, columns: Tensor) -> Tensor:
        """Undo `forward`, but for the length: rotate back and multiply by the length once more.

        Args:
            columns: float32 [h, t]; it is overwritten.

        Returns:
            float32 [t, h], not contiguous.
        """
        height = len(columns)
        columns, spare = transform(columns, torch.empty_like(columns))
        columns.mul_(self.second[:height, None])
        columns, _ = transform(columns, spare)
        return columns.mul_(self.first[:height, None]).t()
