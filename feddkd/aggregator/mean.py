"""The default rule: the weighted mean, with the contributions of clients that stand out brought to the usual length.

Clipping to the median norm follows Sun, Kairouz, Suresh, McMahan: Can You Really Backdoor Federated Learning?
2019, arXiv 1911.07963. Which contributions it is applied to is our own: honest ones keep their bits, because
nothing is clipped that honest clients were seen to send (docs/how-to/robust.md has the measurements).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from feddkd.aggregator.counted import Counted, square_sum
from feddkd.aggregator.history import FEWEST, History
from feddkd.aggregator.rows import Cut, Wanted
from feddkd.aggregator.rule import Reduction, Rows, Setting
from feddkd.aggregator.weighted_mean import MeanSum, write_exact_mean
from feddkd.config.aggregation import RuleTable
from feddkd.registry import RULES
from feddkd.tensors import Segment


class MeanTable(RuleTable):
    """The mean, weighted by examples; contributions of outliers are scaled to the median length."""

    is_mean: ClassVar[bool] = True
    name: Literal["mean"] = "mean"
    longest: float = Field(
        32.0,
        ge=0,
        description="a single contribution that is longer than the median one by this factor is scaled to the median length, "
        "as are all those of an outlier (`outlier_ratio`). 0 for no such limit",
    )


@RULES.register("mean")
@dataclass(frozen=True, slots=True)
class GuardedMean:
    """sum_k f_k n_k x_k / sum_k n_k, with f_k = 1 unless a client stands out: then f_k = median length / ||x_k||.

    A contribution's length is the norm of its trainable tensors. Where a client has more examples than
    the median client, its contribution may be longer by the same factor. Buffers, counters and numbers
    beside the model are those of the clients that do not stand out.

    Lengths are found while blocks are added up. Only if one is too long, the blocks are read again.

    Attributes:
        longest: ratio of a single contribution to the median.
        setting: of the exchange.
    """

    table: ClassVar[type[RuleTable]] = MeanTable
    keeps_previous: ClassVar[bool] = False
    longest: float
    outlier_ratio: float
    counted: Counted
    history: History = field(default_factory=History)
    sizes: Mapping[str, float] = field(default_factory=dict)
    passes: int = 1

    @classmethod
    def of(cls, settings: MeanTable, setting: Setting) -> GuardedMean:
        return cls(settings.longest, setting.outlier_ratio, setting.counted, setting.history, setting.sizes)

    def start(self, clients: Sequence[str]) -> Reduction:
        return _GuardedReduction(self, clients)

    def stands_out(self, client: str, ratio: float) -> bool:
        """Tell whether a client's contribution is to be scaled."""
        is_single = 0 < self.longest < ratio
        return is_single or 0 < self.outlier_ratio < self.history.usual(client, ratio)


class _GuardedReduction:
    """Adds blocks up, and the squares of their elements."""

    def __init__(self, rule: GuardedMean, clients: Sequence[str]) -> None:
        self._rule = rule
        self._clients = clients
        self._squares = [0.0] * len(clients)
        self._factors: list[float] | None = None
        self._ratios: list[float] = []
        self._sum = MeanSum()

    def survey(self, block: Segment, rows: Rows) -> None:
        raise AssertionError("a mean reads its contributions once")

    def reduce(self, block: Segment, rows: Rows, out: Tensor) -> None:
        if not block.dtype.is_floating_point:
            write_exact_mean(block, self._without_outliers(rows), out)
        elif self._factors is None:
            self._reduce_first(block, rows, out)
        else:
            self._reduce_again(block, rows, out)

    def _reduce_first(self, block: Segment, rows: Rows, out: Tensor) -> None:
        parts = [part for part in self._rule.counted.parts(block) if part.counts]

        def look(number: int, elements: Tensor) -> None:
            self._squares[number] += math.fsum(square_sum(elements[start:stop]) for start, stop, _ in parts)

        self._sum.write(rows, out, look=look if parts else None)

    def _reduce_again(self, block: Segment, rows: Rows, out: Tensor) -> None:
        for start, stop, counts in self._rule.counted.parts(block):
            if counts:
                self._sum.write(Cut(rows, start, stop), out[start:stop], self._factors)
            else:
                self._sum.write(Cut(self._without_outliers(rows), start, stop), out[start:stop])

    def _without_outliers(self, rows: Rows) -> Rows:
        return rows if self._factors is None else Wanted(rows, [factor == 1 for factor in self._factors])

    def repeats(self) -> bool:
        if self._factors is not None:
            return False
        lengths = [math.sqrt(square) for square in self._squares]
        allowed = _over_median([self._rule.sizes.get(client, 1.0) for client in self._clients])
        self._ratios = [ratio / max(1.0, more) for ratio, more in zip(_over_median(lengths), allowed, strict=True)]
        factors = [
            1 / ratio if self._rule.stands_out(client, ratio) else 1.0 for client, ratio in zip(self._clients, self._ratios, strict=True)
        ]
        if all(factor == 1 for factor in factors):
            return False
        self._factors = factors
        return True

    def ratios(self) -> Sequence[float]:
        return self._ratios


def _over_median(found: Sequence[float]) -> list[float]:
    """Divide numbers by the median of those that are not 0; all 1 if these are too few."""
    positive = [number for number in found if number > 0]
    if len(positive) < FEWEST:
        return [1.0] * len(found)
    median = statistics.median(positive)
    return [number / median for number in found]
