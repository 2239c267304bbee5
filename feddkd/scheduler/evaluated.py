"""Follows the metric of a run from round to round: which round is the best, and when it is good enough to stop."""

from __future__ import annotations

from feddkd.config import Config, TaskTable
from feddkd.exchange import Evaluation
from feddkd.scheduler.events import RoundFinished
from feddkd.text import shown_score


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
        """Take in the next evaluated round."""
        if self.evaluation is None or evaluation.worth > self.evaluation.worth:
            self.best, self.evaluation, self.since_best = event, evaluation, 0
        else:
            self.since_best += 1

    def reason_to_stop(self, config: Config) -> str:
        """Say why no further round is needed; empty where one is."""
        if self.best is None or self.evaluation is None:
            return ""
        assert isinstance(config.task, TaskTable)
        metric, scheduler = config.task, config.scheduler
        value = self.evaluation.score(metric.metric)
        if value is None:
            return ""
        best = f"{shown_score(metric.metric, value)} of round {self.best.round}"
        if scheduler.stop_at is not None and (value <= scheduler.stop_at if metric.minimised else value >= scheduler.stop_at):
            side = "at most" if metric.minimised else "at least"
            return f"the {metric.metric} {best} is {side} scheduler.stop_at = {scheduler.stop_at:g}"
        if scheduler.patience and self.since_best >= scheduler.patience:
            side = "below" if metric.minimised else "above"
            return f"no {metric.metric} is {side} the {best} since then (scheduler.patience = {scheduler.patience})"
        return ""
