"""Bounds the norm of a contribution while its chunks arrive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from feddkd.aggregator.compared import ComparedElements
from feddkd.aggregator.lengths import compared_square_sum
from feddkd.tensors import Schema, Segment


@dataclass(frozen=True, slots=True)
class NormLimit:
    """The largest Euclidean norm of a contribution's trainable tensors: numbers beside them do not count.

    Attributes:
        largest: the norm.
        compared: the trainable tensors.
    """

    largest: float
    compared: ComparedElements

    @classmethod
    def of(cls, largest: float, schema: Schema) -> Self:
        return cls(largest, ComparedElements.of(schema))

    def square_sum(self, block: Segment, elements: Tensor) -> float:
        """Sum of the squares of those elements of a block that count."""
        return compared_square_sum(self.compared, block, elements)
