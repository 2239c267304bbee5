"""Norm bounding: no contribution may be longer than a multiple of the median one.

Sun, Kairouz, Suresh, McMahan: Can You Really Backdoor Federated Learning? 2019, arXiv 1911.07963. The bound there is
a number that has to be known; here it is relative to the median length, so that it fits every model and exchange.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from feddkd.aggregator.compared import ComparedElements
from feddkd.aggregator.lengths import allowances, allowed_ratios, compared_square_sum
from feddkd.aggregator.median import write_weighted_median
from feddkd.aggregator.rows import RowRange
from feddkd.aggregator.rule import Reduction, Rows, RuleContext
from feddkd.aggregator.weighted_mean import MeanSum
from feddkd.config.aggregation import RuleTable
from feddkd.registry import RULES
from feddkd.tensors import Segment


class NormBoundingTable(RuleTable):
    """The mean, weighted by examples, of contributions that are clipped to a multiple of the median length (arXiv 1911.07963)."""

    name: Literal["norm_bounding"] = "norm_bounding"
    multiple: float = Field(1.0, gt=0, description="the bound, in multiples of the median length")


@RULES.register("norm_bounding")
@dataclass(frozen=True, slots=True)
class NormBounding:
    """sum_k f_k n_k x_k / sum_k n_k, f_k = min(1, multiple x median length / ||x_k||).

    Buffers, counters and numbers beside the model are reduced to their median by weight. Two passes; memory is flat
    but for slices of what is not trainable.
    """

    table: ClassVar[type[RuleTable]] = NormBoundingTable
    keeps_previous: ClassVar[bool] = False
    multiple: float
    compared: ComparedElements
    sizes: Mapping[str, float] = field(default_factory=dict)
    passes: int = 2

    @classmethod
    def of(cls, settings: NormBoundingTable, context: RuleContext) -> NormBounding:
        return cls(settings.multiple, context.compared, context.sizes)

    def start(self, clients: Sequence[str]) -> Reduction:
        return _BoundedReduction(self, allowances(clients, self.sizes))


class _BoundedReduction:
    def __init__(self, rule: NormBounding, allowed: Sequence[float]) -> None:
        self._rule = rule
        self._allowed = allowed
        self._squares = [0.0] * len(allowed)
        self._factors: list[float] = []
        self._sum = MeanSum()

    def survey(self, block: Segment, rows: Rows) -> None:
        if any(part.counts for part in self._rule.compared.parts(block)):
            for number, (elements, _) in enumerate(rows):
                self._squares[number] += compared_square_sum(self._rule.compared, block, elements)

    def reduce(self, block: Segment, rows: Rows, out: Tensor) -> None:
        self._factors = self._factors or self._bounded()
        for start, stop, counts in self._rule.compared.parts(block):
            if counts:
                self._sum.write(RowRange(rows, start, stop), out[start:stop], self._factors)
            else:
                write_weighted_median(rows, start, stop, out)

    def _bounded(self) -> list[float]:
        lengths = [math.sqrt(square) for square in self._squares]
        largest = self._rule.multiple * statistics.median(lengths)
        return [largest / length if length > largest else 1.0 for length in lengths]

    def repeats(self) -> bool:
        return False

    def ratios(self) -> Sequence[float]:
        return allowed_ratios([math.sqrt(square) for square in self._squares], self._allowed)
