"""What the rules have in common that weigh whole contributions: one weight for all trainable elements of a client."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from feddkd.aggregator.compared import ComparedElements
from feddkd.aggregator.distances import PairDistances, roots
from feddkd.aggregator.lengths import allowed_ratios
from feddkd.aggregator.median import write_median, write_weighted_median
from feddkd.aggregator.rule import Rows
from feddkd.tensors import Segment


class JointReduction(ABC):
    """Finds the distances of all pairs in a first pass, and a weighted mean in the second.

    Buffers, counters and numbers beside the model, which the distances say nothing about, are reduced
    to their median, by weight where the mean is: a loss has to be one of the model that it is compared for.

    Attributes:
        is_weighted: weights that come with the contributions matter.
    """

    is_weighted: ClassVar[bool] = False

    def __init__(self, compared: ComparedElements, allowed: Sequence[float]) -> None:
        self._compared = compared
        self._between = PairDistances(compared, len(allowed))
        self._allowed = allowed
        self._weights: list[float] | None = None

    @abstractmethod
    def weigh(self, between: PairDistances, claimed: Sequence[float]) -> Sequence[float]:
        """Weigh the contributions; what weights are divided by their sum. Raises RuleError.

        Args:
            between: the squared distances of the contributions.
            claimed: the weights that come with them.
        """

    def survey(self, block: Segment, rows: Rows) -> None:
        self._between.survey(block, rows)

    def reduce(self, block: Segment, rows: Rows, out: Tensor) -> None:
        for start, stop, counts in self._compared.parts(block):
            if counts:
                if self._weights is None:
                    self._weights = list(self.weigh(self._between, [weight for _, weight in rows]))
                write_mean(rows, self._weights, start, stop, out)
            elif self.is_weighted:
                write_weighted_median(rows, start, stop, out)
            else:
                write_median(rows, start, stop, out)

    def repeats(self) -> bool:
        return False

    def ratios(self) -> Sequence[float]:
        if self._weights is None:
            return ()
        weights = torch.tensor(self._weights, dtype=torch.float64)
        return allowed_ratios(roots(self._between.from_mean(weights / weights.sum())), self._allowed)


def write_mean(rows: Rows, weights: Sequence[float], start: int, stop: int, out: Tensor) -> None:
    """Write sum_k a_k x_k / sum_k a_k of the elements [start, stop) of rows of floating-point numbers, added up in float64."""
    total = torch.zeros(stop - start, dtype=torch.float64)
    for (elements, _), weight in zip(rows, weights, strict=True):
        if weight:
            total.add_(elements[start:stop].to(torch.float64, copy=True).mul_(weight))
    out[start:stop].copy_(total.div_(sum(weights)))
