"""The numbers of the frontier: what rows of frontier.toml reached for how many bytes.

Bytes are given in units: one unit is what a round of FedAvg without codecs moves with the same model and cohort.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from feddkd.bench.side_by_side import HEADER_TOLERANCE
from feddkd.observability.budgets import Spread, cost_to_target, spread
from niid_bench.cells import FRONTIER
from niid_bench.outcomes import Outcome, Outcomes, accuracy_within
from niid_bench.verdicts import Duel

UNIT_ROW = "fedavg_fp32"
REFERENCE = "feddkd_fp32"
RIVAL = "fedavg_coded"
"""FedAvg with its best codec."""


class Frontier(Outcomes):
    """The finished cells of one tier, as multiples of what a round of FedAvg moves."""

    def __init__(self, tier: str, lines: Iterable[dict[str, Any]]) -> None:
        """Take in the lines of a results file.

        The delivery of the last model to every client is taken out of the bytes of the last round: with many clients it is worth
        several rounds, and the same for every row that ends with a whole model.
        """
        super().__init__(tier, "mnist", lines, FRONTIER)
        self.all = [_without_delivery(outcome) for outcome in self.all]
        rounds = [outcome.curve.wire_bytes[0] for outcome in self.all if outcome.cell.algorithm == UNIT_ROW]
        self.unit_bytes: int | None = rounds[0] if rounds else None

    def units(self, size_bytes: float) -> float | None:
        """A size in units; None before FedAvg without codecs has run."""
        return None if self.unit_bytes is None else size_bytes / self.unit_bytes

    def units_a_round(self, row: str, partition: str) -> Spread | None:
        """All that the rounds of a run move, the first model included, over their number."""
        return spread(self.units(own.curve.wire_bytes[-1] / len(own.curve.rounds)) for own in self.of(row, partition))

    def delivery_units(self, row: str, partition: str) -> Spread | None:
        """What it takes, once, to give every client the last model."""
        return spread(self.units(own.line["delivery_bytes"]) for own in self.of(row, partition))

    def units_in_all(self, row: str, partition: str) -> float | None:
        """The most that a run of the row moves."""
        return max((self.units(own.curve.wire_bytes[-1]) or 0.0 for own in self.of(row, partition)), default=None)

    def snapshot_share(self, row: str, partition: str) -> Spread | None:
        """Share of the tensors' bytes, both directions, that whole models take for clients that lack the one before."""
        return spread(_snapshot_share(own.line["traffic"]) for own in self.of(row, partition))

    def codec_share(self, row: str) -> Spread | None:
        """Share of a run's time that its codecs take, over all partitions and seeds."""
        own = (outcome for outcome in self.all if outcome.cell.algorithm == row)
        return spread(sum(outcome.line["codec_seconds"]) / outcome.curve.seconds[-1] for outcome in own)

    def at_units(self, row: str, partition: str, units: float) -> Spread | None:
        """Accuracy at the last round within so many units; None if a seed has finished no round."""
        return spread(self._accuracy_at(own, units) for own in self.of(row, partition))

    def _accuracy_at(self, outcome: Outcome, units: float) -> float | None:
        if self.unit_bytes is None:
            return None
        return accuracy_within(outcome.curve, lambda curve: curve.wire_bytes, units * self.unit_bytes * (1 + HEADER_TOLERANCE))

    def differences(self, row: str, partition: str, rival: str = REFERENCE) -> dict[int, float]:
        """Final accuracy minus the rival's on the same seed, in points, for the seeds that both have run."""
        ours, theirs = ({own.cell.seed: own.curve.final_score for own in self.of(name, partition)} for name in (row, rival))
        pairs = {seed: (value, theirs.get(seed)) for seed, value in ours.items()}
        return {seed: 100 * (one - other) for seed, (one, other) in pairs.items() if one is not None and other is not None}

    def duel(self, row: str, partition: str, units: float, rival: str = RIVAL) -> Duel | None:
        """A row against another at the same bytes, over the seeds that both have run; None where there are none."""
        ours, theirs = ({own.cell.seed: own for own in self.of(name, partition)} for name in (row, rival))
        seeds = [seed for seed in ours if seed in theirs]
        found = [spread(self._accuracy_at(each[seed], units) for seed in seeds) for each in (ours, theirs)]
        return Duel(partition, rival, found[0], found[1]) if found[1] else None

    def units_to(self, row: str, partition: str, target: float) -> list[float | None]:
        """Units until each seed first reaches an accuracy."""
        sizes = [cost_to_target(own.curve.scores, own.curve.wire_bytes, target) for own in self.of(row, partition)]
        return [None if size is None else self.units(size) for size in sizes]

    def times_fewer(self, row: str, partition: str, target: float) -> list[float] | None:
        """How many times fewer bytes than FedDKD without codecs each seed takes to an accuracy; None unless all reach it."""
        found = []
        theirs = {own.cell.seed: own for own in self.of(REFERENCE, partition)}
        for own in self.of(row, partition):
            if own.cell.seed not in theirs:
                continue
            sizes = [cost_to_target(each.curve.scores, each.curve.wire_bytes, target) for each in (own, theirs[own.cell.seed])]
            if sizes[0] is None or sizes[1] is None:
                return None
            found.append(sizes[1] / sizes[0])
        return found or None


def _without_delivery(outcome: Outcome) -> Outcome:
    sizes = list(outcome.curve.wire_bytes)
    sizes[-1] -= outcome.line["delivery_bytes"]
    return replace(outcome, curve=replace(outcome.curve, wire_bytes=sizes))


def _snapshot_share(traffic: dict[str, list[int]]) -> float:
    return sum(traffic["snapshot_bytes_down"]) / (sum(traffic["payload_bytes_down"]) + sum(traffic["payload_bytes_up"]))
