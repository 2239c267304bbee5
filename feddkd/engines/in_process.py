"""Carries out exchanges in this process: the reference, every client one after another, in client order.

Payloads are encoded, checked, computed on, collected and reduced by the same code as over gRPC, and counted
as the messages that gRPC would have moved. Only the network and the clock are missing: no client is late. A client
that is not in this process is missing, as one that never connects.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Self

from feddkd.client.work import TaskRunner
from feddkd.engines.collection import Arrival, Collection, Judgement, max_evaluated
from feddkd.engines.fold import Fold
from feddkd.engines.forms import Forms
from feddkd.engines.local_clients import LocalClients
from feddkd.engines.spool import CODE_MARGIN_BYTES, Spool
from feddkd.engines.useful import useful_traffic
from feddkd.errors import RunError
from feddkd.exchange import ExampleCounts, Exchange, ExchangeId, Outcome
from feddkd.failpoints import failpoint
from feddkd.scheduler.engine import ClientStates, Engine
from feddkd.tensors import Tensors
from feddkd.traffic import Meter, Traffic
from feddkd.transport.frames import decode_chunk
from feddkd.transport.messages import lacking_message, receipt_message
from feddkd.transport.pb import federation_pb2 as pb

NOW = 0.0
"""What the collection is told of the time: it does not pass."""


class InProcessEngine(Engine):
    """Carries out exchanges serially."""

    def __init__(
        self,
        clients: LocalClients | Mapping[str, TaskRunner],
        chunk_bytes: int,
        staging_bytes: int = 64 << 20,
        spool_folder: Path | None = None,
        *,
        holdout: float = 0.0,
    ) -> None:
        """Take in the clients.

        Args:
            clients: or their workers, by id.
            chunk_bytes: of tensor data in one message.
            staging_bytes: memory for contributions that wait to be reduced; more goes to a temporary file.
            spool_folder: where that file goes.
            holdout: `data.holdout`; bounds what a client can say that it has evaluated.
        """
        self.local = clients if isinstance(clients, LocalClients) else LocalClients(clients)
        self._chunk_bytes = chunk_bytes
        self._spool = Spool(staging_bytes, chunk_bytes + CODE_MARGIN_BYTES, spool_folder)
        self._holdout = holdout
        self._open: dict[str, InProcessExchange] = {}
        self._aborted: RunError | None = None
        self._finished = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.finish(completed=False, reason="the engine was closed")

    def clients(self) -> Mapping[str, ExampleCounts]:
        self.check_aborted()
        return {client: worker.counts for client, worker in self.local.workers.items()}

    def wait_for_clients(self, count: int, timeout_s: float | None) -> bool:
        self.check_aborted()
        return len(self.local.workers) >= count

    def remember(self, counted: Mapping[str, ExchangeId]) -> None:
        self.local.remember(counted)

    def begin(self, exchange: Exchange) -> InProcessExchange:
        self.check_aborted()
        if busy := [client for client in exchange.clients if client in self._open]:
            raise ValueError(f"{busy[0]} takes part in {self._open[busy[0]].exchange.id}, which is open")
        limits = {client: max_evaluated(worker.counts.labelled, self._holdout) for client, worker in self.local.workers.items()}
        collection = Collection(exchange, self._spool, chunk_bytes=self._chunk_bytes, now=NOW, max_evaluated=limits)
        begun = InProcessExchange(self, collection, self._chunk_bytes)
        self._open.update(dict.fromkeys(exchange.clients, begun))
        failpoint("engine.exchange.after_begin")
        return begun

    def other_traffic(self) -> Traffic:
        return Traffic()

    def states(self) -> ClientStates:
        if self._finished:
            return ClientStates()  # who has been let go is not lost
        open_exchanges = dict(self._open)
        working = sum(begun.waits_for(client) for client, begun in open_exchanges.items() if client in self.local.workers)
        return ClientStates(len(self.local.workers) - working, working)

    @property
    def class_names(self) -> Sequence[str]:
        return next((worker.class_names for worker in self.local.workers.values()), ())

    def last_heard(self) -> Mapping[str, float]:
        return dict.fromkeys(self.local.workers, 0.0)

    def abort(self, reason: str) -> None:
        if self._aborted is None:
            self._aborted = RunError(reason)
            self.local.abort(self._aborted)

    def check_aborted(self) -> None:
        if self._aborted is not None:
            raise self._aborted

    def finish(self, completed: bool, reason: str, paused: bool = False) -> None:
        """Give back the memory and the temporary file; nobody has to be told."""
        self._finished = True
        self._spool.close()

    def has(self, client: str) -> bool:
        """Return whether a client is in this process."""
        return client in self.local.workers

    def release_clients(self, exchange: Exchange) -> None:
        """Take in that an exchange is not open any more."""
        for client in exchange.clients:
            del self._open[client]


class InProcessExchange:
    """An exchange that is carried out when its outcome is asked for."""

    def __init__(self, engine: InProcessEngine, collection: Collection, chunk_bytes: int) -> None:
        self.exchange = collection.exchange
        self._engine = engine
        self._chunk_bytes = chunk_bytes
        self._collection = collection
        self._meter = Meter()
        self._outcome: Future[Outcome] = Future()
        self._is_open = True

    def waits_for(self, client: str) -> bool:
        """Return whether the client still has a reply to send. From any thread."""
        return self._collection.waits_for(client)

    def outcome(self) -> Outcome:
        self._engine.check_aborted()
        if not self._outcome.done():
            try:
                self._outcome.set_result(self._carry_out())
            except Exception as error:  # noqa: BLE001  # for instance what a rule raises: the same when asked again
                self._outcome.set_exception(error)
            finally:
                self._collection.close()
                if not self._outcome.done() or self._outcome.exception() is not None:
                    self._release()
        return self._outcome.result()

    def acknowledge(self) -> None:
        replies = self.outcome().replies
        failpoint("engine.acknowledge.before")
        if self._is_open:
            self._release()
            for client in self.exchange.clients:
                self._engine.local.settle(client, self.exchange.id, counted=client in replies)
                failpoint("engine.acknowledge.after_first")

    def _release(self) -> None:
        self._is_open = False
        self._engine.release_clients(self.exchange)

    def _carry_out(self) -> Outcome:
        started = time.monotonic()
        exchange, schema = self.exchange, self.exchange.reply_schema
        fold = Fold(self._collection, schema, self._chunk_bytes) if schema is not None else None
        forms = Forms(exchange, self._chunk_bytes)
        for client in exchange.clients:
            if not self._engine.has(client):
                self._collection.disconnect(client, NOW)
                continue
            self._take(client, self._sent(client, forms))
        while not self._collection.settled:  # clients that are not here
            self._collection.expire(self._collection.next_expiry())
        reduced, fault = self._reduce(fold) if fold is not None else (None, "")
        failpoint("engine.exchange.before_outcome")
        for client, judgement in self._collection.judgements():
            if self._engine.has(client):
                self._tell(judgement)
        replies = self._collection.replies()
        decode_s = 0.0
        if fold is not None:
            self._meter.payload_up(len(replies) * fold.code_bytes, dense_bytes=len(replies) * fold.dense_bytes)
            decode_s = fold.decode_s
        seconds = time.monotonic() - started
        useful = useful_traffic(self._collection, forms)
        return Outcome(reduced, replies, self._collection.missing(), self._meter.close(), seconds, fault, decode_s, useful)

    def _sent(self, client: str, forms: Forms) -> Iterable[bytes]:
        """Send the broadcast to a client, whole if it lacks what a step leads from; return its reply's messages."""
        if not self._engine.local.has_constants(client, self.exchange.constants.version):
            forms.include_constants(client)
        payload = forms.payload(client)
        self._meter.payload_down(payload.size_bytes, dense_bytes=forms.dense_bytes(client), snapshot=forms.is_snapshot(client))
        return self._sent_form(client, forms)

    def _sent_form(self, client: str, forms: Forms) -> Iterable[bytes]:
        """Send the broadcast in the form that a client can use, as far as that is known."""
        message, payload = forms.message(client), forms.payload(client)
        self._meter.down(len(message) + payload.frames_bytes)
        messages = self._engine.local.reply_of(client, pb.ParticipateResponse.FromString(message).work, payload.frames())
        if messages is not None:
            return messages
        self._meter.up(len(lacking_message(self.exchange.id)))
        assert forms.lacks(client), "a whole model builds on nothing"
        return self._sent_form(client, forms)

    def _take(self, client: str, messages: Iterable[bytes]) -> None:
        """Collect a client's messages."""
        frames = iter(messages)
        header = next(frames)
        self._meter.up(len(header))
        request = pb.ParticipateRequest.FromString(header)
        if request.HasField("failure"):
            self._collection.fail(client, request.failure.reason)
            return
        if (judgement := self._collection.reply(client, request.answer, NOW)) is not None:
            self._tell(judgement)
            return
        for frame in frames:
            self._meter.up(len(frame))
            match self._collection.accept(client, decode_chunk(frame)):
                case Arrival() as arrival:
                    arrival.write()
                    # Never refused: only an upload that was interrupted is looked at again.
                    self._collection.store(arrival, NOW)
                    failpoint("engine.reply.after_chunk")
                case Judgement() as judgement:
                    self._tell(judgement)
                    return

    def _reduce(self, fold: Fold) -> tuple[Tensors | None, str]:
        """Reduce all contributions; also return why they reduce to nothing of use, if they do."""
        while not fold.finished:
            step = fold.next_step()
            assert step is not None, "every client has settled"
            try:
                step()
            finally:
                fold.step_done()
            self._engine.check_aborted()
        return fold.result, fold.fault

    def _tell(self, judgement: Judgement) -> None:
        """Count what would be said to a client."""
        self._meter.down(len(receipt_message(self.exchange.id, judgement.verdict, judgement.reason)))
