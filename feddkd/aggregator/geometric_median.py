"""The geometric median by the smoothed Weiszfeld algorithm: robust federated aggregation (RFA).

Pillutla, Kakade, Harchaoui: Robust Aggregation for Federated Learning. IEEE Transactions on Signal Processing
2022, arXiv 1912.13445. As there, a client counts by its examples; `aggregation.weight_cap` limits what it can claim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from pydantic import Field

from feddkd.aggregator.compared import ComparedElements
from feddkd.aggregator.distances import PairDistances
from feddkd.aggregator.joint import JointReduction
from feddkd.aggregator.lengths import allowances
from feddkd.aggregator.rule import Reduction, RuleContext
from feddkd.config.aggregation import RuleTable
from feddkd.registry import RULES

ITERATIONS = 1000
"""Most iterations; they cost nothing, because they only look at the distances of pairs."""

TOLERANCE = 1e-10
"""It has converged when no weight changes by more than this."""

FARTHEST = 1e6
"""A contribution that is further away by this factor than is usual gets no weight: float64 would not resolve the others."""


class GeometricMedianTable(RuleTable):
    """The point with the least sum of distances from all contributions, weighted by examples (arXiv 1912.13445)."""

    name: Literal["geometric_median"] = "geometric_median"
    smoothing: float = Field(
        1e-6,
        gt=0,
        le=1,
        description="nu of the paper in multiples of the median distance of two contributions: a distance below it counts as this one",
    )


@RULES.register("geometric_median")
@dataclass(frozen=True, slots=True)
class GeometricMedian:
    """argmin_z sum_k n_k ||x_k - z||: the weights b_k = n_k / max(nu, ||x_k - z||) are found by Weiszfeld's iterations.

    Withstands hostile clients of less than half of the weight. All iterates are weighted means of the
    contributions, so the distances of pairs say all about them: two passes, however many iterations,
    and n² / 2 differences for each element. Buffers, counters and numbers beside the model are reduced
    to their median by weight.
    """

    table: ClassVar[type[RuleTable]] = GeometricMedianTable
    keeps_previous: ClassVar[bool] = False
    smoothing: float
    compared: ComparedElements
    sizes: Mapping[str, float] = field(default_factory=dict)
    passes: int = 2

    @classmethod
    def of(cls, settings: GeometricMedianTable, context: RuleContext) -> GeometricMedian:
        return cls(settings.smoothing, context.compared, context.sizes)

    def start(self, clients: Sequence[str]) -> Reduction:
        return _WeiszfeldReduction(self, allowances(clients, self.sizes))


class _WeiszfeldReduction(JointReduction):
    is_weighted = True

    def __init__(self, rule: GeometricMedian, allowed: Sequence[float]) -> None:
        super().__init__(rule.compared, allowed)
        self._smoothing = rule.smoothing

    def weigh(self, between: PairDistances, claimed: Sequence[float]) -> Sequence[float]:
        # A client's median distance to all is one between honest clients, for more than half of the clients.
        own = between.squares.median(dim=1).values.sqrt()
        usual = float(own.median())
        alphas = torch.tensor(claimed, dtype=torch.float64)
        if usual > 0:
            alphas[own > FARTHEST * usual] = 0
        elif 2 * alphas[own == 0].sum() >= alphas.sum():
            # Those that agree are the median: a smoothing relative to the others would move it.
            alphas[own > 0] = 0
            return alphas.tolist()
        else:
            usual = float(own.max())
        weights = alphas = alphas / alphas.sum()
        for _ in range(ITERATIONS):
            distances = between.from_mean(weights).sqrt_()
            found = alphas / distances.clamp_(min=self._smoothing * usual)
            found = found / found.sum()
            change = float((found - weights).abs().max())
            weights = found
            if change < TOLERANCE:
                break
        listed: list[float] = weights.tolist()
        return listed
