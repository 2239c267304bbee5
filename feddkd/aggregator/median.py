"""The coordinate-wise median.

Yin, Chen, Ramchandran, Bartlett: Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates.
ICML 2018, arXiv 1803.01498. As there, every client counts once: weights that clients claim do not matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from feddkd.aggregator.columns import SLICE_BYTES, slices
from feddkd.aggregator.compared import ComparedElements
from feddkd.aggregator.distances import ResultDistances
from feddkd.aggregator.lengths import allowances
from feddkd.aggregator.rule import Reduction, Rows, RuleContext
from feddkd.config.aggregation import RuleTable
from feddkd.registry import RULES
from feddkd.tensors import Segment


class MedianTable(RuleTable):
    """The median of every element, of all clients alike (arXiv 1803.01498)."""

    by_element: ClassVar[bool] = True
    name: Literal["median"] = "median"


@RULES.register("median")
@dataclass(frozen=True, slots=True)
class CoordinateMedian:
    """The median of each element; of an even number of clients, the mean of the two in the middle.

    Withstands fewer than half of the clients. Integers get the lower of the two in the middle, and a
    bool is true where at least half of the clients say so. One pass, which sorts the blocks of all
    clients in slices of at most `SLICE_BYTES`.
    """

    table: ClassVar[type[RuleTable]] = MedianTable
    keeps_previous: ClassVar[bool] = False
    compared: ComparedElements
    sizes: Mapping[str, float] = field(default_factory=dict)
    passes: int = 1

    @classmethod
    def of(cls, settings: MedianTable, context: RuleContext) -> CoordinateMedian:
        return cls(context.compared, context.sizes)

    def start(self, clients: Sequence[str]) -> Reduction:
        return _MedianReduction(self.compared, allowances(clients, self.sizes))


class _MedianReduction:
    def __init__(self, compared: ComparedElements, allowed: Sequence[float]) -> None:
        self._compared = compared
        self._distances = ResultDistances(allowed)

    def survey(self, block: Segment, rows: Rows) -> None:
        raise AssertionError("a median reads its contributions once")

    def reduce(self, block: Segment, rows: Rows, out: Tensor) -> None:
        for start, stop, counts in self._compared.parts(block):
            write_median(rows, start, stop, out, self._distances if counts else None)

    def repeats(self) -> bool:
        return False

    def ratios(self) -> Sequence[float]:
        return self._distances.ratios()


def write_median(
    rows: Rows, start: int, stop: int, out: Tensor, distances: ResultDistances | None = None, most_bytes: int = SLICE_BYTES
) -> None:
    """Write the median of the elements [start, stop) of all rows.

    Args:
        out: the whole block.
        distances: adds up the rows' distances from it.
        most_bytes: of one slice.
    """
    for first, last, matrix in slices(rows, start, stop, out.dtype, most_bytes):
        found = out[first:last]
        found.copy_(median_of(matrix))
        if distances is not None:
            distances.add(matrix, found)


def write_weighted_median(rows: Rows, start: int, stop: int, out: Tensor) -> None:
    """Write the median of the elements [start, stop) of all rows, by the weights of the rows.

    Args:
        out: the whole block.
    """
    weights = torch.tensor([weight for _, weight in rows], dtype=torch.float64)
    if not weights.any():
        weights.fill_(1.0)
    for first, last, matrix in slices(rows, start, stop, out.dtype):
        out[first:last].copy_(weighted_median_of(matrix, weights))


def weighted_median_of(matrix: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted median of each column of [clients, elements]; where it lies between two values, as `median_of`.

    Args:
        weights: float64 [clients].
    """
    if matrix.dtype == torch.bool:
        return 2 * (weights[:, None] * matrix).sum(0) >= weights.sum()
    ordered, order = matrix.sort(dim=0)
    below = weights[order].cumsum(0)
    half, most = below[-1] / 2, len(matrix) - 1
    lower = ordered.gather(0, (below < half).sum(0).clamp_(max=most)[None])[0]
    if not matrix.dtype.is_floating_point:
        return lower
    upper = ordered.gather(0, (below <= half).sum(0).clamp_(max=most)[None])[0]
    return lower.to(torch.float64).add_(upper).div_(2)


def median_of(matrix: Tensor) -> Tensor:
    """Return the median of each column of [clients, elements], in its dtype or in float64."""
    number = len(matrix)
    if matrix.dtype == torch.bool:
        return 2 * matrix.sum(0) >= number
    ordered = matrix.sort(dim=0).values
    lower, upper = ordered[(number - 1) // 2], ordered[number // 2]
    if number % 2 or not matrix.dtype.is_floating_point:
        return lower
    return lower.to(torch.float64).add_(upper).div_(2)
