"""The log of a run: its journal, the state that its events fold to, and the observers that are told of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from feddkd.compression.broadcaster_state import BroadcasterState
from feddkd.exchange import Exchange, ExchangeId, Outcome
from feddkd.failpoints import failpoint
from feddkd.scheduler import checkpoint, outcomes
from feddkd.scheduler.cohort import Account
from feddkd.scheduler.doubt_log import DoubtLog
from feddkd.scheduler.events import Event, ExchangeDone, RoundFinished
from feddkd.scheduler.journal import Entry, Journal
from feddkd.scheduler.metric_names import MetricNames
from feddkd.scheduler.observers import Observers
from feddkd.scheduler.records import Observer
from feddkd.scheduler.rule_book import RuleState
from feddkd.scheduler.state import RunState, Told
from feddkd.tensors import Schema, Tensors
from feddkd.traffic import Traffic


@dataclasses.dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state after a finished round, from which the next one starts.

    Attributes:
        algorithm: what `Algorithm.state_dict` returned.
        codecs: what `Downlink.state` returned.
        rules: what `RuleBook.state` returned.
    """

    model: Tensors
    algorithm: Mapping[str, Tensor]
    codecs: BroadcasterState
    rules: RuleState


class RunLog:
    """Appends an event, folds it, and notifies the observers, in this order.

    Attributes:
        state: what the run has come to.
    """

    def __init__(self, journal: Journal, state: RunState, observers: Observers | Iterable[Observer]) -> None:
        """Prepare; nothing is read or told yet."""
        self.state = state
        self._journal = journal
        self._observers = Observers.of(observers)
        self._doubts = DoubtLog(state)
        self._metric_names = MetricNames()
        self._recalled: Mapping[ExchangeId, str] = {}
        self._unkept: dict[int, Tensors] = {}  # models that no journal keeps, by round

    def take_in_history(self) -> bool:
        """Fold the events of earlier processes; observers are told of them as they were then.

        Returns whether there are any. Raises StateError if they do not fit together.
        """
        has_history = bool(self._journal.entries)
        for entry in self._journal.entries:
            for told in self.state.apply(entry):
                self._observers.tell(told, history=True)
            if isinstance(entry.event, ExchangeDone):
                self._metric_names.add(entry.event.record.metrics)
        self._recalled = dict(self.state.open.outcomes) if self.state.open is not None else {}
        self._doubts = DoubtLog(self.state)
        self._journal.release()
        return has_history

    def checkpoint(self, schema: Schema) -> Checkpoint | None:
        """Load what the last finished round left; None if there is none.

        Args:
            schema: of the model.

        Raises:
            StateError: it cannot be read.
            SchemaError: it is of another model.
        """
        if not self.state.checkpoints:
            return None
        newest = self.state.checkpoints[-1]
        model = Tensors.copy_of(schema, self._journal.load(newest.model).tensors)
        return Checkpoint(model, *checkpoint.decode(self._journal.load(newest.state)))

    def best_model(self, schema: Schema) -> Tensors:
        """Return the model of the best evaluated round. Raises StateError if it cannot be read."""
        best = self.state.evaluated.best
        assert best is not None
        if not best.model:
            return self._unkept[best.round]
        return Tensors.copy_of(schema, self._journal.load(best.model).tensors)

    def happen(self, event: Event) -> None:
        """Keep an event, take it in, and tell the observers. Raises StateError."""
        entry = self._journal.append(event)
        self.tell(*self._take_in(entry))

    def _take_in(self, entry: Entry) -> list[Told]:
        told = self.state.apply(entry)
        self._doubts.warn(entry.event)
        return told

    def finish_round(self, event: RoundFinished, left: Checkpoint) -> None:
        """Keep a finished round and what it leaves to the next one. Raises StateError."""
        failpoint("scheduler.round.before_checkpoint")
        model = self._journal.store(*checkpoint.encode_model(left.model), checkpoint=True)
        state = self._journal.store(*checkpoint.encode(left.algorithm, left.codecs, left.rules), checkpoint=True)
        entry = self._journal.append(dataclasses.replace(event, model=model, state=state))
        failpoint("scheduler.round.after_checkpoint")
        if self.state.keeps_best and not model:
            self._unkept[event.round] = Tensors.copy_of(left.model.schema, left.model)
        self.tell(lambda observer: observer.round_finished(event.round, left.model), *self._take_in(entry))
        self.prune()

    def carry_out(self, exchange: Exchange, account: Account, engine: Callable[[Exchange, Callable[[Outcome], None]], object]) -> None:
        """Take what the journal holds of an exchange, or else let the engine carry it out.

        Args:
            account: makes the record of the outcome.
            engine: `Engine.carry_out`; clients may forget their replies once the outcome is in the journal.

        Raises:
            RunError: the run was aborted, or the outcome cannot be kept.
        """
        name = self._recalled.get(exchange.id)
        if name is not None:
            record = account(self._with_known_metrics(outcomes.decode(self._journal.load(name), exchange)))
            self.tell(lambda observer: observer.exchange_recalled(record))
            return

        def keep(outcome: Outcome) -> None:
            failpoint("scheduler.exchange.before_append")
            outcome = dataclasses.replace(outcome, traffic=outcome.traffic + self.state.spent.get(exchange.id, Traffic()))
            name = self._journal.store(*outcomes.encode(outcome))
            self.happen(ExchangeDone(account(self._with_known_metrics(outcome)), name))
            failpoint("scheduler.exchange.after_append")

        self.tell(lambda observer: observer.exchange_begun(exchange.id, exchange.clients))
        engine(exchange, keep)

    def _with_known_metrics(self, outcome: Outcome) -> Outcome:
        replies = {client: self._metric_names.known(reply) for client, reply in outcome.replies.items()}
        return dataclasses.replace(outcome, replies=replies)

    def check_space(self, model: Schema) -> None:
        """Check that a round fits on the disk, before it begins. Raises StateError."""
        self._journal.check_space(model.size_bytes)

    def prune(self) -> None:
        """Delete what neither this process nor a later one needs."""
        self._journal.prune(self.state.blobs)
        best, newest = self.state.evaluated.best, self.state.rounds_done
        for number in [number for number in self._unkept if number < newest and (best is None or number != best.round)]:
            del self._unkept[number]

    def tell(self, *events: Told) -> None:
        """Tell the observers."""
        for event in events:
            self._observers.tell(event)
