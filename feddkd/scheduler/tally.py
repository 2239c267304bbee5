"""Adds up costs and metrics of a round's exchanges and of a run's rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from feddkd.exchange import Evaluation, ExampleCounts
from feddkd.scheduler.records import ExchangeRecord
from feddkd.traffic import Traffic


@dataclass(slots=True)
class FinishedRound:
    """A round whose model is known, but not yet evaluated by the clients."""

    number: int
    evaluation: Evaluation | None
    traffic: Traffic
    lost: Traffic
    seconds: float
    clients_reported: int
    clients_missing: Mapping[str, str]
    gradient_evaluations: int
    metrics: Mapping[str, float]
    examples: ExampleCounts
    done_s: float


class RoundTally:
    """What adds up over the exchanges of a round: work over all attempts, metrics over the one that succeeds."""

    def __init__(self) -> None:
        self.traffic = Traffic()
        self.lost = Traffic()
        self.gradient_evaluations = 0
        self._metrics: dict[str, list[float]] = {}

    def add(self, record: ExchangeRecord) -> None:
        self.traffic += record.traffic
        self.lost += record.lost
        self.gradient_evaluations += record.gradient_evaluations
        for name, value in record.metrics.items():
            self._metrics.setdefault(name, []).append(value)

    def start_again(self) -> None:
        """Discard the metrics of a failed attempt, which describe no model."""
        self._metrics.clear()

    @property
    def metrics(self) -> dict[str, float]:
        return {name: math.fsum(values) / len(values) for name, values in self._metrics.items()}


@dataclass(slots=True)
class RunTally:
    """Totals of a run.

    Attributes:
        traffic: of all exchanges.
        other: of none: joining, late replies, farewells, and exchanges whose outcome was lost.
        lost: the part of both that was of no use.
    """

    traffic: Traffic = field(default_factory=Traffic)
    other: Traffic = field(default_factory=Traffic)
    lost: Traffic = field(default_factory=Traffic)
    exchange_traffic: dict[str, Traffic] = field(default_factory=dict)
    gradient_evaluations: int = 0
    cumulative_wire_bytes: int = 0
    last_evaluation: Evaluation | None = None
    best_accuracy: float | None = None
    rounds_missed: dict[str, int] = field(default_factory=dict)

    def add_exchange(self, record: ExchangeRecord) -> None:
        self.traffic += record.traffic
        self.lost += record.lost
        of_its_kind = self.exchange_traffic.setdefault(record.id.name, Traffic())
        of_its_kind += record.traffic
        self.gradient_evaluations += record.gradient_evaluations

    def add_round(self, finished: FinishedRound, evaluation: Evaluation | None) -> None:
        self.cumulative_wire_bytes += finished.traffic.wire_bytes
        for client in finished.clients_missing:
            self.rounds_missed[client] = self.rounds_missed.get(client, 0) + 1
        if evaluation is not None:
            self.last_evaluation = evaluation
            if evaluation.accuracy is not None:
                self.best_accuracy = max(self.best_accuracy or 0.0, evaluation.accuracy)
