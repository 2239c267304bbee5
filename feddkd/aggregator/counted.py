"""Says which elements of a contribution rules compare: its trainable tensors, as one vector."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from feddkd.tensors import Schema, Segment

_SERIAL_ELEMENTS = 1 << 14
"""Torch sums up so many elements in one thread, so always in the same order."""


class Part(NamedTuple):
    """The elements [start, stop) of a block: all of them count, or none."""

    start: int
    stop: int
    counts: bool


@dataclass(frozen=True, slots=True)
class Counted:
    """The trainable floating-point tensors of a contribution: buffers, and what travels beside a model, do not count.

    Attributes:
        ranges: where they lie, [start, stop) in bytes, in order.
    """

    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, schema: Schema) -> Self:
        ranges: list[tuple[int, int]] = []
        for spec, start in zip(schema.specs, schema.offsets, strict=False):
            if spec.extra or not spec.lossy or not spec.size_bytes:
                continue
            begins = ranges.pop()[0] if ranges and ranges[-1][1] == start else start
            ranges.append((begins, start + spec.size_bytes))
        return cls(tuple(ranges))

    def parts(self, block: Segment) -> Iterator[Part]:
        """Cut a block into parts that count and parts that do not, in order."""
        done, size = block.start, block.dtype.itemsize
        for start, stop in self.ranges[bisect.bisect_right(self.ranges, block.start, key=lambda found: found[1]) :]:
            if start >= block.stop:
                break
            first, last = max(start, block.start), min(stop, block.stop)
            if first > done:
                yield Part((done - block.start) // size, (first - block.start) // size, counts=False)
            yield Part((first - block.start) // size, (last - block.start) // size, counts=True)
            done = last
        if done < block.stop:
            yield Part((done - block.start) // size, block.numel, counts=False)


def square_sum(elements: Tensor) -> float:
    """Sum the squares of a vector in float64, in an order that does not depend on the number of threads."""
    whole = len(elements) // _SERIAL_ELEMENTS * _SERIAL_ELEMENTS
    wide = elements.to(torch.float64)
    total = float(torch.linalg.vector_norm(wide[whole:])) ** 2
    if whole:
        norms = torch.linalg.vector_norm(wide[:whole].view(-1, _SERIAL_ELEMENTS), dim=1)
        total += float(norms.square_().sum())
    return total
