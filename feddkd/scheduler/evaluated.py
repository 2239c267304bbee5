"""Follows the accuracy of a run from round to round: which round is the best, and when it is good enough to stop."""

from __future__ import annotations

from feddkd.config import SchedulerConfig
from feddkd.exchange import Evaluation
from feddkd.scheduler.events import RoundFinished


class Evaluated:
    """The rounds of a run whose models were evaluated.

    It depends on nothing but the events of the run, so a process that goes on with the run decides the same.

    Attributes:
        best: the round with the highest accuracy, the first of several; None before any evaluation.
        evaluation: of that round.
        since_best: evaluated rounds after it.
    """

    def __init__(self) -> None:
        self.best: RoundFinished | None = None
        self.evaluation: Evaluation | None = None
        self.since_best = 0

    def see(self, event: RoundFinished, evaluation: Evaluation) -> None:
        """Take in the next evaluated round."""
        if self.evaluation is None or evaluation.accuracy > self.evaluation.accuracy:
            self.best, self.evaluation, self.since_best = event, evaluation, 0
        else:
            self.since_best += 1

    def reason_to_stop(self, config: SchedulerConfig) -> str:
        """Say why no further round is needed; empty where one is."""
        if self.best is None or self.evaluation is None:
            return ""
        best = f"{self.evaluation.accuracy:.2%} of round {self.best.round}"
        if config.stop_at is not None and self.evaluation.accuracy >= config.stop_at:
            return f"the accuracy {best} is at least scheduler.stop_at = {config.stop_at:g}"
        if config.patience and self.since_best >= config.patience:
            return f"no accuracy is above the {best} since then (scheduler.patience = {config.patience})"
        return ""
