"""Runs the rounds: each is tried again when too few clients reply, and in the end the final model is delivered.

What happens goes into the journal as events, and the state of the run is the fold of these. A process
that goes on with the run of another one folds them first. It then runs the open round again: exchanges in
the journal return what they returned, and the first that is not there goes to the engine.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from feddkd.aggregator.rule import Rule
from feddkd.algorithms.base import Algorithm, Cohort
from feddkd.algorithms.snapshot import Snapshot
from feddkd.config import Config
from feddkd.errors import NotFiniteError, PausedError, RoundError, StateError
from feddkd.exchange import DELIVER, DELIVER_KIND, Evaluation, ExampleCounts, Exchange, ExchangeKind
from feddkd.failpoints import failpoint
from feddkd.models.initial import WholeModel, with_run
from feddkd.scheduler.cohort import Account, Attempt, RoundCohort
from feddkd.scheduler.downlink import Downlink
from feddkd.scheduler.engine import Engine
from feddkd.scheduler.events import (
    DeliveryStarted,
    RoundFailed,
    RoundFinished,
    RoundStarted,
    RunFinished,
    RunStarted,
)
from feddkd.scheduler.journal import Journal, NoJournal
from feddkd.scheduler.large_clients import LargeClients
from feddkd.scheduler.lingering import OVER, deliver_late
from feddkd.scheduler.observers import Observers
from feddkd.scheduler.plan import ExchangePlan
from feddkd.scheduler.records import Observer, RunRecord
from feddkd.scheduler.rule_book import RuleBook
from feddkd.scheduler.run_log import Checkpoint, RunLog
from feddkd.scheduler.selection import select_cohort
from feddkd.scheduler.state import RunState
from feddkd.tasks.categorical import CategoricalTask
from feddkd.tasks.metrics import OF_CLASSIFICATION, TaskMetrics
from feddkd.tensors import Tensors
from feddkd.text import clock_time

logger = logging.getLogger(__name__)

Evaluator = Callable[[Tensors, Callable[[], None]], Evaluation]
"""Evaluates a global model on the server's test set; calls the second argument often, which raises if the run was aborted."""

CohortLayer = Callable[[Cohort], Cohort]
"""Stands around a round's cohort: sees every payload on its way down and every reduced contribution on its way up."""

LARGEST_LOSS = 1e4
"""Cross-entropy on the test set, in nats, beyond which a model is ruined: no training leads back from it."""

LARGEST = 1e30
"""Likewise for tasks whose losses have a unit, as squared errors do."""

MOST_NAMED = 5
"""Clients that a line names."""

SHARE_FOR_STEPS = 0.5
"""With a cohort of less than this share of the clients, a round's model is sent whole rather than as a step."""


@dataclass(frozen=True, slots=True)
class Extensions:
    """What stands around the rounds of a run; by default nothing.

    Attributes:
        rule: reduces contributions in place of what `[aggregation]` names.
        layers: stand around each round's cohort, the first outermost.
        journal: keeps the events of the run; the run goes on after those that it holds already.
        linger_s: seconds to stay for clients that were away for the delivery.
        whole: what belongs to the network besides the model that travels.
        metrics: of the task.
    """

    rule: Rule | None = None
    layers: Sequence[CohortLayer] = ()
    journal: Journal = field(default_factory=NoJournal)
    linger_s: float = 0.0
    whole: WholeModel = field(default_factory=WholeModel)
    metrics: TaskMetrics = OF_CLASSIFICATION


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
        self._evaluator = evaluator
        self._rules = RuleBook(config.aggregation, extensions.rule)
        self._downlink = Downlink(config)
        self._layers = extensions.layers
        self._linger_s = extensions.linger_s
        self._whole = with_run(extensions.whole, run_id)
        self._metrics = extensions.metrics
        self._state = RunState(run_id, config.scheduler.quorum)
        self._state.keeps_best = config.scheduler.deliver == "best"
        self._log = RunLog(extensions.journal, self._state, observers)
        self._large_clients = LargeClients()
        self._others_until_s = 0.0

    def run(self, model: Tensors) -> RunRecord:
        """Take the initial model through all rounds, deliver the final one, and say farewell to the clients.

        Raises:
            PausedError: too few clients were there, or replied, for longer than the configuration allows.
            RunError: the run was aborted.
        """
        self._log.tell(lambda observer: observer.engine_ready(self._engine))
        self._log.tell(lambda observer: observer.model_known(self._whole))
        try:
            if self._log.take_in_history():
                model = self._take_up(model)
            if self._state.ended is None:
                self._wait_for_clients()
                while not self._is_over:
                    model = self._run_round(self._state.rounds_done + 1, model)
                model = self._end(model)
            else:
                model = self._final(model)
                self._linger(model, self._state.not_delivered.keys())
        finally:
            self._log.tell(*self._state.close())
        self._log.prune()
        record = self._state.record(model)
        self._log.tell(lambda observer: observer.run_done(record))
        return record

    @property
    def _is_over(self) -> bool:
        """Whether all rounds are done, or no other one is needed. A round that was begun is taken to its end."""
        state = self._state
        if state.rounds_done >= self._config.rounds or state.stopped:
            return True
        is_begun = state.open is not None or state.failed_attempts > 0
        return not is_begun and bool(state.evaluated.reason_to_stop(self._config))

    def _take_up(self, model: Tensors) -> Tensors:
        """Go on where another process stopped; returns the model of the last finished round, or the initial one.

        Raises:
            StateError: the run began with other constants.
        """
        state = self._state
        if state.has_started and state.constants != self._whole.constants.version.hex():
            raise StateError(
                "the network's frozen parameters and constant buffers are not those that this run began with: "
                "has the code of model.name, or the file model.init, changed?"
            )
        last = next(reversed(state.open.outcomes), None) if state.open is not None else None
        rounds, done = self._config.rounds, state.rounds_done
        self._log.tell(lambda observer: observer.run_resumed(state.run_id, rounds, done, state.incarnation, last))
        left = self._log.checkpoint(model.schema)
        if left is not None:
            self._algorithm.load_state_dict(left.algorithm)
            self._downlink.load(left.codecs)
            self._rules.load(left.rules)
            model = self._downlink.lent(left.model)
            self._log.tell(lambda observer: observer.round_finished(state.rounds_done, model))
        if state.failed_attempts:
            self._downlink.forget(codes=state.codes)
        return model

    def _wait_for_clients(self) -> None:
        """Wait for the clients that round 1 begins with, or for those of the round that was open."""
        config, state = self._config.scheduler, self._state
        if not state.has_started:
            self._engine.wait_for_clients(config.starting_clients, None)
            constants = self._whole.constants.version.hex()
            self._log.happen(RunStarted(self._config.rounds, self._engine.clients(), self._new_owners(), constants))
            return
        self._engine.remember(state.replied)
        # Those that have the final model may have heard the farewell, and come no more.
        timeout_s = config.reconnect_grace_s if state.is_delivered else config.resume_grace_s
        here = self._engine.clients()
        if away := [client for client in sorted(state.members) if client not in here]:
            why = f"waiting until {clock_time(timeout_s)} for {_named(away)} to come back"
            self._log.tell(lambda observer: observer.waiting(why))
        if not self._engine.wait_for(sorted(state.members), timeout_s):
            logger.warning("not all clients of the open round are back after %g s", timeout_s)
        self._others_until_s = time.monotonic() + timeout_s if state.open is not None else 0.0

    def _wait_for_others(self) -> None:
        """Let the clients that are not in the round that was open come back before the next cohort is drawn."""
        left_s, self._others_until_s = self._others_until_s - time.monotonic(), 0.0
        if left_s > 0:
            self._engine.wait_for(sorted(self._state.available), left_s)

    def _run_round(self, number: int, model: Tensors) -> Tensors:
        """Take the global model of one round to that of the next."""
        failing_since: float | None = None
        rules = self._rules.state()
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
                    self._rules.load(rules)
                    self._downlink.forget()
                    failing_since = failing_since or time.monotonic()
                    self._round_failed(number, error, failing_since)
        finished = RoundFinished(
            round=number,
            evaluation=evaluation,
            clients_reported=cohort.clients_reported,
            clients_missing=self._absent(available) | cohort.clients_missing,
            notes=cohort.notes,
            examples=cohort.examples,
        )
        left = Checkpoint(new_model, self._algorithm.state_dict(), self._downlink.state(), self._rules.state())
        self._log.finish_round(finished, left)
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
        largest = LARGEST_LOSS if isinstance(self._metrics.task, CategoricalTask) else LARGEST
        if not evaluation.loss <= largest:  # also where it is NaN
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
        self._log.happen(RoundFailed(number, attempt, str(error), self._downlink.codes))
        connected = len(self._engine.clients())
        if error.silent and not error.connection_lost:
            raise PausedError(f"{error}; another attempt would wait just as long")
        if (attempt + 1) % (config.retries + 1) != 0:
            return
        if connected >= config.quorum and not error.connection_lost:
            self._log.tell(lambda observer: observer.paused(str(error)))
            raise PausedError(f"{error}; {connected} clients are connected, so waiting for more would not help")
        if time.monotonic() - failing_since > config.pause_timeout_s:
            raise PausedError(f"{error}; the round has failed for longer than scheduler.pause_timeout_s = {config.pause_timeout_s:g}")
        self._pause(str(error))

    def _end(self, model: Tensors) -> Tensors:
        """Deliver the final model, and let the clients go.

        Args:
            model: of the last round.

        Returns:
            The model that was delivered.
        """
        self._start_delivery()
        model = self._final(model)
        over = f"the run stopped early: {self._state.stopped}" if self._state.stopped else OVER
        not_delivered = self._deliver(model)
        if not_delivered:
            self._engine.let_go([client for client in self._state.members if client not in not_delivered], over)
            if missed := not_delivered.keys() - self._state.delivered_late:
                self._linger(model, missed)
        failpoint("scheduler.run.before_finish")
        self._engine.finish(completed=True, reason=over)
        # Last: a process that is started after a crash before it says farewell again to those who missed it.
        self._log.happen(RunFinished(self._engine.other_traffic(), not_delivered))
        failpoint("scheduler.run.after_finish")
        return model

    def _start_delivery(self) -> None:
        """Decide which model clients get, unless an earlier process did."""
        state, config = self._state, self._config
        if state.delivering:
            return
        self._wait_for_others()
        clients = self._engine.clients()
        best = state.evaluated.best if config.scheduler.deliver == "best" else None
        number = best.round if best is not None and best.round != state.rounds_done else 0
        stopped = state.evaluated.reason_to_stop(config) if state.rounds_done < config.rounds else ""
        self._log.happen(DeliveryStarted(clients, self._absent(clients), number, stopped))

    def _final(self, model: Tensors) -> Tensors:
        """Return the model that clients get; `model` is that of the last round. Raises StateError."""
        return self._log.best_model(model.schema) if self._state.delivered_round else model

    def _deliver(self, model: Tensors) -> dict[str, str]:
        """Give every client the final model; returns why each of the others did not get it."""
        begun = self._state.open
        assert begun is not None
        attempt = Attempt(self._state.run_id, self._state.rounds, 0)
        cohort = self._cohort(attempt, begun.cohort, begun.cohort, self._delivery(model), min_clients=0)
        outcome = cohort.report(DELIVER, model)
        return dict(begun.absent) | {client: missing.reason for client, missing in outcome.missing.items()}

    def _linger(self, model: Tensors, missed: Collection[str]) -> None:
        """Stay for clients that were away for the delivery."""
        if self._linger_s > 0:
            who = _named(sorted(missed)) if missed else "clients that come"
            why = f"all rounds are done; lingering until {clock_time(self._linger_s)} to give the final model to {who}"
            self._log.tell(lambda observer: observer.waiting(why))
        last = Attempt(self._state.run_id, self._state.rounds, self._state.late_deliveries).exchange(DELIVER, 0)
        for event in deliver_late(self._engine, self._delivery(model), last, model, missed, self._linger_s):
            self._log.happen(event)

    def _delivery(self, model: Tensors) -> ExchangePlan:
        return self._plan({DELIVER: DELIVER_KIND}, model)

    def _plan(self, kinds: Mapping[str, ExchangeKind], model: Tensors) -> ExchangePlan:
        return ExchangePlan(self._config, kinds, model.schema, self._rules, self._downlink, self._whole.constants, self._metrics)

    def _select(self, model: Tensors, number: int) -> tuple[RoundCohort, Mapping[str, ExampleCounts]]:
        """Draw the cohort of an attempt; also returns the example counts of all clients that are available.

        An attempt that the journal holds goes on with the cohort that it had.
        """
        config = self._config.scheduler
        plan = self._plan(self._algorithm.exchanges(self._config), model)
        begun = self._state.open
        if begun is None:
            self._log.check_space(model.schema)
            self._wait_for_others()
            attempt = self._state.failed_attempts
            if (connected := len(self._engine.clients())) < config.quorum:
                self._pause(f"round {number} needs {config.quorum} clients, {connected} are connected")
            available = self._engine.clients()
            chosen = select_cohort(config, list(available), self._config.seed, number, attempt)
            # What is as it was is not written again: with thousands of clients it would be most of the journal.
            event = RoundStarted(
                number,
                attempt,
                cohort=None if len(chosen) == len(available) else tuple(chosen),
                available=None if dict(available) == dict(self._state.available) else available,
                codes=self._downlink.codes,
                owners=self._new_owners(),
            )
            self._log.happen(event)
            begun = self._state.open
            assert begun is not None
        self._large_clients.warn(plan, begun.available)
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
        self._log.carry_out(exchange, account, self._engine.carry_out)

    def _absent(self, available: Mapping[str, ExampleCounts]) -> dict[str, str]:
        """Clients that belong to the federation and were not there when a round began."""
        named = self._config.scheduler.clients
        expected = named if isinstance(named, list) else sorted(self._state.known_clients)
        return {client: "not connected" for client in expected if client not in available}

    def _pause(self, reason: str) -> None:
        """Wait until enough clients are connected. Raises PausedError if they do not come in time."""
        config = self._config.scheduler
        away = sorted(self._absent(self._engine.clients()))
        missing = f"; missing: {_named(away)}" if away else ""
        until = f"the run ends at {clock_time(config.pause_timeout_s)} (scheduler.pause_timeout_s = {config.pause_timeout_s:g})"
        self._log.tell(lambda observer: observer.paused(f"{reason}{missing}; if nobody comes, {until}"))
        if not self._engine.wait_for_clients(config.quorum, config.pause_timeout_s):
            raise PausedError(f"{reason}; no other client joined within scheduler.pause_timeout_s = {config.pause_timeout_s:g}")


def _named(clients: Sequence[str]) -> str:
    """The first clients, and how many more there are."""
    return ", ".join(clients[:MOST_NAMED]) + (f" and {len(clients) - MOST_NAMED} more" if len(clients) > MOST_NAMED else "")
