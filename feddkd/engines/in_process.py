"""Carries out exchanges in this process: the reference, every client one after another, in client order.

Payloads are encoded, checked, computed on, collected and reduced by the same code as over gRPC, and counted
as the messages that gRPC would have moved. Only the network and the clock are missing: no client is late. A client
that is not in this process is missing, as one that never connects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Self

from feddkd.client.work import TaskRunner
from feddkd.engines.collection import Collection, max_evaluated
from feddkd.engines.fold import Fold
from feddkd.engines.local_clients import LocalClients, work_of
from feddkd.engines.spool import CODE_MARGIN_BYTES, Spool
from feddkd.engines.timeless_exchange import NOW, TimelessExchange
from feddkd.errors import RunError
from feddkd.exchange import ExampleCounts, Exchange, ExchangeId, Outcome
from feddkd.failpoints import failpoint
from feddkd.scheduler.engine import ClientStates, Engine
from feddkd.traffic import Traffic


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
        carried = TimelessExchange(self._collection, self._chunk_bytes)
        here = [client for client in self.exchange.clients if self._engine.has(client)]
        for client in self.exchange.clients:
            if client in here:
                for _ in carried.taking(client, self._asked(client, carried)):
                    pass
            else:
                self._collection.disconnect(client, NOW)
        carried.give_up_absent()
        if carried.fold is not None:
            self._reduce(carried.fold)
        return carried.close(here)

    def _asked(self, client: str, carried: TimelessExchange) -> Iterable[bytes]:
        """Send the broadcast to a client, whole if it lacks what a step leads from; return its reply's messages."""
        local = self._engine.local
        sent = carried.send(client, has_constants=local.has_constants(client, self.exchange.constants.version))
        while (messages := local.reply_of(client, work_of(sent.message), sent.payload.frames())) is None:
            sent = carried.send_whole(client)
        return messages

    def _reduce(self, fold: Fold) -> None:
        """Reduce all contributions."""
        while not fold.finished:
            step = fold.next_step()
            assert step is not None, "every client has settled"
            try:
                step()
            finally:
                fold.step_done()
            self._engine.check_aborted()
