"""Computes the weighted mean in client order, so that its bits do not depend on the order of arrival."""

from __future__ import annotations

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

    def start(self) -> Reduction:
        return _MeanReduction()


class _MeanReduction:
    """Reduces every block by itself; keeps only the memory for it."""

    def __init__(self) -> None:
        self._total = torch.empty(0, dtype=torch.float64)
        self._weighted = torch.empty(0, dtype=torch.float64)

    def survey(self, block: Segment, rows: Rows) -> None:
        raise AssertionError("a mean reads its contributions once")

    def reduce(self, block: Segment, rows: Rows, out: Tensor) -> None:
        if block.dtype.is_floating_point:
            self._reduce_floats(rows, out)
            return
        total = IntegerSum(block.dtype, len(out))
        for elements, weight in rows:
            total.add(elements, weight)
        if block.dtype == torch.bool:
            total.write_majority(out)
        else:
            total.write_mean(out)

    def _reduce_floats(self, rows: Rows, out: Tensor) -> None:
        if len(self._total) < len(out):
            self._total, self._weighted = (torch.empty(len(out), dtype=torch.float64) for _ in range(2))
        total, weighted, weights = self._total[: len(out)].zero_(), self._weighted[: len(out)], 0.0
        for elements, weight in rows:
            # Two operations, not add_(alpha=...): a fused multiply-add in the vectorised part of a loop and none
            # in its tail would make the bits depend on where blocks begin.
            total.add_(weighted.copy_(elements).mul_(weight))
            weights += weight
        out.copy_(total.div_(weights))
