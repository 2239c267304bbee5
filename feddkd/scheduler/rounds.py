"""Runs the rounds: each is tried again when too few clients reply, and in the end the final model is delivered."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from feddkd.aggregator.rule import Rule
from feddkd.aggregator.weighted_mean import WeightedMean
from feddkd.algorithms.base import Algorithm, Cohort
from feddkd.algorithms.feddkd import FIRST_STEP_LOSS, LABEL_DISAGREEMENT, TEACHER_ACCURACY, TEACHER_ENTROPY
from feddkd.algorithms.snapshot import Snapshot
from feddkd.config import Config
from feddkd.errors import NotFiniteError, PausedError, RoundError
from feddkd.exchange import DELIVER, DELIVER_KIND, UPDATE_NORM_SQUARED, Evaluation, ExampleCounts, Exchange, Outcome, Reply
from feddkd.scheduler.cohort import Attempt, RoundCohort
from feddkd.scheduler.downlink import Downlink
from feddkd.scheduler.engine import Engine
from feddkd.scheduler.journal import Journal, NoJournal
from feddkd.scheduler.observers import Observers
from feddkd.scheduler.plan import ExchangePlan
from feddkd.scheduler.records import ExchangeRecord, Observer, RoundRecord, RunRecord
from feddkd.scheduler.selection import select_cohort
from feddkd.scheduler.sites import MOST_CLIENTS, LabelDoubts
from feddkd.scheduler.tally import FinishedRound, RoundTally, RunTally
from feddkd.tensors import Tensors
from feddkd.traffic import Traffic

logger = logging.getLogger(__name__)

Evaluator = Callable[[Tensors, Callable[[], None]], Evaluation]
"""Evaluates a global model on the server's test set; calls the second argument often, which raises if the run was aborted."""

CohortLayer = Callable[[Cohort], Cohort]
"""Stands around a round's cohort: sees every payload on its way down and every reduced contribution on its way up."""

MAX_METRIC_NAMES = 128
"""Names of metrics that the clients of a run may use in all."""

OWN_METRIC_NAMES = frozenset({TEACHER_ACCURACY, LABEL_DISAGREEMENT, TEACHER_ENTROPY, FIRST_STEP_LOSS, UPDATE_NORM_SQUARED})
"""Names that are kept however many others clients make up: what sites are compared by must not be crowded out."""

LARGEST_LOSS = 1e4
"""Cross-entropy on the test set, in nats, beyond which a model is ruined: no training leads back from it."""

SHARE_FOR_STEPS = 0.5
"""With a cohort of less than this share of the clients, a round's model is sent whole rather than as a step."""

LARGE_SHARE = 0.5
"""A client with more than this share of the weight decides every mean."""


@dataclass(frozen=True, slots=True)
class Extensions:
    """What stands around the rounds of a run; by default nothing.

    Attributes:
        rule: reduces contributions.
        layers: stand around each round's cohort, the first outermost.
        journal: remembers the outcomes of exchanges.
    """

    rule: Rule = field(default_factory=WeightedMean)
    layers: Sequence[CohortLayer] = ()
    journal: Journal = field(default_factory=NoJournal)


class Scheduler:
    """Runs an algorithm on an engine."""

    def __init__(
        self,
        config: Config,
        algorithm: Algorithm,
        engine: Engine,
        *,
        run_id: str,
        observers: Observers | Iterable[Observer] = (),
        evaluator: Evaluator | None = None,
        extensions: Extensions | None = None,
    ) -> None:
        """Prepare a run; nothing happens before `run`."""
        extensions = extensions or Extensions()
        self._config = config
        self._algorithm = algorithm
        self._engine = engine
        self._run_id = run_id
        self._observers = Observers.of(observers)
        self._evaluator = evaluator
        self._journal = extensions.journal
        self._rule = extensions.rule
        self._downlink = Downlink(config)
        self._layers = extensions.layers
        self._finished: FinishedRound | None = None
        self._tally = RunTally()
        self._round_tally = RoundTally()
        self._metric_names: set[str] = set()
        self._warned_of_metrics = False
        self._known_clients: dict[str, ExampleCounts] = {}
        self._label_doubts = LabelDoubts()
        self._large_clients: set[str] = set()

    def run(self, model: Tensors) -> RunRecord:
        """Take the initial model through all rounds, deliver the final one, and say farewell to the clients.

        Raises:
            PausedError: too few clients were there, or replied, for longer than the configuration allows.
            RunError: the run was aborted.
        """
        started = time.monotonic()
        self._tell(lambda observer: observer.engine_ready(self._engine))
        self._engine.wait_for_clients(self._config.scheduler.starting_clients, None)
        self._available()
        self._tell(lambda observer: observer.run_started(self._run_id, self._config.rounds))
        try:
            for number in range(1, self._config.rounds + 1):
                model = self._run_round(number, model)
            not_delivered = self._deliver(model)
        finally:
            self._close_round(None)
        self._engine.finish(completed=True, reason="all rounds are done")
        record = RunRecord(
            run_id=self._run_id,
            rounds=self._config.rounds,
            model=model,
            final_evaluation=self._tally.last_evaluation,
            best_accuracy=self._tally.best_accuracy,
            traffic=self._tally.traffic,
            other_traffic=self._engine.other_traffic(),
            gradient_evaluations=self._tally.gradient_evaluations,
            seconds=time.monotonic() - started,
            rounds_missed=dict(sorted(self._tally.rounds_missed.items())),
            not_delivered=not_delivered,
            exchange_traffic=self._tally.exchange_traffic,
            examples=dict(sorted(self._known_clients.items())) if len(self._known_clients) <= MOST_CLIENTS else {},
            doubtful_labels=dict(sorted(self._label_doubts.found.items())),
        )
        self._tell(lambda observer: observer.run_done(record))
        return record

    def _run_round(self, number: int, model: Tensors) -> Tensors:
        """Take the global model of one round to that of the next, and note what it cost."""
        started, traffic, self._round_tally = time.monotonic(), Traffic(), RoundTally()
        failing_since: float | None = None
        with Snapshot(self._algorithm.state_dict()) as start:
            for attempt in itertools.count():
                cohort, available = self._select(model, number, attempt)
                try:
                    around = self._with_layers(cohort)
                    new_model = self._adopt(around, self._algorithm.run_round(around, model))
                    evaluation = self._evaluate(number, new_model)
                    break
                except RoundError as error:
                    self._algorithm.load_state_dict(start.state())
                    self._downlink.forget()
                    self._round_tally.start_again()
                    failing_since = failing_since or time.monotonic()
                    self._round_failed(number, attempt, error, failing_since)
                finally:
                    traffic += cohort.traffic
        self._tell(lambda observer: observer.round_finished(number, new_model))
        if evaluation is not None:
            self._tell(lambda observer: observer.round_evaluated(number, evaluation))
        self._finished = FinishedRound(
            number,
            evaluation,
            traffic,
            time.monotonic() - started,
            cohort.clients_reported,
            self._absent(available) | cohort.clients_missing,
            self._round_tally.gradient_evaluations,
            self._round_tally.metrics | cohort.notes,
            cohort.examples,
        )
        return new_model

    def _adopt(self, cohort: Cohort, model: Tensors) -> Tensors:
        """Replace a round's model by what clients will hold of it, so that no other one is evaluated and kept.

        Where a cohort is a small part of all clients, most of the next one hold nothing that a step leads from. Then
        all get the model whole, and it bears the error of a snapshot instead of that of a step.
        """
        if not self._algorithm.broadcasts_model:
            return model
        first, kind = next(iter(self._algorithm.exchanges(self._config).items()))
        if kind.broadcast(model.schema) != model.schema:
            return model
        return cohort.adopt(first, model) if cohort.share >= SHARE_FOR_STEPS else self._downlink.adopt_whole(model)

    def _evaluate(self, number: int, model: Tensors) -> Evaluation | None:
        """Evaluate a round's model. Raises NotFiniteError if it is of no use to anybody."""
        self._engine.check_aborted()
        if not model.is_finite():
            raise NotFiniteError(f"round {number}: the new model is not finite")
        if self._evaluator is None:
            return None
        evaluation = self._evaluator(model, self._engine.check_aborted)
        if not evaluation.loss <= LARGEST_LOSS:  # also where it is NaN
            raise NotFiniteError(f"round {number}: the new model's loss on the test set is {evaluation.loss:.4g}")
        return evaluation

    def _round_failed(self, number: int, attempt: int, error: RoundError, failing_since: float) -> None:
        """Let the round be tried again, after a pause if it has been tried often enough.

        Raises:
            PausedError: the clients do not come, or they are all there and another attempt would fail as well.
        """
        config = self._config.scheduler
        self._tell(lambda observer: observer.round_failed(number, attempt, str(error)))
        connected = len(self._engine.clients())
        if error.silent and not error.connection_lost:
            raise PausedError(f"{error}; another attempt would wait as long again")
        if (attempt + 1) % (config.retries + 1) != 0:
            return
        if connected >= config.quorum and not error.connection_lost:
            self._tell(lambda observer: observer.paused(str(error)))
            raise PausedError(f"{error}; {connected} clients are connected, so waiting for more would not help")
        if time.monotonic() - failing_since > config.pause_timeout_s:
            raise PausedError(f"{error}; the round has failed for longer than scheduler.pause_timeout_s = {config.pause_timeout_s:g}")
        self._pause(str(error))

    def _deliver(self, model: Tensors) -> dict[str, str]:
        """Give every client the final model; returns why each of the others did not get it."""
        clients = self._engine.clients()
        absent = self._absent(clients)
        attempt = Attempt(self._run_id, self._config.rounds, 0)
        plan = ExchangePlan(self._config, {DELIVER: DELIVER_KIND}, model.schema, self._rule, self._downlink)
        cohort = self._cohort(attempt, clients, clients, plan, min_clients=0)
        outcome = cohort.report(DELIVER, model)
        return absent | {client: missing.reason for client, missing in outcome.missing.items()}

    def _select(self, model: Tensors, number: int, attempt: int) -> tuple[RoundCohort, Mapping[str, ExampleCounts]]:
        """Draw the cohort of an attempt; also returns the example counts of all clients that are available."""
        config = self._config.scheduler
        if (connected := len(self._engine.clients())) < config.quorum:
            self._pause(f"round {number} needs {config.quorum} clients, {connected} are connected")
        available = self._available()
        chosen = select_cohort(config, list(available), self._config.seed, number, attempt)
        counts = {client: available[client] for client in chosen}
        self._tell(lambda observer: observer.round_started(number, attempt, len(counts)))
        kinds = self._algorithm.exchanges(self._config)
        plan = ExchangePlan(self._config, kinds, model.schema, self._rule, self._downlink)
        self._warn_of_large_clients(plan, available)
        cohort = self._cohort(Attempt(self._run_id, number, attempt), counts, available, plan, min_clients=config.quorum)
        return cohort, available

    def _available(self) -> Mapping[str, ExampleCounts]:
        """Return the clients that can take part now, and tell the observers of them."""
        available = self._engine.clients()
        self._known_clients.update(available)
        self._tell(lambda observer: observer.clients_available(available))
        return available

    def _cohort(
        self,
        attempt: Attempt,
        counts: Mapping[str, ExampleCounts],
        available: Mapping[str, ExampleCounts],
        plan: ExchangePlan,
        *,
        min_clients: int,
    ) -> RoundCohort:
        return RoundCohort(
            attempt,
            counts,
            plan,
            self._carry_out,
            self._exchange_done,
            available=available,
            min_clients=min_clients,
        )

    def _with_layers(self, cohort: Cohort) -> Cohort:
        for layer in reversed(self._layers):
            cohort = layer(cohort)
        return cohort

    def _carry_out(self, exchange: Exchange) -> Outcome:
        """Return what the journal knows of the exchange, or else let the engine carry it out."""
        outcome = self._journal.recall(exchange.id)
        if outcome is None:
            outcome = self._engine.carry_out(exchange)
            self._journal.record(exchange.id, outcome)
        replies = {client: self._with_known_metrics(reply) for client, reply in outcome.replies.items()}
        return dataclasses.replace(outcome, replies=replies)

    def _with_known_metrics(self, reply: Reply) -> Reply:
        """Leave out metrics whose names are too many: each is a column of the record and a picture in the report."""
        for name in reply.metrics:
            if len(self._metric_names) < MAX_METRIC_NAMES or name in OWN_METRIC_NAMES:
                self._metric_names.add(name)
            elif name not in self._metric_names and not self._warned_of_metrics:
                self._warned_of_metrics = True  # once: one client can make up names in every reply
                logger.warning("metric %r and further names are left out: the clients have used %d others", name, MAX_METRIC_NAMES)
        known = {name: value for name, value in reply.metrics.items() if name in self._metric_names}
        return reply if len(known) == len(reply.metrics) else dataclasses.replace(reply, metrics=known)

    def _warn_of_large_clients(self, plan: ExchangePlan, available: Mapping[str, ExampleCounts]) -> None:
        """Say once of each client that it holds most of the weight: it decides every mean, and says so itself."""
        for name, kind in plan.kinds.items():
            weights = {client: plan.weight(name, counts) for client, counts in available.items()}
            total = math.fsum(weights.values())
            for client, weight in weights.items():
                if len(available) > 1 and weight > LARGE_SHARE * total and client not in self._large_clients:
                    self._large_clients.add(client)
                    claimed = kind.examples(available[client])
                    logger.warning("%s claims %d examples, %.0f %% of all", client, claimed, 100 * weight / total)

    def _absent(self, available: Mapping[str, ExampleCounts]) -> dict[str, str]:
        """Clients that belong to the federation and were not there when a round began."""
        named = self._config.scheduler.clients
        expected = named if isinstance(named, list) else sorted(self._known_clients)
        return {client: "not connected" for client in expected if client not in available}

    def _pause(self, reason: str) -> None:
        """Wait until enough clients are connected. Raises PausedError if they do not come in time."""
        config = self._config.scheduler
        self._tell(lambda observer: observer.paused(reason))
        if not self._engine.wait_for_clients(config.quorum, config.pause_timeout_s):
            raise PausedError(f"{reason}; nobody else came within scheduler.pause_timeout_s = {config.pause_timeout_s:g}")

    def _exchange_done(self, record: ExchangeRecord) -> None:
        self._tally.add_exchange(record)
        self._round_tally.add(record)
        self._label_doubts.see(record.id.round, record.by_client)
        self._tell(lambda observer: observer.exchange_done(record))
        if record.id.name == DELIVER and self._finished is not None:
            self._finished.traffic += record.traffic
        # The first broadcast after a round carried its model, and the replies what the clients think of it; too few
        # replies are not their opinion, and the broadcast will be repeated.
        if record.id.name == DELIVER or record.clients_reported >= self._config.scheduler.quorum:
            self._close_round(record.client_evaluation)

    def _close_round(self, client_evaluation: Evaluation | None) -> None:
        """Tell the observers of the last finished round, once everything about it is known."""
        if self._finished is None:
            return
        finished, self._finished = self._finished, None
        evaluation = finished.evaluation or client_evaluation
        self._tally.add_round(finished, evaluation)
        record = RoundRecord(
            round=finished.number,
            evaluation=evaluation,
            client_evaluation=client_evaluation,
            traffic=finished.traffic,
            cumulative_wire_bytes=self._tally.cumulative_wire_bytes,
            seconds=finished.seconds,
            clients_reported=finished.clients_reported,
            clients_missing=finished.clients_missing,
            gradient_evaluations=finished.gradient_evaluations,
            metrics=finished.metrics,
            examples=finished.examples,
        )
        self._tell(lambda observer: observer.round_done(record))

    def _tell(self, event: Callable[[Observer], None]) -> None:
        self._observers.tell(event)
