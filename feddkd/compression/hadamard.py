"""Rotate blocks of a vector at random with two Walsh-Hadamard transforms, and back."""

from __future__ import annotations

import threading
from collections import OrderedDict

import torch
from torch import Tensor

from feddkd.compression.draws import draw_signs, generator_of


class Transform:
    """Applies the Walsh-Hadamard transform to columns, again and again in the same memory.

    The views of all stages are made once, which at the size of a cache takes as long as the sums.

    Attributes:
        columns: float32 [h, t], what is transformed, h a power of two.
        spare: like `columns`, free to use between two transforms.
    """

    def __init__(self, height: int, count: int, device: torch.device) -> None:
        self.columns = torch.empty(height, count, device=device)
        self.spare = torch.empty_like(self.columns)
        self._stages = []
        source, target = self.columns, self.spare
        distance = 1
        while distance < height:
            shape = height // (2 * distance), 2, distance * count
            self._stages.append((*source.view(shape).unbind(1), *target.view(shape).unbind(1)))
            source, target = target, source
            distance *= 2

    def apply(self) -> None:
        """Transform `columns` in place; twice is h times the identity.

        Each of the log2(h) stages adds and subtracts rows, in an order that is fixed: the result
        has the same bits on every machine.
        """
        for first, second, total, difference in self._stages:
            torch.add(first, second, out=total)
            torch.sub(first, second, out=difference)
        if len(self._stages) % 2:
            self.columns.copy_(self.spare)


class _Memory(threading.local):
    """The transforms of one thread, kept from call to call: to make one takes longer than a small block's sums."""

    MOST = 8

    def __init__(self) -> None:
        self._transforms: OrderedDict[tuple[int, int, torch.device], Transform] = OrderedDict()

    def transform(self, height: int, count: int, device: torch.device) -> Transform:
        key = height, count, device
        found = self._transforms.pop(key, None) or Transform(height, count, device)
        self._transforms[key] = found
        if len(self._transforms) > self.MOST:
            self._transforms.popitem(last=False)
        return found


_memory = _Memory()


class Rotation:
    """Turns blocks by H S2 H S1: S1 and S2 change signs at random, H is the transform.

    One transform would not be random enough: a vector with few elements that are not zero becomes
    one with few distinct magnitudes, whatever the signs. Results lie in memory that the next call
    with blocks of the same shape uses again.

    Args:
        first, second: +1 or -1, float32 [h]; blocks of fewer elements take the first of them.
    """

    def __init__(self, first: Tensor, second: Tensor) -> None:
        self._first, self._second = first, second

    @classmethod
    def of(cls, seed: int, height: int, device: torch.device) -> Rotation:
        """Draw signs for blocks of up to `height` elements from a seed, for tensors on a device."""
        generator = generator_of(seed)
        return cls(draw_signs(height, generator).to(device), draw_signs(height, generator).to(device))

    def transform_of(self, height: int, count: int) -> Transform:
        """Return the memory where this thread rotates blocks of a shape."""
        return _memory.transform(height, count, self._first.device)

    def forward(self, blocks: Tensor, factors: Tensor) -> Transform:
        """Multiply each block by its factor and by its length, and rotate it.

        Args:
            blocks: float32 [t, h].
            factors: float32 [t].

        Returns:
            The rotated blocks are its columns, which is what the transform is fast for.
        """
        count, height = blocks.shape
        transform = self.transform_of(height, count)
        scaled = torch.mul(blocks, factors[:, None], out=transform.spare.view(count, height))
        transform.columns.copy_(scaled.mul_(self._first[:height]).t())
        transform.apply()
        transform.columns.mul_(self._second[:height, None])
        transform.apply()
        return transform

    def backward(self, transform: Transform) -> Tensor:
        """Undo `forward`, but for factors and length: rotate back and multiply by the length again.

        Args:
            transform: as `transform_of` returns it, its columns filled.

        Returns:
            float32 [t, h], not contiguous.
        """
        height = len(transform.columns)
        transform.apply()
        transform.columns.mul_(self._second[:height, None])
        transform.apply()
        return transform.columns.mul_(self._first[:height, None]).t()
