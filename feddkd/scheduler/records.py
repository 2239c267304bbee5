"""What the scheduler tells its observers: one record an exchange, one a round, and one at the end."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from feddkd.exchange import Evaluation, ExampleCounts, ExchangeId
from feddkd.models.initial import WholeModel
from feddkd.scheduler.attendance import Presence
from feddkd.scheduler.engine import Engine
from feddkd.scheduler.sites import Doubt
from feddkd.tensors import Tensors
from feddkd.traffic import Traffic

NO_EXAMPLES = ExampleCounts(0)


@dataclass(frozen=True, slots=True)
class ExchangeRecord:
    """One completed exchange.

    Attributes:
        clients_missing: why each selected client that is not among the reporters did not answer.
        client_seconds: seconds that the clients computed, added up.
        gradient_evaluations: gradients of single examples' losses that the clients computed, added up.
        loss: weighted mean of the clients' losses, or what the rule of the exchange makes of them.
        client_evaluation: of the model that was broadcast, on what the clients hold out.
        metrics: weighted means of the other numbers that the clients reported, and `drift_diversity`.
        by_client: the few numbers that are kept for each client, by name and client.
        lost: the part of `traffic` that was of no use: messages that were repeated, and those of clients whose reply
            does not count.
        done_s: seconds since 1970 when it was done, by the server's clock; 0 where nobody knows.
        outliers: in how many exchanges in a row a client's contribution was an outlier, by client; 0 for one that has
            just ceased to be one. Other clients are left out.
        named_outliers: clients that have been outliers in `aggregation.outlier_exchanges` exchanges in a row, just now.
    """

    id: ExchangeId
    clients_selected: int
    clients_reported: int
    clients_missing: Mapping[str, str]
    traffic: Traffic
    seconds: float
    client_seconds: float
    gradient_evaluations: int
    loss: float | None
    client_evaluation: Evaluation | None
    metrics: Mapping[str, float]
    by_client: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    lost: Traffic = field(default_factory=Traffic)
    done_s: float = 0.0
    outliers: Mapping[str, int] = field(default_factory=dict)
    named_outliers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """One completed round.

    Attributes:
        evaluation: of the round's model, on the server's test set if it has one, else on what the clients hold out.
        client_evaluation: of the round's model on what the clients hold out; it came with the next broadcast.
        traffic: summed over the round's exchanges.
        clients_reported: clients that replied to the round's first exchange.
        clients_missing: why each client that was selected, or belongs to the federation and was away, did not.
        gradient_evaluations: summed over the round's exchanges, those of attempts that failed included.
        metrics: mean of each metric over the exchanges that have it, of the attempt that succeeded, and what the
            algorithm's server side noted.
        examples: of the clients that replied to the first exchange, added up.
        lost: summed over the round's exchanges.
        done_s: seconds since 1970 when its model was there, by the server's clock; 0 where nobody knows.
    """

    round: int
    evaluation: Evaluation | None
    client_evaluation: Evaluation | None
    traffic: Traffic
    cumulative_wire_bytes: int
    seconds: float
    clients_reported: int
    clients_missing: Mapping[str, str]
    gradient_evaluations: int
    metrics: Mapping[str, float]
    examples: ExampleCounts = NO_EXAMPLES
    lost: Traffic = field(default_factory=Traffic)
    done_s: float = 0.0


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A finished run.

    Attributes:
        traffic: of all exchanges.
        other_traffic: bytes that belong to no exchange: joining, late answers, farewells, exchanges whose outcome was lost.
        gradient_evaluations: summed over all exchanges.
        rounds_missed: rounds that went on without a client, by its id; clients that missed none are not there.
        not_delivered: why each client that took part did not get the final model.
        exchange_traffic: `traffic` by the name of the exchange, in order of first appearance.
        examples: of each client that could take part, as it said last; empty for very many clients.
        doubtful_labels: sites whose labels may be wrong, by client.
        lost_traffic: the part of all this that was of no use.
        best_round: the evaluated round with the best metric of the task; None if none was evaluated.
        delivered_round: the round whose model clients got, which is `model`; None for the last one.
        stopped: why the run ended before all of its rounds; empty if it did not.
        presence: in which rounds each client took part; empty for very many clients.
        started_s: seconds since 1970 when round 1 began, by the server's clock; 0 where nobody knows.
        ended_s: likewise when the model was delivered.
        best_evaluation: of the best round.
        outliers: clients whose contributions stood out in several exchanges in a row, and in which round that was first so.
    """

    run_id: str
    rounds: int
    model: Tensors
    final_evaluation: Evaluation | None
    best_accuracy: float | None
    traffic: Traffic
    other_traffic: Traffic
    gradient_evaluations: int
    seconds: float
    rounds_missed: Mapping[str, int]
    not_delivered: Mapping[str, str]
    exchange_traffic: Mapping[str, Traffic] = field(default_factory=dict)
    examples: Mapping[str, ExampleCounts] = field(default_factory=dict)
    doubtful_labels: Mapping[str, Doubt] = field(default_factory=dict)
    lost_traffic: Traffic = field(default_factory=Traffic)
    best_round: int | None = None
    delivered_round: int | None = None
    stopped: str = ""
    presence: Mapping[str, Presence] = field(default_factory=dict)
    started_s: float = 0.0
    ended_s: float = 0.0
    best_evaluation: Evaluation | None = None
    outliers: Mapping[str, int] = field(default_factory=dict)


class Observer:
    """Watches a run: override what you want to see. Called on the scheduler's thread, in order.

    Attributes:
        essential: whether the run ends when this observer raises; any other is dropped.
        follows_history: whether it is also told what earlier processes of the run did, as it happened.
    """

    essential: ClassVar[bool] = False
    follows_history: ClassVar[bool] = True

    def engine_ready(self, engine: Engine) -> None:
        """The engine that will carry out the exchanges; it may be asked from any thread how things stand."""

    def model_known(self, whole: WholeModel) -> None:
        """What belongs to the network besides the models that `round_finished` tells."""

    def partitioned(self, counts: Mapping[str, Sequence[int]]) -> None:
        """A simulation dealt the data: examples of each class at each client. A real server cannot know."""

    def clients_available(self, examples: Mapping[str, ExampleCounts]) -> None:
        """These clients can take part: told before the run starts, and before a cohort is drawn from them."""

    def run_started(self, run_id: str, rounds: int) -> None:
        """The first round is about to begin."""

    def run_resumed(self, run_id: str, rounds: int, rounds_done: int, incarnation: int, last: ExchangeId | None) -> None:
        """Another process goes on with the run.

        Args:
            rounds: how many are planned now.
            rounds_done: how many have a model.
            incarnation: counts the processes; that which began is 1.
            last: the last exchange of the round that was open; None where it has none, or no round was open.
        """

    def round_started(self, round_number: int, attempt: int, clients: int) -> None:
        """A cohort of so many clients was selected."""

    def exchange_begun(self, exchange: ExchangeId, clients: Collection[str]) -> None:
        """An exchange is about to be carried out among these clients. It is not told of the history of a run."""

    def exchange_done(self, record: ExchangeRecord) -> None:
        """An exchange completed."""

    def exchange_recalled(self, record: ExchangeRecord) -> None:
        """An exchange of the open round is not carried out again: an earlier process did. Told after `run_resumed`."""

    def round_finished(self, round_number: int, model: Tensors) -> None:
        """A round's exchanges are done, and this is the new global model."""

    def round_evaluated(self, round_number: int, evaluation: Evaluation) -> None:
        """The server evaluated the round's model on its test set."""

    def round_failed(self, round_number: int, attempt: int, reason: str) -> None:
        """Too few clients answered; the round will be tried again or the run pauses."""

    def paused(self, reason: str) -> None:
        """The run waits for clients."""

    def waiting(self, reason: str) -> None:
        """The run waits for a while, and nothing is wrong: for clients to come back, or to serve its final model."""

    def round_done(self, record: RoundRecord) -> None:
        """A round is complete, its evaluation included."""

    def run_failed(self, reason: str) -> None:
        """The run ended with an error."""

    def run_stopped(self, reason: str) -> None:
        """Somebody stopped the run. By default as `run_failed`."""
        self.run_failed(reason)

    def run_done(self, record: RunRecord) -> None:
        """All rounds are done and the final model was delivered."""
