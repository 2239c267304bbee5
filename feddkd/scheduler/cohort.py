"""The clients of one round, and how they exchange tensors with the server."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from feddkd.errors import QuorumError
from feddkd.exchange import ExchangeId, ExchangeKind
from feddkd.scheduler.engine import Engine, Exchange, Outcome
from feddkd.scheduler.journal import Journal
from feddkd.scheduler.records import ExchangeRecord
from feddkd.tensors import Schema, Tensors
from feddkd.traffic import Traffic


class RoundCohort:
    """Carries out a round's exchanges among its clients.

    Whoever answers the first exchange is in the round; later exchanges build on what these clients
    computed (a teacher, a control variate), so nobody else is asked. One that is missing from a later
    exchange may answer the next one.

    Attributes:
        traffic: summed over the exchanges so far.
        clients_reported: clients that answered the first exchange.
    """

    def __init__(
        self,
        engine: Engine,
        clients: Mapping[str, float],
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
        """`clients` maps ids to weights; `kinds` says what travels in the exchanges that may be asked for."""
        self._engine = engine
        self._clients = dict(sorted(clients.items()))
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
                loss=outcome.mean_loss(exchange.clients),
                client_evaluation=outcome.evaluation,
            )
        )
