"""Bounds the norm of a contribution while its chunks arrive."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from feddkd.tensors import Schema, Segment


@dataclass(frozen=True, slots=True)
class NormLimit:
    """The largest Euclidean norm of a contribution's trainable tensors: numbers beside them do not count.

    Attributes:
        largest: the norm.
        ranges: where trainable floating-point tensors lie, [start, stop) in bytes, in order.
    """

    largest: float
    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, largest: float, schema: Schema) -> Self:
        ranges: list[tuple[int, int]] = []
        for spec, start in zip(schema.specs, schema.offsets, strict=False):
            if spec.extra or not spec.lossy or not spec.size_bytes:
                continue
            begins = ranges.pop()[0] if ranges and ranges[-1][1] == start else start
            ranges.append((begins, start + spec.size_bytes))
        return cls(largest, tuple(ranges))

    def square_sum(self, block: Segment, elements: Tensor) -> float:
        """Sum of the squares of those elements of a block that count."""
        total = 0.0
        for start, stop in self.ranges[bisect.bisect_right(self.ranges, block.start, key=lambda found: found[1]) :]:
            if start >= block.stop:
                break
            first, last = max(start, block.start) - block.start, min(stop, block.stop) - block.start
            counted = elements[first // block.dtype.itemsize : last // block.dtype.itemsize]
            total += float(torch.linalg.vector_norm(counted, dtype=torch.float64)) ** 2
        return total
