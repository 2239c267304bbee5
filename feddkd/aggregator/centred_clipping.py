"""Centred clipping: contributions are clipped around what the exchange before came to.

Karimireddy, He, Jaggi: Learning from History for Byzantine Robust Optimization. ICML 2021, arXiv 2012.10333. As there,
every client counts once, and one iteration is taken. The paper's clients send their momentum; here they send what they
send anyway, and the centre is the result of the last exchange of the same name, across rounds and restarts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from feddkd.aggregator.compared import ComparedElements, square_sum
from feddkd.aggregator.lengths import allowances, allowed_ratios
from feddkd.aggregator.median import write_median
from feddkd.aggregator.rule import Reduction, Rows, RuleContext
from feddkd.config.aggregation import RuleTable
from feddkd.registry import RULES
from feddkd.tensors import Segment, Tensors


class CentredClippingTable(RuleTable):
    """The mean of contributions that are clipped around the last result (arXiv 2012.10333)."""

    name: Literal["centred_clipping"] = "centred_clipping"
    radius: float = Field(0.0, ge=0, description="tau of the paper: the largest distance from the last result. 0 for the median distance")


@RULES.register("centred_clipping")
@dataclass(frozen=True, slots=True, eq=False)
class CentredClipping:
    """v + 1/n sum_k (x_k - v) min(1, radius / ||x_k - v||), v the result of the exchange before, at first 0.

    Buffers, counters and numbers beside the model are reduced to their median. Two passes; it keeps one
    more contribution in memory and in the state of the run.
    """

    table: ClassVar[type[RuleTable]] = CentredClippingTable
    keeps_previous: ClassVar[bool] = True
    radius: float
    compared: ComparedElements
    sizes: Mapping[str, float] = field(default_factory=dict)
    previous: Tensors | None = None
    passes: int = 2

    @classmethod
    def of(cls, settings: CentredClippingTable, context: RuleContext) -> CentredClipping:
        return cls(settings.radius, context.compared, context.sizes, context.previous)

    def start(self, clients: Sequence[str]) -> Reduction:
        return _CentredReduction(self, allowances(clients, self.sizes))


class _CentredReduction:
    def __init__(self, rule: CentredClipping, allowed: Sequence[float]) -> None:
        self._rule = rule
        self._allowed = allowed
        self._squares = [0.0] * len(allowed)
        self._factors: list[float] = []

    def survey(self, block: Segment, rows: Rows) -> None:
        for start, stop, counts in self._rule.compared.parts(block):
            if counts:
                centre = self._centre(block, start, stop)
                for number, (elements, _) in enumerate(rows):
                    self._squares[number] += square_sum(elements[start:stop].to(torch.float64) - centre)

    def reduce(self, block: Segment, rows: Rows, out: Tensor) -> None:
        self._factors = self._factors or self._clipped()
        for start, stop, counts in self._rule.compared.parts(block):
            if counts:
                self._write(rows, self._centre(block, start, stop), start, out[start:stop])
            else:
                write_median(rows, start, stop, out)

    def _write(self, rows: Rows, centre: Tensor, start: int, out: Tensor) -> None:
        total = torch.zeros(len(out), dtype=torch.float64)
        for (elements, _), factor in zip(rows, self._factors, strict=True):
            total.add_((elements[start : start + len(out)].to(torch.float64) - centre).mul_(factor))
        out.copy_(total.div_(len(rows)).add_(centre))

    def _centre(self, block: Segment, start: int, stop: int) -> Tensor:
        """The last result's elements, float64."""
        if self._rule.previous is None:
            return torch.zeros(stop - start, dtype=torch.float64)
        return self._rule.previous.elements(block)[start:stop].to(torch.float64)

    def _clipped(self) -> list[float]:
        distances = [math.sqrt(square) for square in self._squares]
        radius = self._rule.radius or statistics.median(distances)
        return [radius / distance if distance > radius else 1.0 for distance in distances]

    def repeats(self) -> bool:
        return False

    def ratios(self) -> Sequence[float]:
        return allowed_ratios([math.sqrt(square) for square in self._squares], self._allowed)
