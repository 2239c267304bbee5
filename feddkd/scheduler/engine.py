"""What the scheduler asks of an engine: carry out one exchange, and say exactly what happened."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from feddkd.exchange import Evaluation, ExchangeId, Reply
from feddkd.tensors import Schema, Tensors
from feddkd.traffic import Traffic

NOT_CONNECTED = "not connected"
DISCONNECTED = "disconnected"
"""How the reasons of clients that are missing for want of a connection begin."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One exchange to be carried out.

    Attributes:
        clients: who takes part, in client order, with the weight of each contribution.
        answer_schema: what a client may send, or None where the answer is only numbers.
        evaluate: clients evaluate the broadcast model on what they hold out, and say so in their answer.
        deadline_s: seconds until an answer that has not arrived is left out.
    """

    id: ExchangeId
    clients: Mapping[str, float]
    payload: Tensors
    answer_schema: Schema | None
    evaluate: bool
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Report:
    """The numbers of one client's answer."""

    loss: float | None = None
    evaluation: Evaluation | None = None
    compute_s: float = 0.0
    gradient_evaluations: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, reply: Reply) -> Report:
        return cls(reply.loss, reply.evaluation, reply.compute_s, reply.gradient_evaluations, reply.metrics)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an exchange.

    Attributes:
        mean: the reduced contributions, or None where answers are only numbers or nobody answered.
        reports: the numbers of those who answered, in client order.
        missing: why each of the others did not, in client order.
    """

    mean: Tensors | None
    reports: Mapping[str, Report]
    missing: Mapping[str, str]
    traffic: Traffic
    seconds: float

    def mean_loss(self, weights: Mapping[str, float]) -> float | None:
        """Weighted mean of the clients' losses, or None if nobody reported one."""
        return _weighted_mean({client: report.loss for client, report in self.reports.items() if report.loss is not None}, weights)

    def mean_metrics(self, weights: Mapping[str, float]) -> dict[str, float]:
        """Weighted mean of each metric over the clients that reported it."""
        found: dict[str, dict[str, float]] = {}
        for client, report in self.reports.items():
            for name, value in report.metrics.items():
                found.setdefault(name, {})[client] = value
        means = {name: _weighted_mean(values, weights) for name, values in sorted(found.items())}
        return {name: mean for name, mean in means.items() if mean is not None}

    @property
    def gradient_evaluations(self) -> int:
        """Gradients of single examples' losses, over all clients that answered."""
        return sum(report.gradient_evaluations for report in self.reports.values())

    @property
    def client_seconds(self) -> float:
        """Seconds that the clients computed, added up."""
        return math.fsum(report.compute_s for report in self.reports.values())

    @property
    def connection_lost(self) -> bool:
        """Whether somebody is missing for want of a connection."""
        return any(reason.startswith((NOT_CONNECTED, DISCONNECTED)) for reason in self.missing.values())

    @property
    def evaluation(self) -> Evaluation | None:
        """All clients' evaluations of the broadcast model added up, or None if nobody holds examples out."""
        found = [report.evaluation for report in self.reports.values() if report.evaluation is not None]
        if not found:
            return None
        return Evaluation(
            sum(evaluation.examples for evaluation in found),
            sum(evaluation.correct for evaluation in found),
            math.fsum(evaluation.loss_sum for evaluation in found),
        )


def _weighted_mean(values: Mapping[str, float], weights: Mapping[str, float]) -> float | None:
    if not values:
        return None
    return math.fsum(weights[client] * value for client, value in values.items()) / math.fsum(weights[client] for client in values)


@dataclass(frozen=True, slots=True)
class ClientStates:
    """How many clients are in which state, for the metrics.

    Attributes:
        connected: there, with nothing to do.
        working: there, with an answer to send.
        lost: had joined, but are not connected.
    """

    connected: int = 0
    working: int = 0
    lost: int = 0


class Engine(Protocol):
    """A way to carry out exchanges. Three of them give the same bits: in process, over gRPC, and on Ray."""

    def clients(self) -> Mapping[str, int]:
        """Example counts of the clients that can take part now, by id, in client order."""

    def wait_for_clients(self, count: int, timeout_s: float | None) -> bool:
        """Block until `count` clients can take part; False if `timeout_s` passes first (None waits for ever)."""

    def carry_out(self, exchange: Exchange) -> Outcome:
        """Broadcast, let the clients compute, reduce in client order. Never raises for what a client does."""

    def other_traffic(self) -> Traffic:
        """Bytes so far that belong to no exchange: joining, late answers, farewells. From any thread."""

    def states(self) -> ClientStates:
        """How many clients are in which state now. From any thread."""

    def finish(self, completed: bool, reason: str) -> None:
        """Tell the clients that the run is over and why, and let them go; doing it again does nothing."""
