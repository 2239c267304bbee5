"""The finished cells of one tier and data set, and the numbers that the page states of them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from feddkd.bench.budgets import Cost, Curve, Spread, cost_to_target, reading_within, spread
from feddkd.bench.side_by_side import HEADER_TOLERANCE
from feddkd.errors import ConfigError
from niid_bench.cells import ALGORITHMS, PARTITIONS, Cell, Settings, configure
from niid_bench.grid import outdated_key

LONGER = "fedavg_long"
"""The row that spends FedDKD's bytes in more rounds: never compared at equal rounds."""

DKD = ("feddkd", "feddkd_pure", "feddkd_ntd")
CONTROL = "fedavg_sgd"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One finished cell."""

    cell: Cell
    curve: Curve
    command: str
    outdated: str | None

    @classmethod
    def of_line(cls, line: dict[str, Any]) -> Outcome:
        cell = Cell.of_line(line)
        curve = Curve(line["accuracy"], line["cumulative_wire_bytes"], line["gradient_evaluations"], line["seconds"])
        try:
            outdated = outdated_key(line, configure(cell, Settings()))
        except ConfigError as error:
            outdated = str(error)
        return cls(cell, curve, line["command"], outdated)


class Outcomes:
    """The finished cells of one tier and data set, by algorithm and partition in the order of the files that name them."""

    def __init__(self, tier: str, data: str, lines: Iterable[dict[str, Any]]) -> None:
        self.tier = tier
        self.data = data
        known = (line for line in lines if line["algorithm"] in ALGORITHMS and line["partition"] in PARTITIONS)
        self.all = [Outcome.of_line(line) for line in known if (line["tier"], line["data"]) == (tier, data)]
        self.algorithms = [name for name in ALGORITHMS if any(outcome.cell.algorithm == name for outcome in self.all)]
        self.partitions = [name for name in PARTITIONS if any(outcome.cell.partition == name for outcome in self.all)]

    def of(self, algorithm: str, partition: str) -> list[Outcome]:
        """Its seeds, in order."""
        own = [outcome for outcome in self.all if (outcome.cell.algorithm, outcome.cell.partition) == (algorithm, partition)]
        return sorted(own, key=lambda outcome: outcome.cell.seed)

    def spread(self, algorithm: str, partition: str, number: Callable[[Curve], Cost | None]) -> Spread | None:
        """Of a number over the seeds; None without seeds, or if a seed has no such number."""
        return spread(number(outcome.curve) for outcome in self.of(algorithm, partition))

    def final(self, algorithm: str, partition: str) -> Spread | None:
        return self.spread(algorithm, partition, lambda curve: curve.final_accuracy)

    def rounds(self, algorithm: str, partition: str) -> int | None:
        """The fewest rounds of its runs."""
        return min((len(outcome.curve.rounds) for outcome in self.of(algorithm, partition)), default=None)

    def at_round(self, algorithm: str, partition: str, rounds: int) -> Spread | None:
        """Accuracy after so many rounds."""
        return self.spread(algorithm, partition, lambda curve: curve.accuracy[rounds - 1] if rounds <= len(curve.accuracy) else None)

    def best(self, algorithm: str, partition: str) -> Spread | None:
        return self.spread(algorithm, partition, lambda curve: curve.best_accuracy)

    def byte_budget(self, partition: str) -> float | None:
        """What FedDKD's runs move, and a thousandth more, for headers differ by some bytes."""
        totals = [outcome.curve.wire_bytes[-1] for outcome in self.of("feddkd", partition)]
        return min(totals) * (1 + HEADER_TOLERANCE) if totals else None

    def gradient_budget(self, partition: str) -> float | None:
        """The most gradient evaluations that every algorithm's runs reach."""
        totals = [outcome.curve.gradient_evaluations[-1] for outcome in self.all if outcome.cell.partition == partition]
        return min(totals) if totals else None

    def at_bytes(self, algorithm: str, partition: str) -> Spread | None:
        budget = self.byte_budget(partition)
        return None if budget is None else self._within(algorithm, partition, lambda curve: curve.wire_bytes, budget)

    def at_gradients(self, algorithm: str, partition: str) -> Spread | None:
        budget = self.gradient_budget(partition)
        return None if budget is None else self._within(algorithm, partition, lambda curve: curve.gradient_evaluations, budget)

    def _within(self, algorithm: str, partition: str, cost: Callable[[Curve], Sequence[Cost]], budget: float) -> Spread | None:
        def accuracy(curve: Curve) -> float | None:
            reading = reading_within(curve.accuracy, cost(curve), budget)
            return reading.accuracy if reading else None

        return self.spread(algorithm, partition, accuracy)

    def share_of_bytes(self, algorithm: str, partition: str) -> float | None:
        """How much of the byte budget its runs spend at most."""
        budget, own = self.byte_budget(partition), self.of(algorithm, partition)
        return None if budget is None or not own else min(1.0, max(outcome.curve.wire_bytes[-1] for outcome in own) / budget)

    def to_target(self, algorithm: str, partition: str, target: float) -> tuple[int, Spread | None, Spread | None]:
        """How many seeds reach an accuracy; rounds and bytes until then if all do."""
        curves = [outcome.curve for outcome in self.of(algorithm, partition)]
        rounds = [cost_to_target(curve.accuracy, curve.rounds, target) for curve in curves]
        wire_bytes = [cost_to_target(curve.accuracy, curve.wire_bytes, target) for curve in curves]
        return sum(number is not None for number in rounds), spread(rounds), spread(wire_bytes)

    def best_other(self, partition: str) -> str | None:
        """The baseline with the highest mean final accuracy at equal rounds, the control left out."""
        others = [name for name in self.algorithms if name not in (*DKD, CONTROL, LONGER)]
        found = [(final.mean, name) for name in others if (final := self.final(name, partition))]
        return max(found)[1] if found else None

    def commands(self, algorithm: str) -> list[str]:
        """What runs the whole row again: the commands of its cells without partition and seed."""
        cells = (outcome.command for outcome in self.all if outcome.cell.algorithm == algorithm)
        return list(dict.fromkeys(_without(command, ("--partition", "--seed")) for command in cells))


def _without(command: str, options: Sequence[str]) -> str:
    words = shlex.split(command)
    for option in options:
        if option in words:
            del words[words.index(option) : words.index(option) + 2]
    return shlex.join(words)
