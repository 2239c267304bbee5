"""The clients of one round, and how they exchange tensors with the server."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from feddkd.errors import QuorumError
from feddkd.exchange import UPDATE_NORM_SQUARED, ExchangeId, ExchangeKind, read_scalar
from feddkd.scheduler.engine import Engine, Exchange, Outcome
from feddkd.scheduler.journal import Journal
from feddkd.scheduler.records import ExchangeRecord
from feddkd.tensors import Schema, Tensors
from feddkd.traffic import Traffic

DRIFT_DIVERSITY = "drift_diversity"
"""Weighted mean of ||w_k - w_t||² over the squared norm of the mean update: 1 where all updates agree, the larger the
more they cancel out. With N clients of equal weight it is N times the sum's quotient that some papers give."""


class RoundCohort:
    """Carries out a round's exchanges among its clients.

    Whoever answers the first exchange is in the round; later exchanges build on what these clients
    computed (a teacher, a control variate), so nobody else is asked. One that is missing from a later
    exchange may answer the next one.

    Attributes:
        traffic: summed over the exchanges so far.
        clients_reported: clients that answered the first exchange.
        loss: weighted mean of the losses that came with the latest exchange's answers, or None if none did.
    """

    def __init__(
        self,
        engine: Engine,
        clients: Mapping[str, float],
        total_weight: float,
        kinds: Mapping[str, ExchangeKind],
        model_schema: Schema,
        *,
        run_id: str,
        round_number: int,
        attempt: int,
        min_clients: int,
        deadline_s: float,
        journal: Journal,
        on_exchange: Callable[[ExchangeRecord], None],
    ) -> None:
        """`clients` maps ids to weights, of `total_weight` there are; `kinds` says what travels in the exchanges."""
        self._engine = engine
        self._clients = dict(sorted(clients.items()))
        self._total_weight = total_weight
        self._kinds = kinds
        self._model_schema = model_schema
        self._run_id = run_id
        self._round = round_number
        self._attempt = attempt
        self._min_clients = min_clients
        self._deadline_s = deadline_s
        self._journal = journal
        self._on_exchange = on_exchange
        self._opened = False
        self.traffic = Traffic()
        self.clients_reported = 0
        self.loss: float | None = None

    @property
    def weights(self) -> Sequence[float]:
        """Weights of the clients in this round, in client order."""
        return tuple(self._clients.values())

    @property
    def share(self) -> float:
        """Weight of this cohort as a share of all clients' weight."""
        return math.fsum(self._clients.values()) / self._total_weight

    def exchange(self, name: str, payload: Tensors, step: int = 0) -> Tensors:
        """Broadcast `payload`, let the clients compute, and return the weighted mean of their answers.

        Raises:
            QuorumError: fewer than `min_clients` answered.
        """
        outcome = self.report(name, payload, step)
        assert outcome.mean is not None, f"exchange {name!r} returns numbers only"
        return outcome.mean

    def report(self, name: str, payload: Tensors, step: int = 0) -> Outcome:
        """The same for answers of any kind, with every number that came back. Raises QuorumError."""
        exchange = self._describe(name, payload, step)
        outcome = self._journal.recall(exchange.id)
        if outcome is None:
            outcome = self._engine.carry_out(exchange)
            self._journal.record(exchange.id, outcome)
        self._account(exchange, outcome)
        if len(outcome.reports) < self._min_clients:
            reasons = "; ".join(f"{client}: {reason}" for client, reason in outcome.missing.items())
            raise QuorumError(
                f"{exchange.id}: {len(outcome.reports)} of {len(exchange.clients)} clients answered, "
                f"{self._min_clients} are needed" + (f" ({reasons})" if reasons else ""),
                connection_lost=outcome.connection_lost,
            )
        return outcome

    def _describe(self, name: str, payload: Tensors, step: int) -> Exchange:
        kind = self._kinds[name]
        return Exchange(
            id=ExchangeId(self._run_id, self._round, self._attempt, name, step),
            clients=self._clients,
            payload=payload,
            answer_schema=kind.answer(self._model_schema) if kind.answer else None,
            # A round's first broadcast is the global model that the round before it left: evaluation needs no transfer.
            evaluate=not self._opened,
            deadline_s=self._deadline_s,
        )

    def _account(self, exchange: Exchange, outcome: Outcome) -> None:
        self.traffic += outcome.traffic
        self.loss = outcome.mean_loss(exchange.clients)
        if not self._opened:
            self._opened = True
            self.clients_reported = len(outcome.reports)
            self._clients = {client: weight for client, weight in self._clients.items() if client in outcome.reports}
        self._on_exchange(
            ExchangeRecord(
                id=exchange.id,
                clients_selected=len(exchange.clients),
                clients_reported=len(outcome.reports),
                clients_missing=outcome.missing,
                traffic=outcome.traffic,
                seconds=outcome.seconds,
                client_seconds=outcome.client_seconds,
                gradient_evaluations=outcome.gradient_evaluations,
                loss=self.loss,
                client_evaluation=outcome.evaluation,
                metrics=self._metrics(exchange, outcome),
            )
        )

    def _metrics(self, exchange: Exchange, outcome: Outcome) -> dict[str, float]:
        """The clients' mean metrics, and how much their updates disagree."""
        metrics = outcome.mean_metrics(exchange.clients)
        if outcome.mean is not None and f"{UPDATE_NORM_SQUARED}/value" in outcome.mean:
            metrics[UPDATE_NORM_SQUARED] = read_scalar(outcome.mean, UPDATE_NORM_SQUARED)
        norm_squared = metrics.get(UPDATE_NORM_SQUARED)
        if norm_squared is not None and outcome.mean is not None:
            mean_norm_squared = outcome.mean.select(self._model_schema.trainable).norm() ** 2
            if mean_norm_squared > 0:
                metrics[DRIFT_DIVERSITY] = norm_squared / mean_norm_squared
        return metrics
