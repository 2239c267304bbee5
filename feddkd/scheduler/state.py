"""Computes the state of a run from its events (a fold). It owns every total."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from feddkd.errors import StateError
from feddkd.exchange import DELIVER, Evaluation, ExampleCounts, ExchangeId
from feddkd.log_events import about
from feddkd.scheduler.attendance import Attendance
from feddkd.scheduler.evaluated import Evaluated
from feddkd.scheduler.events import (
    Counts,
    DeliveredLate,
    DeliveryStarted,
    ExchangeDone,
    Resumed,
    RoundFailed,
    RoundFinished,
    RoundStarted,
    RunFinished,
    RunStarted,
)
from feddkd.scheduler.journal import Entry
from feddkd.scheduler.records import ExchangeRecord, Observer, RoundRecord, RunRecord
from feddkd.scheduler.sites import MOST_CLIENTS, LabelDoubts
from feddkd.scheduler.tally import FinishedRound, RoundTally, RunTally
from feddkd.tensors import Tensors
from feddkd.traffic import Traffic

logger = logging.getLogger(__name__)

Told = Callable[[Observer], None]
"""What observers are told: called with each of them."""

CHECKPOINTS = 2
"""Finished rounds whose model and state are kept: should the newest be damaged, there is one before it."""


@dataclass(slots=True)
class OpenAttempt:
    """An attempt at a round, or at the delivery, that has begun.

    Attributes:
        outcomes: names of the blobs of its exchanges' outcomes, in order.
    """

    attempt: int
    cohort: Counts
    available: Counts
    absent: Mapping[str, str] = field(default_factory=dict)
    outcomes: dict[ExchangeId, str] = field(default_factory=dict)


class RunState:
    """The state of a run after its events so far.

    Attributes:
        run_id: names the run.
        has_started: whether the clients that round 1 waits for were there.
        constants: names the network's constants, as in `RunStarted`.
        rounds: how many are planned.
        rounds_done: how many have a model.
        failed_attempts: at the round after those.
        codes: broadcasts that were encoded before the attempt that is open or comes next.
        available: the examples of the clients that were there last.
        spent: wire bytes of earlier processes on exchanges that are not done yet, or not any more.
        open: the attempt or the delivery that has begun, if one has.
        delivering: whether that is the delivery.
        checkpoints: the last finished rounds, the newest last.
        ended: the last event of a finished run.
        tally: what adds up over the run.
        known_clients: the examples of each client that was there, as it said last.
        owners: what proves who owns which client id.
        label_doubts: sites whose labels may be wrong.
        outliers: clients whose contributions stood out in several exchanges in a row, and in which round that was first so.
        delivered_late: clients that were away for the delivery and have the model now.
        late_deliveries: how often it was delivered to such clients.
        replied: the last exchange that each client's reply counted in.
        incarnation: counts the processes of the run.
        elapsed_s: seconds that they have worked on it.
        evaluated: the accuracy of its rounds.
        attendance: in which rounds each client took part.
        started_s: seconds since 1970 when round 1 began; 0 before that.
        ended_s: likewise when the run was finished.
        keeps_best: whether the model of the best of these is needed later.
        delivered_round: whose model is delivered, if not the last one's; else 0.
        stopped: why the run ends before all of its rounds; empty if it does not.
    """

    def __init__(self, run_id: str, quorum: int) -> None:
        """Begin before the first event.

        Args:
            quorum: replies with which an exchange succeeds.
        """
        self.run_id = run_id
        self.has_started = False
        self.constants = ""
        self.rounds = 0
        self.rounds_done = 0
        self.failed_attempts = 0
        self.codes = 0
        self.spent: dict[ExchangeId, Traffic] = {}
        self.open: OpenAttempt | None = None
        self.delivering = False
        self.checkpoints: list[RoundFinished] = []
        self.ended: RunFinished | None = None
        self.tally = RunTally()
        self.known_clients: dict[str, ExampleCounts] = {}
        self.owners: dict[str, str] = {}
        self.label_doubts = LabelDoubts()
        self.outliers: dict[str, int] = {}
        self.delivered_late: set[str] = set()
        self.late_deliveries = 0
        self.replied: dict[str, ExchangeId] = {}
        self.incarnation = 1
        self.elapsed_s = 0.0
        self.evaluated = Evaluated()
        self.attendance = Attendance()
        self.started_s = self.ended_s = 0.0
        self.keeps_best = False
        self.delivered_round = 0
        self.stopped = ""
        self._quorum = quorum
        self._round_tally = RoundTally()
        self._round_started_s = 0.0
        self._finished: FinishedRound | None = None
        self.available: Counts = {}
        self._members: set[str] = set()

    @property
    def is_delivered(self) -> bool:
        """Whether the final model was delivered, and nothing is left but the farewell."""
        return self.delivering and self.open is not None and bool(self.open.outcomes)

    @property
    def traffic(self) -> Traffic:
        """All bytes that are known so far."""
        return sum(self.spent.values(), self.tally.traffic + self.tally.other)

    @property
    def not_delivered(self) -> dict[str, str]:
        """Why each client that took part in a finished run does not have its model."""
        assert self.ended is not None
        return {client: why for client, why in self.ended.not_delivered.items() if client not in self.delivered_late}

    @property
    def members(self) -> set[str]:
        """The clients of the open attempt, once its first exchange is done those that replied; else those that were there last."""
        return self._members if self.open is not None else set(self.available)

    @property
    def blobs(self) -> set[str]:
        """Names of the blobs that resuming needs."""
        kept = {name for event in self.checkpoints for name in (event.model, event.state)}
        if self.evaluated.best is not None and (self.keeps_best or self.delivered_round):
            kept.add(self.evaluated.best.model)
        return kept | (set(self.open.outcomes.values()) if self.open is not None else set())

    @property
    def final_model(self) -> str:
        """Name the blob of the model that the run has come to; empty if there is none."""
        if self.delivered_round and self.evaluated.best is not None:
            return self.evaluated.best.model
        return self.checkpoints[-1].model if self.checkpoints else ""

    def apply(self, entry: Entry) -> list[Told]:
        """Take in the next event; returns what observers are told of it, in order.

        Raises:
            StateError: it cannot come after those before it.
        """
        told = list(self._apply(entry))
        self.elapsed_s = entry.at_s
        return told

    def _apply(self, entry: Entry) -> Iterator[Told]:
        at_s, time_s = entry.at_s, entry.time
        match event := entry.event:
            case RunStarted():
                self.started_s = time_s
                self.has_started, self.rounds, self.constants = True, event.rounds, event.constants
                self.owners.update(event.owners)
                yield from self._see_clients(event.available)
                yield lambda observer: observer.run_started(self.run_id, event.rounds)
            case Resumed():
                self._resume(event)
            case RoundStarted():
                yield from self._start_round(event, at_s)
            case ExchangeDone():
                yield from self._add_exchange(event, time_s)
            case RoundFailed():
                _check(self.open is not None, f"round {event.round} fails before it was begun")
                self.open = None
                self.failed_attempts, self.codes = event.attempt + 1, event.codes
                self._round_tally.start_again()
                yield lambda observer: observer.round_failed(event.round, event.attempt, event.reason)
            case RoundFinished():
                yield from self._finish_round(event, entry)
            case DeliveryStarted():
                _check(self.rounds_done > 0, "the model of no round is delivered")
                self.delivering, self.late_deliveries = True, 0
                self.delivered_late.clear()
                self._members = set(event.cohort)
                self.delivered_round, self.stopped = event.round, event.stopped
                self.rounds = self.rounds_done if event.stopped else self.rounds
                self.open = OpenAttempt(0, event.cohort, event.cohort, event.absent)
            case DeliveredLate():
                _check(self.delivering or self.ended is not None, f"{event.exchange} comes before the delivery that it repeats")
                self.late_deliveries = event.exchange.attempt
                self.delivered_late.update(event.clients)
                self.tally.other += event.traffic
            case RunFinished():
                _check(self.delivering, "the run is finished before its model was delivered")
                yield from self.close()
                self.open, self.delivering = None, False
                self.ended, self.ended_s = event, time_s
                self.tally.other += event.other
                self._give_up_spent()

    def _see_clients(self, available: Counts) -> Iterator[Told]:
        self.known_clients.update(available)
        self.available = available
        yield lambda observer: observer.clients_available(available)

    def _resume(self, event: Resumed) -> None:
        self.incarnation = event.incarnation
        if not self.stopped:  # else it has all the rounds that it will have
            if event.rounds > self.rounds_done and (self.delivering or self.ended is not None):
                self.ended, self.delivering, self.open = None, False, None  # more rounds come before the delivery now
                self.delivered_round = 0
            self.rounds = event.rounds
        self.owners.update(event.owners)
        for exchange, traffic in event.spent:
            self.spent[exchange] = self.spent.get(exchange, Traffic()) + traffic
        self.tally.other += event.other

    def _give_up_spent(self) -> None:
        """Bytes of exchanges that were not begun again were of no use."""
        for traffic in self.spent.values():
            self.tally.other += traffic
            self.tally.lost += traffic
        self.spent.clear()

    def _start_round(self, event: RoundStarted, at_s: float) -> Iterator[Told]:
        _check(event.round == self.rounds_done + 1, f"round {event.round} begins after round {self.rounds_done}")
        if self._round_started_s == 0.0:
            self._round_started_s = at_s
        available = self.available if event.available is None else event.available
        cohort = available if event.cohort is None else {client: available[client] for client in event.cohort if client in available}
        self.open = OpenAttempt(event.attempt, cohort, available)
        self.codes = event.codes
        self.owners.update(event.owners)
        self._members = set(cohort)
        yield from self._see_clients(available)
        yield lambda observer: observer.round_started(event.round, event.attempt, len(cohort))

    def _add_exchange(self, event: ExchangeDone, time_s: float) -> Iterator[Told]:
        record = dataclasses.replace(event.record, done_s=time_s)
        if self.open is None:
            raise StateError(f"{record.id} is done before it was started")
        self.open.outcomes[record.id] = event.outcome
        self.spent.pop(record.id, None)
        self.tally.add_exchange(record)
        if record.id.name != DELIVER:
            self._round_tally.add(record)
        self.label_doubts.see(record.id.round, record.by_client)
        self._name_outliers(record)
        replied = self._members - set(record.clients_missing)
        self.replied.update(dict.fromkeys(replied, record.id))
        if len(self.open.outcomes) == 1:
            self._members = replied  # later exchanges ask no other client
            if record.id.name != DELIVER:
                self.attendance.see(record.id.round, sorted(replied), time_s)
        yield lambda observer: observer.exchange_done(record)
        if record.id.name == DELIVER and self._finished is not None:
            self._finished.traffic += record.traffic
            self._finished.lost += record.lost
        # The first broadcast after a round carried its model, and the replies what the clients think of it; too few
        # replies are not their opinion, and the broadcast will be repeated.
        if record.id.name == DELIVER or record.clients_reported >= self._quorum:
            is_of_last = record.id.name != DELIVER or not self.delivered_round
            yield from self.close(record.client_evaluation if is_of_last else None)

    def _name_outliers(self, record: ExchangeRecord) -> None:
        for client in record.named_outliers:
            if client in self.outliers or len(self.outliers) >= MOST_CLIENTS:
                continue
            self.outliers[client] = record.id.round
            found = about("outlier_named", client=client, exchange=record.id.name, round=record.id.round)
            message = "%s: the contributions of %s stood out in %d exchanges in a row: far longer than those of others, or far from them"
            logger.warning(message, record.id, client, record.outliers[client], extra=found)

    def _finish_round(self, event: RoundFinished, entry: Entry) -> Iterator[Told]:
        follows = event.round == self.rounds_done + 1 and self.open is not None
        _check(follows, f"round {event.round} ends after round {self.rounds_done}, or before it was begun")
        self.rounds_done, self.failed_attempts, self.open = event.round, 0, None
        self.checkpoints = [*self.checkpoints, event][-CHECKPOINTS:]
        tally, self._round_tally = self._round_tally, RoundTally()
        self._finished = FinishedRound(
            event.round,
            event.evaluation,
            tally.traffic,
            tally.lost,
            entry.at_s - self._round_started_s,
            event.clients_reported,
            event.clients_missing,
            tally.gradient_evaluations,
            tally.metrics | dict(event.notes),
            event.examples,
            entry.time,
        )
        self._round_started_s = 0.0
        evaluation = event.evaluation
        if evaluation is not None:
            self.evaluated.see(event, evaluation)
            yield lambda observer: observer.round_evaluated(event.round, evaluation)

    def close(self, client_evaluation: Evaluation | None = None) -> Iterator[Told]:
        """Tell of the last finished round, once everything about it is known."""
        if self._finished is None:
            return
        finished, self._finished = self._finished, None
        evaluation = finished.evaluation or client_evaluation
        if finished.evaluation is None and client_evaluation is not None:
            self.evaluated.see(next(event for event in self.checkpoints if event.round == finished.number), client_evaluation)
        self.tally.add_round(finished, evaluation)
        record = RoundRecord(
            round=finished.number,
            evaluation=evaluation,
            client_evaluation=client_evaluation,
            traffic=finished.traffic,
            lost=finished.lost,
            cumulative_wire_bytes=self.tally.cumulative_wire_bytes,
            seconds=finished.seconds,
            clients_reported=finished.clients_reported,
            clients_missing=finished.clients_missing,
            gradient_evaluations=finished.gradient_evaluations,
            metrics=finished.metrics,
            examples=finished.examples,
            done_s=finished.done_s,
        )
        yield lambda observer: observer.round_done(record)

    def record(self, model: Tensors) -> RunRecord:
        """Sum up a finished run.

        Args:
            model: the final one.
        """
        tally = self.tally
        return RunRecord(
            run_id=self.run_id,
            rounds=self.rounds_done,
            model=model,
            final_evaluation=self.evaluated.evaluation if self.delivered_round else tally.last_evaluation,
            best_accuracy=tally.best_accuracy,
            traffic=tally.traffic,
            other_traffic=tally.other,
            lost_traffic=tally.lost,
            gradient_evaluations=tally.gradient_evaluations,
            seconds=self.elapsed_s,
            rounds_missed=dict(sorted(tally.rounds_missed.items())),
            not_delivered=self.not_delivered,
            exchange_traffic=tally.exchange_traffic,
            examples=dict(sorted(self.known_clients.items())) if len(self.known_clients) <= MOST_CLIENTS else {},
            doubtful_labels=dict(sorted(self.label_doubts.found.items())),
            outliers=dict(sorted(self.outliers.items())),
            best_round=self.evaluated.best.round if self.evaluated.best is not None else None,
            delivered_round=self.delivered_round or None,
            stopped=self.stopped,
            presence=dict(sorted(self.attendance.known.items())) if len(self.attendance.known) <= MOST_CLIENTS else {},
            started_s=self.started_s,
            ended_s=self.ended_s,
            best_evaluation=self.evaluated.evaluation,
        )


def _check(can_follow: bool, message: str) -> None:
    """Refuse an event that cannot come after those before it. Raises StateError."""
    if not can_follow:
        raise StateError(message)


def fold(entries: Iterable[Entry], run_id: str, quorum: int) -> RunState:
    """Fold all events of a run without notifying observers."""
    state = RunState(run_id, quorum)
    for entry in entries:
        state.apply(entry)
    return state
