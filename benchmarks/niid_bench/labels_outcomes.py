"""The numbers of docs/labels.md: what rows of labels.toml reached in each case."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from feddkd.observability.budgets import Curve, Spread, common_budget, spread
from niid_bench.cells import LABELS, Cell
from niid_bench.labels import CASES, STUDY
from niid_bench.outcomes import Outcome, Outcomes

LAST_ROUNDS = 5
"""Rounds at the end that accuracies on held-out examples are means of: few are held out."""

CHOICES = {"steps_by_teachers": "teachers", "steps_by_own_predictions": "own predictions", "steps_by_labels": "labels"}
"""What the steps of a round can go by where the server chooses, by the metric that says so."""


@dataclass(frozen=True, slots=True)
class Lead:
    """How far the last round of a row is above a round of another, by seed.

    Attributes:
        points: percentage points, for the seeds that both have run; not empty.
        megabytes: where both are read at the same bytes: these, as the mean over the seeds.
    """

    rival: str
    points: dict[int, float]
    megabytes: float | None = None

    @property
    def mean(self) -> float:
        """As it is printed."""
        return round(statistics.fmean(self.points.values()), 2)

    @property
    def worst(self) -> float:
        return min(self.points.values())

    @property
    def is_level(self) -> bool:
        """Whether some seeds are at or above and others below."""
        return min(self.points.values()) < 0 <= max(self.points.values())

    @property
    def standing(self) -> str:
        """By the sign of every seed: ahead or behind on all, or level."""
        return "level" if self.is_level or self.mean == 0 else "ahead" if self.mean > 0 else "behind"


class LabelOutcomes:
    """The finished cells of one data set, by case."""

    def __init__(self, data: str, lines: Iterable[dict[str, Any]], tier: str = "mini") -> None:
        """Take in the lines of a results file; those of other data sets, tiers, cases and rows are left out."""
        self.data = data
        own = [line for line in lines if line.get("study") == STUDY]
        self.by_case = {
            case: Outcomes(tier, data, [line for line in own if Cell.of_line(line).point == point], LABELS) for case, point in CASES.items()
        }

    @property
    def all(self) -> list[Outcome]:
        return [outcome for outcomes in self.by_case.values() for outcome in outcomes.all]

    def of(self, case: str, row: str, partition: str) -> list[Outcome]:
        """Its seeds, in order."""
        return self.by_case[case].of(row, partition)

    def final(self, case: str, row: str, partition: str) -> Spread | None:
        return self.by_case[case].final(row, partition)

    def best(self, case: str, row: str, partition: str) -> Spread | None:
        return self.by_case[case].best(row, partition)

    def lead(self, case: str, row: str, partition: str, rival: str, *, at_best: bool = True, rival_case: str | None = None) -> Lead | None:
        """How far a row's last round is above another row's best round, or its last; None if no seed has run both.

        Args:
            rival_case: what is done to the rival's labels; as to the row's unless given.
        """
        ours = {own.cell.seed: own.curve.final_score for own in self.of(case, row, partition)}
        rivals = self.of(rival_case or case, rival, partition)
        theirs = {own.cell.seed: own.curve.best_score if at_best else own.curve.final_score for own in rivals}
        pairs = {seed: (value, theirs.get(seed)) for seed, value in ours.items()}
        points = {seed: 100 * (one - other) for seed, (one, other) in pairs.items() if one is not None and other is not None}
        return Lead(rival, points) if points else None

    def least_lead(self, case: str, row: str, partition: str, rivals: Sequence[str], *, at_best: bool = True) -> Lead | None:
        """The lead over the rival that leaves the least of it."""
        leads = [lead for rival in rivals if (lead := self.lead(case, row, partition, rival, at_best=at_best)) is not None]
        return min(leads, key=lambda lead: lead.mean, default=None)

    def lead_at_equal_bytes(self, case: str, row: str, partition: str, rival: str) -> Lead | None:
        """How far a row's last round is above another's best within the smaller of their total bytes, seed by seed.

        A curve that is cut there has not delivered its last model to the clients, which flatters it by less than one of its rounds.
        """
        ours, theirs = ({own.cell.seed: own.curve for own in self.of(case, name, partition)} for name in (row, rival))
        points, budgets = {}, []
        for seed in ours.keys() & theirs.keys():
            budget = common_budget([ours[seed].wire_bytes, theirs[seed].wire_bytes])
            own, others = (_accuracies_within(curve, budget) for curve in (ours[seed], theirs[seed]))
            if own and others:
                points[seed] = 100 * (own[-1] - max(others))
                budgets.append(budget)
        return Lead(rival, points, statistics.fmean(budgets) / 1e6) if points else None

    def teachers(self, case: str, row: str, partition: str) -> Spread | None:
        """The teachers' accuracy on the labelled examples that clients hold out, at the end."""
        return spread(_at_the_end(own.line["metrics"].get("teacher_accuracy", [])) for own in self.of(case, row, partition))

    def global_model(self, case: str, row: str, partition: str) -> Spread | None:
        """The global model's accuracy on the same examples, at the end."""
        return spread(_at_the_end(own.line.get("client_accuracy", [])) for own in self.of(case, row, partition))

    def chosen(self, case: str, row: str, partition: str) -> dict[str, int] | None:
        """In how many rounds of all seeds the steps went by each of `CHOICES`; None without such a run."""
        runs = [own.line["metrics"] for own in self.of(case, row, partition)]
        counts = {name: sum(value == 1.0 for metrics in runs for value in metrics.get(metric, [])) for metric, name in CHOICES.items()}
        return counts if any(counts.values()) else None


def _at_the_end(values: Sequence[float | None]) -> float | None:
    """Mean over the last rounds that have a value."""
    known = [value for value in values if value is not None][-LAST_ROUNDS:]
    return statistics.fmean(known) if known else None


def _accuracies_within(curve: Curve, wire_bytes: float) -> list[float]:
    """Of the evaluated rounds that end within so many bytes."""
    pairs = zip(curve.scores, curve.wire_bytes, strict=True)
    return [value for value, size in pairs if value is not None and size <= wire_bytes]
