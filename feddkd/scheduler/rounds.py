"""The run: one round after another, each retried when too few clients answer, and the final model delivered."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from feddkd.algorithms.base import Algorithm
from feddkd.config import Config
from feddkd.errors import PausedError, QuorumError
from feddkd.exchange import DELIVER, DELIVER_KIND, Evaluation, ExchangeKind
from feddkd.scheduler.cohort import RoundCohort
from feddkd.scheduler.engine import Engine
from feddkd.scheduler.journal import Journal, NoJournal
from feddkd.scheduler.records import ExchangeRecord, Observer, RoundRecord, RunRecord
from feddkd.scheduler.selection import select_cohort
from feddkd.tensors import Tensors
from feddkd.traffic import Traffic

Evaluator = Callable[[Tensors], Evaluation]
"""Evaluates a global model on the server's test set."""


@dataclass(slots=True)
class _FinishedRound:
    """A round whose model is known, but not yet what the clients think of it."""

    number: int
    evaluation: Evaluation | None
    traffic: Traffic
    seconds: float
    clients_reported: int
    gradient_evaluations: int
    metrics: Mapping[str, float]


class _RoundTally:
    """What adds up over the exchanges of a round: work over all attempts, metrics over the one that succeeds."""

    def __init__(self) -> None:
        self.gradient_evaluations = 0
        self._metrics: dict[str, list[float]] = {}

    def add(self, record: ExchangeRecord) -> None:
        self.gradient_evaluations += record.gradient_evaluations
        for name, value in record.metrics.items():
            self._metrics.setdefault(name, []).append(value)

    def start_again(self) -> None:
        """The attempt failed: its metrics describe no model."""
        self._metrics.clear()

    @property
    def metrics(self) -> dict[str, float]:
        return {name: math.fsum(values) / len(values) for name, values in self._metrics.items()}


class Scheduler:
    """Runs an algorithm on an engine."""

    def __init__(
        self,
        config: Config,
        algorithm: Algorithm,
        engine: Engine,
        *,
        run_id: str,
        observers: Sequence[Observer] = (),
        evaluator: Evaluator | None = None,
        journal: Journal | None = None,
    ) -> None:
        self._config = config
        self._algorithm = algorithm
        self._engine = engine
        self._run_id = run_id
        self._observers = observers
        self._evaluator = evaluator
        self._journal = journal or NoJournal()
        self._finished: _FinishedRound | None = None
        self._traffic = Traffic()
        self._tally = _RoundTally()
        self._gradient_evaluations = 0
        self._cumulative_wire_bytes = 0
        self._last_evaluation: Evaluation | None = None
        self._best_accuracy: float | None = None

    def run(self, model: Tensors) -> RunRecord:
        """Take the initial model through all rounds, deliver the final one, and say farewell to the clients.

        Raises:
            PausedError: too few clients were there, or answered, for longer than the configuration allows.
        """
        started = time.monotonic()
        self._tell(lambda observer: observer.engine_ready(self._engine))
        self._engine.wait_for_clients(self._config.scheduler.wait_for_clients or self._config.scheduler.min_clients, None)
        self._tell(lambda observer: observer.run_started(self._run_id, self._config.rounds))
        try:
            for number in range(1, self._config.rounds + 1):
                model = self._run_round(number, model)
            self._deliver(model)
        finally:
            self._close_round(None)
        self._engine.finish(completed=True, reason="all rounds are done")
        record = RunRecord(
            run_id=self._run_id,
            rounds=self._config.rounds,
            model=model,
            final_evaluation=self._last_evaluation,
            best_accuracy=self._best_accuracy,
            traffic=self._traffic,
            other_traffic=self._engine.other_traffic(),
            gradient_evaluations=self._gradient_evaluations,
            seconds=time.monotonic() - started,
        )
        self._tell(lambda observer: observer.run_done(record))
        return record

    def _run_round(self, number: int, model: Tensors) -> Tensors:
        """One round, tried again from its beginning while too few clients answer."""
        started, traffic, self._tally = time.monotonic(), Traffic(), _RoundTally()
        state = copy.deepcopy(self._algorithm.state_dict())
        for attempt in itertools.count():
            cohort = self._select(model, number, attempt)
            try:
                model = self._algorithm.run_round(cohort, model)
                break
            except QuorumError as error:
                self._algorithm.load_state_dict(copy.deepcopy(state))
                self._tally.start_again()
                self._round_failed(number, attempt, error)
            finally:
                traffic += cohort.traffic
        self._tell(lambda observer: observer.round_finished(number, model))
        evaluation = self._evaluate(number, model)
        self._finished = _FinishedRound(
            number,
            evaluation,
            traffic,
            time.monotonic() - started,
            cohort.clients_reported,
            self._tally.gradient_evaluations,
            self._tally.metrics,
        )
        return model

    def _round_failed(self, number: int, attempt: int, error: QuorumError) -> None:
        """Let the round be tried again, after a pause if it has been tried often enough.

        Raises:
            PausedError: the clients do not come, or they are all there and do not answer.
        """
        config = self._config.scheduler
        self._tell(lambda observer: observer.round_failed(number, attempt, str(error)))
        if (attempt + 1) % (config.retries + 1) != 0:
            return
        there = len(self._engine.clients())
        if there >= config.min_clients and not error.connection_lost:
            self._tell(lambda observer: observer.paused(str(error)))
            raise PausedError(f"{error}; {there} clients are connected, so waiting for more would not help")
        self._pause(str(error))

    def _deliver(self, model: Tensors) -> None:
        """Give every client the final model; those that are gone do without."""
        everyone = self._engine.clients()
        cohort = self._cohort(everyone, everyone, {DELIVER: DELIVER_KIND}, model, self._config.rounds, attempt=0, min_clients=0)
        cohort.report(DELIVER, model)

    def _select(self, model: Tensors, number: int, attempt: int) -> RoundCohort:
        config = self._config.scheduler
        if len(self._engine.clients()) < config.min_clients:
            self._pause(f"round {number} needs {config.min_clients} clients, {len(self._engine.clients())} are connected")
        available = self._engine.clients()
        chosen = select_cohort(config, list(available), self._config.seed, number, attempt)
        counts = {client: available[client] for client in chosen}
        self._tell(lambda observer: observer.round_started(number, attempt, len(counts)))
        return self._cohort(counts, available, self._algorithm.exchanges(self._config), model, number, attempt, config.min_clients)

    def _cohort(
        self,
        counts: Mapping[str, int],
        available: Mapping[str, int],
        kinds: Mapping[str, ExchangeKind],
        model: Tensors,
        number: int,
        attempt: int,
        min_clients: int,
    ) -> RoundCohort:
        return RoundCohort(
            self._engine,
            {client: self._weight(count) for client, count in counts.items()},
            math.fsum(self._weight(count) for count in available.values()),
            kinds,
            model.schema,
            run_id=self._run_id,
            round_number=number,
            attempt=attempt,
            min_clients=min_clients,
            deadline_s=self._config.scheduler.deadline_s,
            journal=self._journal,
            on_exchange=self._exchange_done,
        )

    def _weight(self, examples: int) -> float:
        return float(examples) if self._config.scheduler.weights == "examples" else 1.0

    def _pause(self, reason: str) -> None:
        """Wait until enough clients are connected. Raises PausedError if they do not come in time."""
        config = self._config.scheduler
        self._tell(lambda observer: observer.paused(reason))
        if not self._engine.wait_for_clients(config.min_clients, config.pause_timeout_s):
            raise PausedError(f"{reason}; nobody else came within scheduler.pause_timeout_s = {config.pause_timeout_s:g}")

    def _evaluate(self, number: int, model: Tensors) -> Evaluation | None:
        if self._evaluator is None:
            return None
        evaluation = self._evaluator(model)
        self._tell(lambda observer: observer.round_evaluated(number, evaluation))
        return evaluation

    def _exchange_done(self, record: ExchangeRecord) -> None:
        self._traffic += record.traffic
        self._gradient_evaluations += record.gradient_evaluations
        self._tally.add(record)
        self._tell(lambda observer: observer.exchange_done(record))
        if record.id.name == DELIVER and self._finished is not None:
            self._finished.traffic += record.traffic
        # The first broadcast after a round carried its model, and the answers what the clients think of it; too few
        # answers are not their opinion, and the broadcast will be repeated.
        if record.id.name == DELIVER or record.clients_reported >= self._config.scheduler.min_clients:
            self._close_round(record.client_evaluation)

    def _close_round(self, client_evaluation: Evaluation | None) -> None:
        """Tell the observers of the last finished round, once everything about it is known."""
        if self._finished is None:
            return
        finished, self._finished = self._finished, None
        evaluation = finished.evaluation or client_evaluation
        self._cumulative_wire_bytes += finished.traffic.wire_bytes
        if evaluation is not None:
            self._last_evaluation = evaluation
            self._best_accuracy = max(self._best_accuracy or 0.0, evaluation.accuracy)
        record = RoundRecord(
            round=finished.number,
            evaluation=evaluation,
            client_evaluation=client_evaluation,
            traffic=finished.traffic,
            cumulative_wire_bytes=self._cumulative_wire_bytes,
            seconds=finished.seconds,
            clients_reported=finished.clients_reported,
            gradient_evaluations=finished.gradient_evaluations,
            metrics=finished.metrics,
        )
        self._tell(lambda observer: observer.round_done(record))

    def _tell(self, event: Callable[[Observer], None]) -> None:
        for observer in self._observers:
            event(observer)
