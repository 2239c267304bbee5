"""Computes the weighted mean in client order, so that its bits do not depend on the order of arrival."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from feddkd.aggregator.rule import Reduction, Rows
from feddkd.tensors import Segment

EXACT_INTEGERS = 2**53
"""Integers up to here are exact in float64."""


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
        if block.dtype == torch.int64:
            _reduce_int64(rows, out)
            return
        if len(self._total) < len(out):
            self._total, self._weighted = (torch.empty(len(out), dtype=torch.float64) for _ in range(2))
        total, weighted, weights = self._total[: len(out)].zero_(), self._weighted[: len(out)], 0.0
        for elements, weight in rows:
            # Two operations, not add_(alpha=...): a fused multiply-add in the vectorised part of a loop and none
            # in its tail would make the bits depend on where blocks begin.
            total.add_(weighted.copy_(elements).mul_(weight))
            weights += weight
        mean = total.div_(weights)
        if block.dtype == torch.bool:
            torch.ge(mean, 0.5, out=out)
        elif block.dtype.is_floating_point:
            out.copy_(mean)
        else:
            out.copy_(mean.round_())


def _reduce_int64(rows: Rows, out: Tensor) -> None:
    """Write the exact mean of 64-bit integers: float64 where it is exact, whole numbers of any size elsewhere."""
    kept = [(elements.clone(), weight) for elements, weight in rows]
    total, largest = torch.zeros(len(out), dtype=torch.float64), torch.zeros(len(out), dtype=torch.float64)
    weights = 0.0
    for elements, weight in kept:
        weighted = elements.to(torch.float64).mul_(weight)
        total.add_(weighted)
        largest.add_(weighted.abs_())
        weights += weight
    out.copy_(total.div_(weights).round_())
    inexact = (largest >= EXACT_INTEGERS).nonzero().flatten()
    if len(inexact):
        out[inexact] = torch.from_numpy(_whole_number_mean([(elements[inexact], weight) for elements, weight in kept]))


def _whole_number_mean(rows: list[tuple[Tensor, float]]) -> npt.NDArray[np.int64]:
    """The mean, rounded half to even, by Python's integers."""
    scale = math.lcm(*(Fraction(weight).denominator for _, weight in rows))
    weights = [int(Fraction(weight) * scale) for _, weight in rows]
    weighted = [elements.numpy().astype(object) * weight for (elements, _), weight in zip(rows, weights, strict=True)]
    total, divisor = np.sum(weighted, axis=0), sum(weights)
    floor, rest = total // divisor, total % divisor
    round_up = (2 * rest > divisor) | ((2 * rest == divisor) & (floor % 2 == 1))
    return np.asarray(floor + round_up, dtype=np.int64)
