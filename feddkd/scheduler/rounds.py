"""Runs the rounds: each is tried again when too few clients reply, and in the end the final model is delivered.

What happens goes into the journal as events, and the state of the run is the fold of these. A process
that goes on with the run of another one folds them first. It then runs the open round again: exchanges in
the journal return what they returned, and the first that is not there goes to the engine.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from feddkd.aggregator.rule import Rule
from feddkd.aggregator.weighted_mean import WeightedMean
from feddkd.algorithms.base import Algorithm, Cohort
from feddkd.algorithms.snapshot import Snapshot
from feddkd.config import Config
from feddkd.errors import NotFiniteError, PausedError, RoundError
from feddkd.exchange import DELIVER, DELIVER_KIND, Evaluation, ExampleCounts, Exchange, ExchangeId, Outcome
from feddkd.failpoints import failpoint
from feddkd.scheduler import checkpoint, outcomes
from feddkd.scheduler.cohort import Account, Attempt, RoundCohort
from feddkd.scheduler.downlink import Downlink
from feddkd.scheduler.engine import Engine
from feddkd.scheduler.events import (
    DeliveryStarted,
    Event,
    ExchangeDone,
    RoundFailed,
    RoundFinished,
    RoundStarted,
    RunFinished,
    RunStarted,
)
from feddkd.scheduler.journal import Journal, NoJournal
from feddkd.scheduler.metric_names import MetricNames
from feddkd.scheduler.observers import Observers
from feddkd.scheduler.plan import ExchangePlan
from feddkd.scheduler.records import Observer, RunRecord
from feddkd.scheduler.selection import select_cohort
from feddkd.scheduler.sites import MOST_CLIENTS
from feddkd.scheduler.state import RunState, Told
from feddkd.tensors import Tensors

logger = logging.getLogger(__name__)

Evaluator = Callable[[Tensors, Callable[[], None]], Evaluation]
"""Evaluates a global model on the server's test set; calls the second argument often, which raises if the run was aborted."""

CohortLayer = Callable[[Cohort], Cohort]
"""Stands around a round's cohort: sees every payload on its way down and every reduced contribution on its way up."""

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
        journal: keeps the events of the run; the run goes on after those that it holds already.
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
        self._observers = Observers.of(observers)
        self._evaluator = evaluator
        self._journal = extensions.journal
        self._rule = extensions.rule
        self._downlink = Downlink(config)
        self._layers = extensions.layers
        self._state = RunState(run_id, config.scheduler.quorum)
        self._metric_names = MetricNames()
        self._large_clients: set[str] = set()
        self._recalled: Mapping[ExchangeId, str] = {}

    def run(self, model: Tensors) -> RunRecord:
        """Take the initial model through all rounds, deliver the final one, and say farewell to the clients.

        Raises:
            PausedError: too few clients were there, or replied, for longer than the configuration allows.
            RunError: the run was aborted.
        """
        self._tell(lambda observer: observer.engine_ready(self._engine))
        try:
            model = self._begin(model)
            if self._state.ended is None:
                for number in range(self._state.rounds_done + 1, self._config.rounds + 1):
                    model = self._run_round(number, model)
                self._end(model)
        finally:
            self._tell_all(self._state.close())
        self._journal.prune(self._state.blobs)
        record = run_record(self._state, model)
        self._tell(lambda observer: observer.run_done(record))
        return record

    def _end(self, model: Tensors) -> None:
        """Deliver the final model, and let the clients go."""
        not_delivered = self._deliver(model)
        failpoint("scheduler.run.before_finish")
        self._engine.finish(completed=True, reason="all rounds are done")
        # Last: a process that is started after a crash before it says farewell again to those who missed it.
        self._happen(RunFinished(self._engine.other_traffic(), not_delivered))
        failpoint("scheduler.run.after_finish")

    def _begin(self, model: Tensors) -> Tensors:
        """Wait for clients and begin with the initial model, or go on where another process stopped."""
        if not self._journal.entries:
            self._engine.wait_for_clients(self._config.scheduler.starting_clients, None)
            self._happen(RunStarted(self._config.rounds, self._engine.clients(), self._new_owners()))
            return model
        for entry in self._journal.entries:
            for told in self._state.apply(entry):
                self._observers.tell(told, history=True)
            if isinstance(entry.event, ExchangeDone):
                self._metric_names.add(entry.event.record.metrics)
        return self._go_on(model)

    def _go_on(self, model: Tensors) -> Tensors:
        """Take up what the last finished round left, and wait for the clients of the one that is open."""
        state = self._state
        self._tell(lambda observer: observer.run_resumed(state.run_id, self._config.rounds, state.rounds_done, state.incarnation))
        if state.checkpoints:
            newest = state.checkpoints[-1]
            model = Tensors.copy_of(model.schema, self._journal.load(newest.model).tensors)
            algorithm, codecs = checkpoint.decode(self._journal.load(newest.state))
            self._algorithm.load_state_dict(algorithm)
            self._downlink.load(codecs)
            self._tell(lambda observer: observer.round_finished(newest.round, model))
        if state.failed_attempts:
            self._downlink.forget(codes=state.codes)
        if state.ended is not None:
            return model
        self._recalled = dict(state.open.outcomes) if state.open is not None else {}
        self._engine.remember(state.replied)
        if not state.has_started:
            self._engine.wait_for_clients(self._config.scheduler.starting_clients, None)
            self._happen(RunStarted(self._config.rounds, self._engine.clients(), self._new_owners()))
        else:
            self._engine.wait_for(sorted(state.members), self._config.scheduler.resume_grace_s)
        return model

    def _run_round(self, number: int, model: Tensors) -> Tensors:
        """Take the global model of one round to that of the next."""
        failing_since: float | None = None
        with Snapshot(self._algorithm.state_dict()) as start:
            while True:
                cohort, available = self._select(model, number)
                try:
                    around = self._with_layers(cohort)
                    new_model = self._adopt(around, self._algorithm.run_round(around, model))
                    evaluation = self._evaluate(number, new_model)
                    break
                except RoundError as error:
                    self._algorithm.load_state_dict(start.state())
                    self._downlink.forget()
                    failing_since = failing_since or time.monotonic()
                    self._round_failed(number, error, failing_since)
        self._finish_round(number, new_model, evaluation, cohort, available)
        return new_model

    def _finish_round(
        self, number: int, model: Tensors, evaluation: Evaluation | None, cohort: RoundCohort, available: Mapping[str, ExampleCounts]
    ) -> None:
        """Keep what the next round begins with."""
        failpoint("scheduler.round.before_checkpoint")
        event = RoundFinished(
            round=number,
            evaluation=evaluation,
            clients_reported=cohort.clients_reported,
            clients_missing=self._absent(available) | cohort.clients_missing,
            notes=cohort.notes,
            examples=cohort.examples,
            model=self._journal.store(*checkpoint.encode_model(model), checkpoint=True),
            state=self._journal.store(*checkpoint.encode(self._algorithm.state_dict(), self._downlink.state()), checkpoint=True),
        )
        entry = self._journal.append(event)
        failpoint("scheduler.round.after_checkpoint")
        self._tell(lambda observer: observer.round_finished(number, model))
        self._tell_all(self._state.apply(entry))
        self._journal.prune(self._state.blobs)

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

    def _round_failed(self, number: int, error: RoundError, failing_since: float) -> None:
        """Let the round be tried again, after a pause if it has been tried often enough.

        Raises:
            PausedError: the clients do not come, or they are all there and another attempt would fail as well.
        """
        config = self._config.scheduler
        assert self._state.open is not None
        attempt = self._state.open.attempt
        self._happen(RoundFailed(number, attempt, str(error), self._downlink.codes))
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
        if not self._state.delivering:
            clients = self._engine.clients()
            self._happen(DeliveryStarted(clients, self._absent(clients)))
        begun = self._state.open
        assert begun is not None
        plan = ExchangePlan(self._config, {DELIVER: DELIVER_KIND}, model.schema, self._rule, self._downlink)
        attempt = Attempt(self._state.run_id, self._config.rounds, 0)
        cohort = self._cohort(attempt, begun.cohort, begun.cohort, plan, min_clients=0)
        outcome = cohort.report(DELIVER, model)
        return dict(begun.absent) | {client: missing.reason for client, missing in outcome.missing.items()}

    def _select(self, model: Tensors, number: int) -> tuple[RoundCohort, Mapping[str, ExampleCounts]]:
        """Draw the cohort of an attempt; also returns the example counts of all clients that are available.

        An attempt that the journal holds goes on with the cohort that it had.
        """
        config = self._config.scheduler
        kinds = self._algorithm.exchanges(self._config)
        plan = ExchangePlan(self._config, kinds, model.schema, self._rule, self._downlink)
        begun = self._state.open
        if begun is None:
            attempt = self._state.failed_attempts
            if (connected := len(self._engine.clients())) < config.quorum:
                self._pause(f"round {number} needs {config.quorum} clients, {connected} are connected")
            available = self._engine.clients()
            chosen = select_cohort(config, list(available), self._config.seed, number, attempt)
            counts = {client: available[client] for client in chosen}
            self._happen(RoundStarted(number, attempt, counts, available, self._downlink.codes, self._new_owners()))
            begun = self._state.open
            assert begun is not None
        self._warn_of_large_clients(plan, begun.available)
        attempt_id = Attempt(self._state.run_id, number, begun.attempt)
        return self._cohort(attempt_id, begun.cohort, begun.available, plan, min_clients=config.quorum), begun.available

    def _new_owners(self) -> dict[str, str]:
        """What proves who owns an id, of clients that are not in the journal yet."""
        known = self._state.owners
        return {client: owner for client, owner in self._engine.owners().items() if known.get(client) != owner}

    def _cohort(
        self,
        attempt: Attempt,
        counts: Mapping[str, ExampleCounts],
        available: Mapping[str, ExampleCounts],
        plan: ExchangePlan,
        *,
        min_clients: int,
    ) -> RoundCohort:
        return RoundCohort(attempt, counts, plan, self._carry_out, available=available, min_clients=min_clients)

    def _with_layers(self, cohort: Cohort) -> Cohort:
        for layer in reversed(self._layers):
            cohort = layer(cohort)
        return cohort

    def _carry_out(self, exchange: Exchange, account: Account) -> None:
        """Let the engine carry out an exchange, or take what the journal holds of it.

        Args:
            account: makes the record of the outcome. Clients may forget their replies once that is in the journal.
        """
        name = self._recalled.get(exchange.id)
        if name is not None:
            account(self._with_known_metrics(outcomes.decode(self._journal.load(name), exchange)))
            return

        def make_durable(outcome: Outcome) -> None:
            failpoint("scheduler.exchange.before_append")
            outcome = dataclasses.replace(outcome, traffic=outcome.traffic + self._state.spent)
            stored = self._journal.store(*outcomes.encode(outcome))
            self._happen(ExchangeDone(account(self._with_known_metrics(outcome)), stored))
            failpoint("scheduler.exchange.after_append")

        self._engine.carry_out(exchange, make_durable)

    def _with_known_metrics(self, outcome: Outcome) -> Outcome:
        replies = {client: self._metric_names.known(reply) for client, reply in outcome.replies.items()}
        return dataclasses.replace(outcome, replies=replies)

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
        expected = named if isinstance(named, list) else sorted(self._state.known_clients)
        return {client: "not connected" for client in expected if client not in available}

    def _pause(self, reason: str) -> None:
        """Wait until enough clients are connected. Raises PausedError if they do not come in time."""
        config = self._config.scheduler
        self._tell(lambda observer: observer.paused(reason))
        if not self._engine.wait_for_clients(config.quorum, config.pause_timeout_s):
            raise PausedError(f"{reason}; nobody else came within scheduler.pause_timeout_s = {config.pause_timeout_s:g}")

    def _happen(self, event: Event) -> None:
        """Keep an event, take it in, and tell the observers."""
        self._tell_all(self._state.apply(self._journal.append(event)))

    def _tell_all(self, told: Iterable[Told]) -> None:
        for event in told:
            self._tell(event)

    def _tell(self, event: Told) -> None:
        self._observers.tell(event)


def run_record(state: RunState, model: Tensors) -> RunRecord:
    """Sum up a finished run."""
    tally, ended = state.tally, state.ended
    assert ended is not None
    return RunRecord(
        run_id=state.run_id,
        rounds=state.rounds_done,
        model=model,
        final_evaluation=tally.last_evaluation,
        best_accuracy=tally.best_accuracy,
        traffic=tally.traffic,
        other_traffic=tally.other,
        lost_traffic=tally.lost,
        gradient_evaluations=tally.gradient_evaluations,
        seconds=state.elapsed_s,
        rounds_missed=dict(sorted(tally.rounds_missed.items())),
        not_delivered=dict(ended.not_delivered),
        exchange_traffic=tally.exchange_traffic,
        examples=dict(sorted(state.known_clients.items())) if len(state.known_clients) <= MOST_CLIENTS else {},
        doubtful_labels=dict(sorted(state.label_doubts.found.items())),
    )
