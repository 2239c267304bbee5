"""Exchanges tensors with the clients of one round."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from feddkd.aggregator.lengths import capped_sizes
from feddkd.errors import NotFiniteError, QuorumError, SchemaError
from feddkd.evaluation import judged
from feddkd.exchange import UPDATE_NORM_SQUARED, Cause, ExampleCounts, Exchange, ExchangeId, Missing, Outcome, read_scalar
from feddkd.scheduler.plan import ExchangePlan
from feddkd.scheduler.records import ExchangeRecord
from feddkd.scheduler.sites import numbers_by_client
from feddkd.tensors import Tensors
from feddkd.traffic import CODEC_ERROR, CODEC_SECONDS

DRIFT_DIVERSITY = "drift_diversity"
"""Weighted mean of ||w_k - w_t||² over the squared norm of the mean update: 1 where all updates agree, the larger the
more they cancel out. With N clients of equal weight it is N times the sum's quotient that some papers give."""

MAX_DIVERSITY = 1e30
"""A larger drift diversity says no more than that the updates cancel out, and sums of it might overflow."""

MAX_MISSES = 2
"""Exchanges of a round that a client may miss before the rest of the round goes on without it."""


Account = Callable[[Outcome], ExchangeRecord]
"""Takes in the outcome of an exchange and makes its record. Called once for each exchange, before its clients are told."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """Names one attempt at a round: the common part of its exchanges' ids."""

    run_id: str
    round: int
    attempt: int

    def exchange(self, name: str, step: int) -> ExchangeId:
        return ExchangeId(self.run_id, self.round, self.attempt, name, step)


class RoundCohort:
    """Carries out a round's exchanges among its clients.

    A client that replies to the first exchange is in the round; later exchanges build on what these clients
    computed (a teacher, a control variate), so no other client is asked. One that misses a later exchange may
    reply to the next one, unless it was silent until the deadline or misses a second one: a client that has
    gone silent costs a round one deadline.

    Attributes:
        clients_reported: clients that replied to the first exchange.
        clients_missing: why each of the others did not, and what the first exchange was that another one missed.
        loss: of the latest exchange: its clients' losses, reduced as numbers beside a contribution are (`RuleBook.loss`);
            None if there are none.
        sent: what the clients received in the latest exchange.
        notes: numbers of the algorithm's server side for the record of the round, by name.
    """

    sent: Tensors

    def __init__(
        self,
        attempt: Attempt,
        clients: Mapping[str, ExampleCounts],
        plan: ExchangePlan,
        carry_out: Callable[[Exchange, Account], None],
        *,
        available: Mapping[str, ExampleCounts],
        min_clients: int,
    ) -> None:
        """Gather the clients of an attempt.

        Args:
            clients: what each client computes on, by id.
            carry_out: carries out an exchange and hands its outcome to the second argument.
            available: the same of all clients, those that take no part in this round included.
            min_clients: fewest replies with which an exchange succeeds.
        """
        self._attempt = attempt
        self._clients = dict(sorted(clients.items()))
        self._plan = plan
        self._carry_out = carry_out
        self._available = available
        self._min_clients = min_clients
        self._opened = False
        self._misses: dict[str, int] = {}
        self._dropped: dict[str, Missing] = {}
        self.clients_reported = 0
        self.clients_missing: dict[str, str] = {}
        self.loss: float | None = None
        self.notes: dict[str, float] = {}

    @property
    def weights(self) -> Sequence[float]:
        """Weights in the first exchange of the clients in this round, in client order."""
        return tuple(self._weights(self._clients, self._plan.first).values())

    @property
    def share(self) -> float:
        """Weight of this cohort in the first exchange as a share of all clients' weight."""
        return math.fsum(self.weights) / math.fsum(self._weights(self._available, self._plan.first).values())

    @property
    def most_examples(self) -> int:
        """The largest number of examples of a client in this round; no more than its weight is reduced to."""
        totals = {client: float(counts.total) for client, counts in self._clients.items()}
        if self._plan.config.scheduler.weights == "uniform":
            return int(max(totals.values()))
        return int(max(capped_sizes(totals, self._plan.config.aggregation.weight_cap).values()))

    @property
    def examples(self) -> ExampleCounts:
        """The examples of the clients in this round, added up; once it has begun, of those that replied first."""
        return ExampleCounts.sum_of(self._clients.values())

    def adopt(self, name: str, model: Tensors, *, in_mean: bool = False) -> Tensors:
        """Replace a model by the one that clients will hold once it is sent. Raises NotFiniteError."""
        with _encoding(self._attempt.exchange(name, 0)):
            self.sent = self._plan.downlink.adopt(name, model, in_mean=in_mean)
        return self.sent

    def note(self, name: str, value: float) -> None:
        """Add a number to the record of the round."""
        self.notes[name] = value

    def exchange(self, name: str, payload: Tensors, step: int = 0) -> Tensors:
        """Broadcast `payload`, let the clients compute, and return their contributions, reduced.

        Raises:
            RoundError: fewer than `min_clients` replied, or the result is not finite.
        """
        outcome = self.report(name, payload, step)
        assert outcome.reduced is not None, f"exchange {name!r} returns numbers only"
        return outcome.reduced

    def report(self, name: str, payload: Tensors, step: int = 0) -> Outcome:
        """Do the same for replies of any kind, with every number that came back. Raises RoundError."""
        identity = self._attempt.exchange(name, step)
        if not payload.is_finite():
            raise NotFiniteError(f"{identity}: the tensors to be sent are not finite")
        asked = {client: self._plan.weight(name, counts) for client, counts in self._clients.items() if client not in self._dropped}
        # A round's first broadcast is the global model that the round before it left: evaluation needs no transfer.
        with _encoding(identity):
            exchange = self._plan.describe(identity, asked, payload, evaluate=not self._opened, sizes=self._sizes(name, asked))
        self.sent = exchange.payload
        outcome = self._outcome_of(exchange)
        self._plan.downlink.received(exchange, outcome.replies)
        if outcome.fault:
            raise NotFiniteError(f"{identity}: {outcome.fault}")
        self._check_diverged(exchange, outcome)
        self._check_quorum(exchange, outcome)
        return outcome

    def _outcome_of(self, exchange: Exchange) -> Outcome:
        """Have an exchange carried out, and take in how its clients did."""
        kept: list[Outcome] = []

        def keep(outcome: Outcome) -> ExchangeRecord:
            kept.append(outcome)
            return self._account(exchange, outcome)

        self._carry_out(exchange, keep)
        (outcome,) = kept
        return outcome

    def _weights(self, clients: Mapping[str, ExampleCounts], name: str) -> dict[str, float]:
        """Weigh clients in an exchange that all of them reply to."""
        weights = {client: self._plan.weight(name, counts) for client, counts in clients.items()}
        return capped_sizes(weights, self._plan.config.aggregation.weight_cap)

    def _sizes(self, name: str, clients: Collection[str]) -> dict[str, float]:
        """Count the examples of clients in an exchange; none where a claim of examples is to count for nothing."""
        if self._plan.config.scheduler.weights == "uniform":
            return {}
        kind = self._plan.kinds[name]
        return {client: float(kind.examples(self._clients[client])) for client in clients}

    def _check_quorum(self, exchange: Exchange, outcome: Outcome) -> None:
        replied, missing = len(outcome.replies), self._missing(outcome)
        if replied >= self._min_clients:
            return
        reasons = "; ".join(f"{client}: {item.reason}" for client, item in missing.items())
        raise QuorumError(
            f"{exchange.id}: {replied} of {replied + len(missing)} clients answered, "
            f"{self._min_clients} are needed" + (f" ({reasons})" if reasons else ""),
            connection_lost=outcome.connection_lost,
            silent=any(item.cause is Cause.SILENT for item in outcome.missing.values()),
        )

    def _check_diverged(self, exchange: Exchange, outcome: Outcome) -> None:
        """Blame the model, not the clients, where most of them say that it is of no use."""
        diverged = [client for client, item in outcome.missing.items() if item.cause is Cause.DIVERGED]
        if 2 * len(diverged) > len(exchange.clients):
            reasons = "; ".join(f"{client}: {outcome.missing[client].reason}" for client in diverged)
            raise NotFiniteError(f"{exchange.id}: most clients cannot use the model ({reasons})")

    def _missing(self, outcome: Outcome) -> dict[str, Missing]:
        """Return why each client without a reply has none, those that were not asked included, in client order."""
        return dict(sorted({**self._dropped, **outcome.missing}.items()))

    def _account(self, exchange: Exchange, outcome: Outcome) -> ExchangeRecord:
        """Note who replied; returns what the record says of it."""
        self.loss = self._plan.rules.loss(exchange, outcome)
        outliers = self._plan.rules.take_in(exchange.id.name, outcome, self._plan.kinds[exchange.id.name].contribution)
        evaluation = None if outcome.evaluation is None else judged(outcome.evaluation, self._plan.metrics)
        record = ExchangeRecord(
            id=exchange.id,
            clients_selected=len(self._clients),
            clients_reported=len(outcome.replies),
            clients_missing={client: item.reason for client, item in self._missing(outcome).items()},
            traffic=outcome.traffic,
            lost=outcome.lost,
            seconds=outcome.seconds,
            client_seconds=outcome.client_seconds,
            gradient_evaluations=outcome.gradient_evaluations,
            loss=self.loss,
            client_evaluation=evaluation,
            metrics=self._metrics(exchange, outcome),
            by_client=numbers_by_client(exchange, outcome, self._plan.metrics) if self._plan.config.scheduler.share_client_metrics else {},
            outliers=outliers.running,
            named_outliers=outliers.named,
        )
        if not self._opened:
            self._open(outcome)
        else:
            self._count_misses(exchange, outcome)
        return record

    def _open(self, outcome: Outcome) -> None:
        """Take in who replied to the round's first exchange."""
        self._opened = True
        self.clients_reported = len(outcome.replies)
        self.clients_missing = {client: missing.reason for client, missing in outcome.missing.items()}
        self._clients = {client: counts for client, counts in self._clients.items() if client in outcome.replies}

    def _count_misses(self, exchange: Exchange, outcome: Outcome) -> None:
        """Drop the clients that need not be waited for again."""
        for client, missing in outcome.missing.items():
            self._misses[client] = self._misses.get(client, 0) + 1
            self.clients_missing.setdefault(client, f"{exchange.id.label}: {missing.reason}")
            if missing.cause is Cause.SILENT or self._misses[client] >= MAX_MISSES:
                self._dropped[client] = Missing(Cause.NOT_ASKED, f"not asked after it missed {exchange.id.label}: {missing.reason}")

    def _metrics(self, exchange: Exchange, outcome: Outcome) -> dict[str, float]:
        """The clients' mean metrics, and how much their updates disagree."""
        metrics = outcome.mean_metrics(exchange.weights_of(outcome.replies)) | _codec_metrics(exchange, outcome)
        if outcome.reduced is not None and f"{UPDATE_NORM_SQUARED}/value" in outcome.reduced:
            metrics[UPDATE_NORM_SQUARED] = read_scalar(outcome.reduced, UPDATE_NORM_SQUARED)
        if UPDATE_NORM_SQUARED in metrics and outcome.reduced is not None:
            diversity = self._drift_diversity(metrics[UPDATE_NORM_SQUARED], outcome.reduced)
            if diversity is not None:
                metrics[DRIFT_DIVERSITY] = diversity
        return metrics

    def _drift_diversity(self, norm_squared: float, reduced: Tensors) -> float | None:
        """Compare the norms that clients report with that of their mean; None where that says nothing.

        A client may report a norm in any exchange, and any norm: nothing that it says may raise here.
        """
        try:
            mean_norm_squared = reduced.select(self._plan.model_schema.trainable).norm() ** 2
        except SchemaError:
            return None  # an exchange of something else
        diversity = norm_squared / mean_norm_squared if mean_norm_squared > 0 else math.inf
        return diversity if diversity <= MAX_DIVERSITY else None


@contextmanager
def _encoding(exchange: ExchangeId) -> Iterator[None]:
    """Say which exchange it is that a codec does not encode a model for. Raises NotFiniteError."""
    try:
        yield
    except ValueError as error:
        raise NotFiniteError(f"{exchange}: {error}") from error


def _codec_metrics(exchange: Exchange, outcome: Outcome) -> dict[str, float]:
    """What codecs cost the server."""
    if exchange.broadcast is None and exchange.reply_codec is None:
        return {}
    if exchange.broadcast is None:
        return {CODEC_SECONDS["down"]: outcome.decode_s}
    cost = exchange.broadcast.cost
    return {CODEC_SECONDS["down"]: cost.seconds + outcome.decode_s, CODEC_ERROR["down"]: cost.error}
