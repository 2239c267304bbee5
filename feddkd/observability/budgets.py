"""Reads how good the model of a run is within a budget, and the cost of reaching a level.

A budget is a cost of any kind: rounds, bytes on the wire, gradient evaluations, seconds.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from feddkd.config import ACCURACY, MainMetric

Cost = int | float


@dataclass(frozen=True, slots=True)
class Curve:
    """One run, round by round; all costs are cumulative, so no sequence of them ever falls.

    Attributes:
        scores: the metric of the global model after each round, None where it was not evaluated.
        wire_bytes: both directions, all clients.
        gradient_evaluations: examples whose gradient a client computed, all clients.
        seconds: of the machine that ran it.
        metric: what the scores are.
    """

    scores: Sequence[float | None]
    wire_bytes: Sequence[int]
    gradient_evaluations: Sequence[int]
    seconds: Sequence[float]
    metric: MainMetric = ACCURACY

    @property
    def rounds(self) -> Sequence[int]:
        return range(1, len(self.scores) + 1)

    def first(self, rounds: int, delivery_bytes: int) -> Curve:
        """Return the curve of a run that ended after so many rounds and then delivered its model for `delivery_bytes`."""
        if rounds == len(self.scores):
            return self
        wire_bytes = list(self.wire_bytes[:rounds])
        wire_bytes[-1] += delivery_bytes
        return Curve(self.scores[:rounds], wire_bytes, self.gradient_evaluations[:rounds], self.seconds[:rounds], self.metric)

    @property
    def final_score(self) -> float | None:
        """Of the last round that was evaluated."""
        return next((value for value in reversed(self.scores) if value is not None), None)

    @property
    def best_score(self) -> float | None:
        """Of any round that was evaluated."""
        return self.metric.best(value for value in self.scores if value is not None)


@dataclass(frozen=True, slots=True)
class Reading:
    """The metric of a run's model at a budget, and the round it was read at."""

    score: float
    round: int


@dataclass(frozen=True, slots=True)
class Spread:
    """A number over several seeds.

    Attributes:
        deviation: the standard deviation of a sample, None of a single value.
    """

    mean: float
    deviation: float | None
    lowest: float
    highest: float
    count: int


def reading_within(scores: Sequence[float | None], cost: Sequence[Cost], budget: Cost) -> Reading | None:
    """Return the last evaluated round whose cumulative cost is within the budget; None if there is none."""
    found = None
    for number, (value, spent) in enumerate(zip(scores, cost, strict=True), start=1):
        if spent > budget:
            break
        if value is not None:
            found = Reading(value, number)
    return found


def round_of_target(scores: Sequence[float | None], target: float, metric: MainMetric = ACCURACY) -> int | None:
    """Return the first round that is as good as the target or better, counted from 1; None if no round is."""
    return next((number for number, value in enumerate(scores, start=1) if value is not None and metric.reaches(value, target)), None)


def cost_to_target(scores: Sequence[float | None], cost: Sequence[Cost], target: float, metric: MainMetric = ACCURACY) -> Cost | None:
    """Return the cumulative cost of the first round that is as good as the target or better; None if no round is."""
    number = round_of_target(scores, target, metric)
    return None if number is None else cost[number - 1]


def common_budget(costs: Iterable[Sequence[Cost]]) -> Cost:
    """Return the largest budget that every run reaches, from their cumulative costs."""
    return min(cost[-1] for cost in costs)


def spread(values: Iterable[Cost | None]) -> Spread | None:
    """Return mean and std; None if there is no value, or one is missing: a mean over the rest would be biased."""
    numbers = list(values)
    present = [float(number) for number in numbers if number is not None]
    if not present or len(present) < len(numbers):
        return None
    deviation = statistics.stdev(present) if len(present) > 1 else None
    return Spread(statistics.fmean(present), deviation, min(present), max(present), len(present))
