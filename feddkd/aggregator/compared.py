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


class Companion(NamedTuple):
    """A tensor that travels beside the trainable ones, at [start, stop) in bytes.

    Attributes:
        vector: the vector beside the model that it is a trainable tensor of, such as a control variate; "" for a
            buffer, a counter or a number.
        name: of the tensor.
    """

    start: int
    stop: int
    vector: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class ComparedElements:
    """The trainable floating-point tensors of a contribution: buffers, and what travels beside a model, do not count.

    Attributes:
        ranges: where they lie, [start, stop) in bytes, in order.
        companions: the other tensors, in order.
    """

    ranges: tuple[tuple[int, int], ...]
    companions: tuple[Companion, ...] = ()

    @classmethod
    def of(cls, schema: Schema) -> Self:
        ranges: list[tuple[int, int]] = []
        companions: list[Companion] = []
        for spec, start in zip(schema.specs, schema.offsets, strict=False):
            if not spec.size_bytes:
                continue
            if spec.extra or not spec.lossy:
                vector = spec.name.split("/", 1)[0] if spec.extra and spec.lossy else ""
                companions.append(Companion(start, start + spec.size_bytes, vector, spec.name))
                continue
            begins = ranges.pop()[0] if ranges and ranges[-1][1] == start else start
            ranges.append((begins, start + spec.size_bytes))
        return cls(tuple(ranges), tuple(companions))

    def parts(self, block: Segment) -> Iterator[Part]:
        """RowRange a block into parts that count and parts that do not, in order."""
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
    rest = float(torch.linalg.vector_norm(wide[whole:]))
    total = rest * rest  # infinite where it overflows: a power would raise
    if whole:
        norms = torch.linalg.vector_norm(wide[:whole].view(-1, _SERIAL_ELEMENTS), dim=1)
        total += float(norms.square_().sum())
    return total
