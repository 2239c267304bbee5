"""What a person at a site sees of a run: whom it waits for, one line a round, and how good the model is there."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from feddkd.algorithms.feddkd import TEACHER_ACCURACY, TEACHER_SCORE
from feddkd.cli.words import listed
from feddkd.client.constants import HeldConstants
from feddkd.client.watch import ClientWatch
from feddkd.client.work import TaskRunner
from feddkd.config import ACCURACY, Config, MainMetric
from feddkd.config.main_metric import title_of
from feddkd.exchange import DELIVER, Evaluation, ExampleCounts, Reply, Task
from feddkd.tensors import Schema
from feddkd.text import shown_score

logger = logging.getLogger(__name__)


class SiteProgress:
    """Stands around a worker, and says what goes by.

    The first exchange of a round brings the model of the round before it, and the site evaluates that on
    what it holds out: then the line of the round before is printed.

    Attributes:
        final: how the final model did on what this site holds out; None if that is not known.
        metric: of the task.
        model_sha256: of the final model, as the server prints it; empty before it came.
    """

    def __init__(
        self, worker: TaskRunner, config: Config, say: Callable[[str], None], *, teaches: bool = False, watch: ClientWatch | None = None
    ) -> None:
        """Prepare to watch.

        Args:
            config: of the run, as the server says it.
            say: prints one line.
            teaches: the site trains a network of its own instead of the broadcast one.
            watch: hears of the work.
        """
        self._watch = watch or ClientWatch()
        self._worker = worker
        self._config = config
        self._say = say
        self._teaches = teaches
        self.final: Evaluation | None = None
        self.model_sha256 = ""
        self.metric = MainMetric.of(config)
        self._received: Evaluation | None = None
        self._after: tuple[MainMetric, float] | None = None
        self._run_id = ""
        self._round = 0
        self._exchanges = 0
        self._began_s = 0.0
        self._works = True

    @property
    def counts(self) -> ExampleCounts:
        return self._worker.counts

    @property
    def class_names(self) -> Sequence[str]:
        return self._worker.class_names

    @property
    def model_schema(self) -> Schema:
        return self._worker.model_schema

    @property
    def constants(self) -> HeldConstants:
        return self._worker.constants

    def broadcast_schema(self, exchange: str) -> Schema:
        return self._worker.broadcast_schema(exchange)

    def joined(self, run_id: str) -> None:
        """Say that the server took this client in, and which clients the run begins with."""
        if run_id == self._run_id:
            self._say(f"connected to run {run_id} again")
            return
        self._run_id, self._round = run_id, 0
        scheduler = self._config.scheduler
        named = f": {listed(scheduler.clients)}" if isinstance(scheduler.clients, list) else ""
        clients = "1 client" if scheduler.starting_clients == 1 else f"{scheduler.starting_clients} clients"
        rounds = "1 round" if self._config.rounds == 1 else f"{self._config.rounds} rounds"
        self._say(f"joined run {run_id} ({rounds}, {clients}{named}); waiting for the server")

    def carry_out(self, task: Task) -> Reply:
        """Let the worker compute, and say what that tells of the run."""
        started_s = time.monotonic()
        reply: Reply | None = None
        self._watch.began(task)
        try:
            reply = self._worker.carry_out(task)
        finally:
            self._watch.computed(task, reply)
        if self._works:
            try:
                self._follow(task, reply, started_s)
            except Exception:  # what is shown must not cost the reply
                self._works = False
                logger.exception("the progress of this site is not shown any more")
        return reply

    def _follow(self, task: Task, reply: Reply, started_s: float) -> None:
        """Take in what an exchange tells, and print the line of a round that is over."""
        if task.id.round != self._round or task.id.name == DELIVER:
            self._end_round(reply.evaluation)
            self._round, self._exchanges, self._began_s = task.id.round, 0, started_s
            self._received = reply.evaluation
            self._after = None
        self._after = self._of_teacher(reply) or self._after
        self._exchanges += 1
        if task.id.name == DELIVER:
            self.final, self.model_sha256 = reply.evaluation, task.payload.sha256()

    def _end_round(self, evaluation: Evaluation | None) -> None:
        """Print the line of the round that is over, if this process took part in it."""
        if not self._exchanges:
            return
        exchanges = "1 exchange" if self._exchanges == 1 else f"{self._exchanges} exchanges"
        took = f"{exchanges}, {time.monotonic() - self._began_s:.1f} s"
        # Of accuracy, what this site's own training made of it is said instead.
        found = in_words(evaluation, self.metric, "; ", None if self.metric.name == "accuracy" else self._received)
        self._say(f"round {self._round} of {self._config.rounds}: {took}{found}{self._own_training}")

    def _of_teacher(self, reply: Reply) -> tuple[MainMetric, float] | None:
        """Read how good a reply's teacher is by the metric of the task, or else by its accuracy; None where it does not say."""
        if TEACHER_SCORE in reply.metrics:
            return self.metric, reply.metrics[TEACHER_SCORE]
        return (ACCURACY, reply.metrics[TEACHER_ACCURACY]) if TEACHER_ACCURACY in reply.metrics else None

    @property
    def _own_training(self) -> str:
        """What local training made of the model that it began with; empty where that is not known."""
        if self._received is None or self._after is None:
            return ""
        metric, after = self._after
        before = self._received.score(metric.name)
        which = "" if self.metric.name == "accuracy" else f"{metric.title} "
        if self._teaches:
            return f"; own network {which}{metric.text(after)}"
        return "" if before is None else f"; own training {which}{metric.text(before)} \N{RIGHTWARDS ARROW} {metric.text(after)}"


def in_words(evaluation: Evaluation | None, metric: MainMetric, before: str, earlier: Evaluation | None = None) -> str:
    """Say how a model did on what the site holds out; empty where that is not known.

    Args:
        metric: of the task.
        before: the text begins with it.
        earlier: of the model that the round began with, where that is to be said as well.
    """
    value = None if evaluation is None else evaluation.score(metric.name)
    if evaluation is None or value is None:
        return ""
    began = None if earlier is None else earlier.score(metric.name)
    arrow = "" if began is None else f"{metric.text(began)} \N{RIGHTWARDS ARROW} "
    others = [(name, evaluation.score(name)) for name in metric.others]
    also = "".join(f", {title_of(name)} {shown_score(name, score)}" for name, score in others if score is not None)
    return f"{before}{metric.title} {arrow}{metric.text(value)}{also} ({evaluation.examples} held out)"
