"""The finished cells of one tier and data set, and the numbers that the page states of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from feddkd.bench.side_by_side import HEADER_TOLERANCE
from feddkd.errors import ConfigError
from feddkd.observability.budgets import Cost, Curve, Spread, cost_to_target, reading_within, spread
from niid_bench.cells import ALGORITHMS, PARTITIONS, Cell, Settings, configure
from niid_bench.grid import outdated_key

LONGER = "fedavg_long"
"""The row that spends FedDKD's bytes in more rounds: never compared at equal rounds."""

DKD = ("feddkd", "feddkd_pure", "feddkd_ntd")
CONTROL = "fedavg_sgd"

CostOf = Callable[[Curve], Sequence[Cost]]
"""A cumulative cost of a run, round by round: its rounds, bytes or gradient evaluations."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One finished cell.

    Attributes:
        line: of the results file, with all that is not in the curve.
    """

    cell: Cell
    curve: Curve
    line: dict[str, Any]
    outdated: str | None

    @property
    def command(self) -> str:
        """Runs the cell again."""
        return str(self.line["command"])

    @classmethod
    def of_line(cls, line: dict[str, Any]) -> Outcome:
        cell = Cell.of_line(line)
        curve = Curve(line["accuracy"], line["cumulative_wire_bytes"], line["gradient_evaluations"], line["seconds"])
        try:
            outdated = outdated_key(line, configure(cell, Settings()))
        except ConfigError as error:
            outdated = str(error)
        return cls(cell, curve, line, outdated)


class Outcomes:
    """The finished cells of one tier and data set, by algorithm and partition in the order of the files that name them."""

    def __init__(self, tier: str, data: str, lines: Iterable[dict[str, Any]], names: Iterable[str] = ALGORITHMS) -> None:
        """Take in the lines of a results file; those of other tiers, data sets and `names` are left out."""
        self.tier = tier
        self.data = data
        names = list(names)
        known = (line for line in lines if line["algorithm"] in names and line["partition"] in PARTITIONS)
        self.all = [Outcome.of_line(line) for line in known if (line["tier"], line["data"]) == (tier, data)]
        self.algorithms = [name for name in names if any(outcome.cell.algorithm == name for outcome in self.all)]
        self.partitions = [name for name in PARTITIONS if any(outcome.cell.partition == name for outcome in self.all)]

    def of(self, algorithm: str, partition: str) -> list[Outcome]:
        """Its seeds, in order."""
        own = [outcome for outcome in self.all if (outcome.cell.algorithm, outcome.cell.partition) == (algorithm, partition)]
        return sorted(own, key=lambda outcome: outcome.cell.seed)

    def spread(self, algorithm: str, partition: str, number: Callable[[Curve], Cost | None]) -> Spread | None:
        """Of a number over the seeds; None without seeds, or if a seed has no such number."""
        return spread(number(outcome.curve) for outcome in self.of(algorithm, partition))

    def final(self, algorithm: str, partition: str) -> Spread | None:
        return self.spread(algorithm, partition, lambda curve: curve.final_score)

    def best(self, algorithm: str, partition: str) -> Spread | None:
        return self.spread(algorithm, partition, lambda curve: curve.best_score)

    def budget(self, partition: str, cost: CostOf) -> float | None:
        """The least that a run of FedDKD spends; of its variants, the first that has run on the partition."""
        own = next((found for name in DKD if (found := self.of(name, partition))), [])
        totals = [cost(outcome.curve)[-1] for outcome in own]
        return min(totals) * (1 + HEADER_TOLERANCE) if totals else None

    def within_budget(self, algorithm: str, partition: str, cost: CostOf) -> Spread | None:
        """Accuracy at the last round within the budget."""
        budget = self.budget(partition, cost)
        return None if budget is None else self.spread(algorithm, partition, lambda curve: accuracy_within(curve, cost, budget))

    def share_spent(self, algorithm: str, partition: str, cost: CostOf) -> float | None:
        """How much of the budget its runs spend at most."""
        budget, own = self.budget(partition, cost), self.of(algorithm, partition)
        return None if budget is None or not own else min(1.0, max(cost(outcome.curve)[-1] for outcome in own) / budget)

    def to_target(self, algorithm: str, partition: str, target: float) -> tuple[int, Spread | None, Spread | None]:
        """How many seeds reach an accuracy; rounds and bytes until then if all do."""
        curves = [outcome.curve for outcome in self.of(algorithm, partition)]
        rounds = [cost_to_target(curve.scores, curve.rounds, target) for curve in curves]
        wire_bytes = [cost_to_target(curve.scores, curve.wire_bytes, target) for curve in curves]
        return sum(number is not None for number in rounds), spread(rounds), spread(wire_bytes)

    def others(self, partition: str) -> list[str]:
        """The baselines that have run on a partition: all but FedDKD, its control and the longer FedAvg."""
        own = (*DKD, CONTROL, LONGER)
        return [name for name in self.algorithms if name not in own and self.of(name, partition)]

    def best_other(self, partition: str) -> str | None:
        """The baseline with the highest mean final accuracy."""
        found = [(final.mean, name) for name in self.others(partition) if (final := self.final(name, partition))]
        return max(found)[1] if found else None


def accuracy_within(curve: Curve, cost: CostOf, budget: float) -> float | None:
    """Of the last round whose cumulative cost is within the budget."""
    reading = reading_within(curve.scores, cost(curve), budget)
    return reading.score if reading else None
