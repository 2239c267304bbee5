"""Defines the metrics of what a run has learned."""

from __future__ import annotations

import math
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Gauge

from feddkd.algorithms.feddkd import FIRST_STEP_LOSS, TEACHER_ENTROPY
from feddkd.config import Config, MainMetric
from feddkd.exchange import Evaluation
from feddkd.observability.metrics import UNKNOWN
from feddkd.scheduler.cohort import DRIFT_DIVERSITY
from feddkd.scheduler.records import ExchangeRecord


class LearningMetrics:
    """Metrics of the task and losses. Losses are mean cross-entropies in nats unless a metric says otherwise."""

    def __init__(self, registry: CollectorRegistry, config: Config) -> None:
        def gauge(name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
            return Gauge(name, f"{text}; NaN before the first.", labels, registry=registry)

        evaluated_by = ["evaluated_by"]
        self._accuracy = gauge("feddkd_accuracy_ratio", "Accuracy (0 to 1) of the last global model", evaluated_by)
        self._loss = gauge("feddkd_loss", "Mean cross-entropy in nats of the last global model", evaluated_by)
        self._metric = MainMetric.of(config)
        self._score = gauge(
            "feddkd_score", "A metric of the task (task.metric, task.metrics) of the last global model", ["metric", "evaluated_by"]
        )
        self._best_score = gauge("feddkd_best_score", "Best task.metric of any round's model", ["metric"])
        self._best_score.labels(self._metric.name).set(UNKNOWN)
        for evaluator, there_is_one in (("server", config.data.test_set), ("clients", config.data.holdout > 0)):
            if there_is_one:
                self._accuracy.labels(evaluator).set(UNKNOWN)
                self._loss.labels(evaluator).set(UNKNOWN)
                for name in self._metric.names:
                    self._score.labels(name, evaluator).set(UNKNOWN)
        self._best = gauge("feddkd_best_accuracy_ratio", "Best accuracy (0 to 1) of any round's model")
        self._training_loss = gauge("feddkd_training_loss", "Clients' mean loss in nats over the last local training")
        self._dkd_loss = gauge("feddkd_dkd_loss", "Clients' mean distillation loss at the last DKD step")
        self._dkd_loss_initial = gauge("feddkd_dkd_loss_initial", "Clients' mean distillation loss at step 0 of the last round")
        # By the name that a metric has in an exchange's record; what else clients report is in the ledger alone.
        self._reported = {
            DRIFT_DIVERSITY: gauge(
                "feddkd_drift_diversity",
                "How much the clients' last updates cancel: their mean squared norm over that of their mean, 1 if all agree",
            ),
            TEACHER_ENTROPY: gauge("feddkd_teacher_entropy", "Mean entropy in nats of the teachers' predictions in the last round"),
        }
        for unknown in (self._best, self._training_loss, self._dkd_loss, self._dkd_loss_initial, *self._reported.values()):
            unknown.set(UNKNOWN)
        self._best_accuracy = self._best_worth = -math.inf

    def add(self, record: ExchangeRecord) -> None:
        if record.client_evaluation is not None:
            self.evaluated("clients", record.client_evaluation)
        for name, reported in self._reported.items():
            if name in record.metrics:
                reported.set(record.metrics[name])
        if FIRST_STEP_LOSS in record.metrics:
            self._dkd_loss.set(record.metrics[FIRST_STEP_LOSS])
            self._dkd_loss_initial.set(record.metrics[FIRST_STEP_LOSS])
        if record.loss is None:
            return
        if record.id.name == "local_train":
            self._training_loss.set(record.loss)
        elif record.id.name == "dkd_step":
            self._dkd_loss.set(record.loss)
            if record.id.step == 0:
                self._dkd_loss_initial.set(record.loss)

    def evaluated(self, evaluator: str, evaluation: Evaluation) -> None:
        if evaluation.accuracy is not None:
            self._accuracy.labels(evaluator).set(evaluation.accuracy)
        self._loss.labels(evaluator).set(evaluation.loss)
        for name in self._metric.names:
            if (value := evaluation.score(name)) is not None:
                self._score.labels(name, evaluator).set(value)

    def raise_best(self, evaluation: Evaluation) -> None:
        if evaluation.accuracy is not None:
            self._best_accuracy = max(self._best_accuracy, evaluation.accuracy)
            self._best.set(self._best_accuracy)
        value = evaluation.score(self._metric.name)
        if value is not None and evaluation.worth > self._best_worth:
            self._best_worth = evaluation.worth
            self._best_score.labels(self._metric.name).set(value)
