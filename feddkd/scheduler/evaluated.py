"""Follows the metric of a run from round to round: which round is the best, and when it is good enough to stop."""

from __future__ import annotations

import math

from feddkd.config import Config, MainMetric
from feddkd.exchange import Evaluation
from feddkd.scheduler.events import RoundFinished


class Evaluated:
    """The rounds of a run whose models were evaluated.

    It depends on nothing but the events of the run, so a process that goes on with the run decides the same.

    Attributes:
        best: the round with the best metric (`task.metric`), the first of several; None before any evaluation.
        evaluation: of that round.
        since_best: evaluated rounds after it.
    """

    def __init__(self) -> None:
        self.best: RoundFinished | None = None
        self.evaluation: Evaluation | None = None
        self.since_best = 0

    def see(self, event: RoundFinished, evaluation: Evaluation) -> None:
        """Take in the next evaluated round; one whose metric is not known says nothing."""
        if evaluation.worth == -math.inf:
            return
        if self.evaluation is None or evaluation.worth > self.evaluation.worth:
            self.best, self.evaluation, self.since_best = event, evaluation, 0
        else:
            self.since_best += 1

    def reason_to_stop(self, config: Config) -> str:
        """Say why no further round is needed; empty where one is."""
        if self.best is None or self.evaluation is None:
            return ""
        metric, scheduler = MainMetric.of(config), config.scheduler
        value = self.evaluation.score(metric.name)
        if value is None:
            return ""
        best = f"{metric.text(value)} of round {self.best.round}"
        if scheduler.stop_at is not None and metric.reaches(value, scheduler.stop_at):
            side = "at most" if metric.minimised else "at least"
            return f"the {metric.title} {best} is {side} scheduler.stop_at = {scheduler.stop_at:g}"
        if scheduler.patience and self.since_best >= scheduler.patience:
            side = "below" if metric.minimised else "above"
            return f"no {metric.title} is {side} the {best} since then (scheduler.patience = {scheduler.patience})"
        return ""
