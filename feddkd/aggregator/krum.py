"""Krum and multi-Krum: the contributions that are closest to their neighbours.

Blanchard, El Mhamdi, Guerraoui, Stainer: Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent.
NeurIPS 2017, arXiv 1703.02757. As there, every client counts once: weights that clients claim do not matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from feddkd.aggregator.compared import ComparedElements
from feddkd.aggregator.distances import PairDistances
from feddkd.aggregator.joint import JointReduction
from feddkd.aggregator.lengths import allowances
from feddkd.aggregator.rule import Reduction, RuleContext, RuleError
from feddkd.config.aggregation import RuleTable
from feddkd.config.table import CLIENTS_MAX
from feddkd.registry import RULES


class KrumTable(RuleTable):
    """The mean of the contributions that are closest to their neighbours (arXiv 1703.02757)."""

    name: Literal["krum"] = "krum"
    hostile: int = Field(1, ge=0, le=CLIENTS_MAX, description="f, the hostile clients that it withstands; it needs 2 f + 3 contributions")
    keep: int = Field(
        0,
        ge=0,
        le=CLIENTS_MAX,
        description="contributions whose mean is taken: 1 is Krum, more is multi-Krum. 0 for n - f - 2, of n contributions",
    )

    @property
    def fewest(self) -> int:
        return fewest(self.hostile, self.keep)


def fewest(hostile: int, keep: int) -> int:
    """Return how many contributions Krum needs."""
    return max(2 * hostile + 3, keep + hostile + 2)


@RULES.register("krum")
@dataclass(frozen=True, slots=True)
class Krum:
    """The mean of the m contributions with the lowest scores; the score is the sum of the squared distances to its n - f - 2 nearest.

    Of equal scores, that of the client that is first in client order is lower. Two passes, and n² / 2
    differences for each element. Buffers, counters and numbers beside the model are reduced to their median.
    """

    table: ClassVar[type[RuleTable]] = KrumTable
    keeps_previous: ClassVar[bool] = False
    hostile: int
    keep: int
    compared: ComparedElements
    sizes: Mapping[str, float] = field(default_factory=dict)
    passes: int = 2

    @classmethod
    def of(cls, settings: KrumTable, context: RuleContext) -> Krum:
        return cls(settings.hostile, settings.keep, context.compared, context.sizes)

    def start(self, clients: Sequence[str]) -> Reduction:
        return _KrumReduction(self, allowances(clients, self.sizes))


class _KrumReduction(JointReduction):
    def __init__(self, rule: Krum, allowed: Sequence[float]) -> None:
        super().__init__(rule.compared, allowed)
        self._rule = rule

    def weigh(self, between: PairDistances, claimed: Sequence[float]) -> Sequence[float]:
        number, hostile = len(between.squares), self._rule.hostile
        needed = fewest(hostile, self._rule.keep)
        if number < needed:
            raise RuleError(f"krum with hostile = {hostile} and keep = {self._rule.keep} needs {needed} contributions, {number} came")
        found = scores(between.squares, number - hostile - 2)
        keep = self._rule.keep or number - hostile - 2
        best = sorted(range(number), key=lambda client: found[client])[:keep]
        return [float(client in best) for client in range(number)]


def scores(squares: Tensor, neighbours: int) -> list[float]:
    """Add up, for each contribution, the smallest squared distances to so many others."""
    # The smallest of each row is its distance from itself.
    nearest = squares.sort(dim=1).values[:, 1 : neighbours + 1]
    found: list[float] = nearest.sum(1).tolist()
    return found
