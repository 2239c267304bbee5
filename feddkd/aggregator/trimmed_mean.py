"""The coordinate-wise trimmed mean.

Yin, Chen, Ramchandran, Bartlett: Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates.
ICML 2018, arXiv 1803.01498. As there, every client counts once: weights that clients claim do not matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from feddkd.aggregator.columns import slices
from feddkd.aggregator.compared import ComparedElements
from feddkd.aggregator.distances import ResultDistances
from feddkd.aggregator.integer_sum import IntegerSum
from feddkd.aggregator.lengths import allowances
from feddkd.aggregator.rule import Reduction, Rows, RuleContext
from feddkd.config.aggregation import RuleTable
from feddkd.registry import RULES
from feddkd.tensors import Segment


class TrimmedMeanTable(RuleTable):
    """The mean of each element without its largest and smallest values, of all clients alike (arXiv 1803.01498)."""

    by_element: ClassVar[bool] = True
    name: Literal["trimmed_mean"] = "trimmed_mean"
    trim: float = Field(
        0.2,
        ge=0,
        lt=0.5,
        description="share of the clients whose values are left out at each end, rounded up: at least the share of hostile clients",
    )


@RULES.register("trimmed_mean")
@dataclass(frozen=True, slots=True)
class TrimmedMean:
    """The mean of each element without the b largest and the b smallest values, b = trim x clients, rounded up.

    At least one value is left. Integers are rounded half to even; a bool is true where at least half of
    the values that are left say so. One pass, which sorts the blocks of all clients in slices.
    """

    table: ClassVar[type[RuleTable]] = TrimmedMeanTable
    keeps_previous: ClassVar[bool] = False
    trim: float
    compared: ComparedElements
    sizes: Mapping[str, float] = field(default_factory=dict)
    passes: int = 1

    @classmethod
    def of(cls, settings: TrimmedMeanTable, context: RuleContext) -> TrimmedMean:
        return cls(settings.trim, context.compared, context.sizes)

    def start(self, clients: Sequence[str]) -> Reduction:
        return _TrimmedReduction(self, allowances(clients, self.sizes))


class _TrimmedReduction:
    def __init__(self, rule: TrimmedMean, allowed: Sequence[float]) -> None:
        self._compared = rule.compared
        self._trimmed = trimmed(rule.trim, len(allowed))
        self._distances = ResultDistances(allowed)

    def survey(self, block: Segment, rows: Rows) -> None:
        raise AssertionError("a trimmed mean reads its contributions once")

    def reduce(self, block: Segment, rows: Rows, out: Tensor) -> None:
        for start, stop, counts in self._compared.parts(block):
            for first, last, matrix in slices(rows, start, stop, out.dtype):
                found = out[first:last]
                write_trimmed_mean(matrix, self._trimmed, found)
                if counts:
                    self._distances.add(matrix, found)

    def repeats(self) -> bool:
        return False

    def ratios(self) -> Sequence[float]:
        return self._distances.ratios()


def trimmed(share: float, clients: int) -> int:
    """Return how many values are left out at each end: the share of the clients, rounded up, but never all."""
    # A product such as 0.1 * 30 is a little more than 3, and must not become 4.
    return min(math.ceil(round(share * clients, 9)), (clients - 1) // 2)


def write_trimmed_mean(matrix: Tensor, number: int, out: Tensor) -> None:
    """Write the mean of each column of [clients, elements] without its `number` largest and smallest elements."""
    values = matrix.to(torch.uint8) if matrix.dtype == torch.bool else matrix
    kept = values.sort(dim=0).values[number : len(matrix) - number]
    if matrix.dtype.is_floating_point:
        total = torch.zeros(len(out), dtype=torch.float64)
        for row in kept:
            total.add_(row)
        out.copy_(total.div_(len(kept)))
    elif matrix.dtype == torch.bool:
        torch.ge(2 * kept.sum(0), len(kept), out=out)
    else:
        total_of_integers = IntegerSum(matrix.dtype, len(out))
        for row in kept:
            total_of_integers.add(row, 1.0)
        total_of_integers.write_mean(out)
