"""Computes the weighted mean in client order, so that its bits do not depend on the order of arrival."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from feddkd.aggregator.integer_sum import IntegerSum
from feddkd.aggregator.rule import Reduction, Rows
from feddkd.tensors import Segment


@dataclass(frozen=True, slots=True)
class WeightedMean:
    """sum_k n_k x_k / sum_k n_k over the clients that replied.

    Accumulates in float64, so that rounding does not grow with the number of clients. Integers are
    rounded half to even and stay integers, exactly; a bool is true where clients of half the weight say so.
    """

    passes: int = 1

    def start(self, clients: Sequence[str] = ()) -> Reduction:
        return _MeanReduction()


class MeanSum:
    """Computes means of floating-point rows; keeps only the memory for one of them."""

    def __init__(self) -> None:
        self._total = torch.empty(0, dtype=torch.float64)
        self._weighted = torch.empty(0, dtype=torch.float64)

    def write(
        self,
        rows: Rows,
        out: Tensor,
        factors: Sequence[float] | None = None,
        look: Callable[[int, Tensor], None] | None = None,
    ) -> None:
        """Write sum_k f_k n_k x_k / sum_k n_k.

        Args:
            rows: floating-point elements and weights.
            factors: f_k; 1 by default, which leaves no trace in the bits.
            look: called with the number of each row and its elements in float64, before they are multiplied.
        """
        if len(self._total) < len(out):
            self._total, self._weighted = (torch.empty(len(out), dtype=torch.float64) for _ in range(2))
        total, weighted, weights = self._total[: len(out)].zero_(), self._weighted[: len(out)], 0.0
        for number, (elements, weight) in enumerate(rows):
            weighted.copy_(elements)
            if look is not None:
                look(number, weighted)
            # Two operations, not add_(alpha=...): a fused multiply-add in the vectorised part of a loop and none
            # in its tail would make the bits depend on where blocks begin.
            total.add_(weighted.mul_(weight if factors is None else weight * factors[number]))
            weights += weight
        out.copy_(total.div_(weights))


class _MeanReduction:
    """Reduces every block by itself."""

    def __init__(self) -> None:
        self._sum = MeanSum()

    def survey(self, block: Segment, rows: Rows) -> None:
        raise AssertionError("a mean reads its contributions once")

    def reduce(self, block: Segment, rows: Rows, out: Tensor) -> None:
        if block.dtype.is_floating_point:
            self._sum.write(rows, out)
        else:
            write_exact_mean(block, rows, out)

    def repeats(self) -> bool:
        return False

    def ratios(self) -> Sequence[float]:
        return ()


def write_exact_mean(block: Segment, rows: Rows, out: Tensor) -> None:
    """Write the weighted mean of integers, or the weighted majority of bools; rows without weight are left out."""
    total = IntegerSum(block.dtype, len(out))
    for elements, weight in rows:
        if weight:
            total.add(elements, weight)
    if block.dtype == torch.bool:
        total.write_majority(out)
    else:
        total.write_mean(out)
