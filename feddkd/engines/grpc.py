"""Carries out exchanges over gRPC: pushes each to the clients' streams and reduces what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from feddkd.compression.constants import Constants
from feddkd.config import Config
from feddkd.engines.collection import max_evaluated
from feddkd.engines.grpc_exchange import GrpcExchange
from feddkd.engines.grpc_inbox import ExchangeInbox
from feddkd.engines.receipts import Receipt
from feddkd.engines.spool import CODE_MARGIN_BYTES, Spool
from feddkd.engines.traffic_mark import TrafficMark
from feddkd.errors import ConfigError, RunError, StateError
from feddkd.exchange import ExampleCounts, Exchange, ExchangeId, Outcome
from feddkd.failpoints import failpoint
from feddkd.memory import return_large_blocks
from feddkd.scheduler.engine import ClientStates, Engine
from feddkd.tensors import Schema
from feddkd.traffic import Meter, Traffic
from feddkd.transport.audit_sink import AuditSink, NoAudit
from feddkd.transport.messages import Verdict, farewell_message
from feddkd.transport.options import check_connections
from feddkd.transport.payload import schema_to_message
from feddkd.transport.pb import federation_pb2 as pb
from feddkd.transport.server import Admission, FederationServer
from feddkd.transport.server_security import OPEN, ServerSecurity
from feddkd.transport.sessions import Outgoing, Owner, Session

FAREWELL_GRACE_S = 5.0
"""Seconds for the last messages to reach the clients."""

RECEIPT_LINGER_S = 0.05
"""Seconds that receipts wait for the next work, to travel with it in one message."""


class GrpcEngine(ExchangeInbox, Engine):
    """Carries out exchanges over gRPC.

    The public methods are called from the scheduler's thread, or where they say so from any; everything else
    runs on the server's loop. What the server reports (`connected`, `replied`, ...) goes to the exchange that
    the client takes part in.
    """

    def __init__(
        self,
        config: Config,
        run_id: str,
        model_schema: Schema,
        spool_folder: Path | None = None,
        *,
        mark: Path | None = None,
        incarnation: int = 1,
        owners: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare to serve a run.

        Args:
            spool_folder: where contributions go that do not fit into `transport.staging_bytes`.
            mark: the file that keeps the wire bytes beyond this process, a `TrafficMark`; None to keep them nowhere.
            incarnation: counts the processes of the run's server; clients do not go back to an earlier one.
            owners: what `owners` returned in an earlier process: no other client gets these ids.

        Raises:
            StateError: the mark cannot be made, or an owner cannot be read.
        """
        self._config = config
        self._manifest = manifest = pb.Manifest(
            run_id=run_id,
            config_toml=config.shared_toml(),
            model=schema_to_message(model_schema),
            incarnation=incarnation,
        )
        self._mark = TrafficMark(mark, incarnation) if mark is not None else None
        super().__init__(run_id, Meter(mirror=self._mark.other if self._mark is not None else None))
        self._server = FederationServer(
            manifest,
            self,
            admission=_admission(config),
            write_stall_s=config.scheduler.stall_timeout_s,
            owners=_read_owners(owners or {}),
        )
        self._open: set[GrpcExchange] = set()
        self._aborted: RunError | None = None
        self._last_replies: dict[str, tuple[ExchangeId, float]] = {}
        self._spool = Spool(config.transport.staging_bytes, config.transport.chunk_bytes + CODE_MARGIN_BYTES, spool_folder)
        # One thread: each keeps a memory arena of its own, and blocks are written and reduced in order anyway.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="reduce")
        self._finished = False
        self._audit: AuditSink = NoAudit()

    # For the scheduler.

    def announce(self, constants: Constants) -> None:
        """Name the tensors of the network that do not travel in every round, before `start`."""
        self._manifest.constants.CopyFrom(schema_to_message(constants.schema))
        self._manifest.constants_sha256 = constants.version
        self._server.describe(self._manifest)

    def start(self, host: str, port: int, security: ServerSecurity = OPEN) -> int:
        """Listen, and return the port.

        Raises:
            AddressInUseError: the address is taken, or is not one of this machine's.
            ConfigError: this process may not open as many connections as there are clients.
        """
        return_large_blocks()
        scheduler = self._config.scheduler
        try:
            check_connections(scheduler.starting_clients, f"scheduler.{scheduler.key_of_starting_clients}")
        except ConfigError:
            self._server.stop()
            raise
        self._audit = security.audit
        return self._server.start(host, port, security)

    def clients(self) -> Mapping[str, ExampleCounts]:
        self.check_aborted()
        return self._server.call(self._clients()).result()

    def wait_for_clients(self, count: int, timeout_s: float | None) -> bool:
        self.check_aborted()
        return self._server.call(self._wait_until(lambda: self._num_staying() >= count, timeout_s)).result()

    def wait_for(self, clients: Collection[str], timeout_s: float) -> bool:
        self.check_aborted()
        return self._server.call(self._wait_until(lambda: all(map(self._is_connected, clients)), timeout_s)).result()

    def remember(self, counted: Mapping[str, ExchangeId]) -> None:
        self._server.call(self._remember(counted)).result()

    def begin(self, exchange: Exchange) -> PendingOutcome:
        self.check_aborted()
        return PendingOutcome(self, *self._server.call(self._begin(exchange)).result())

    def acknowledge(self, begun: GrpcExchange) -> None:
        """Send the receipts of an exchange that has closed. Raises RunError."""
        self._server.call(self._acknowledge(begun)).result()

    def owners(self) -> Mapping[str, str]:
        """Return what proves who owned each id; hashes, for a later process. From any thread."""
        return {client: owner.text for client, owner in self._server.owners().items()}

    @property
    def class_names(self) -> Sequence[str]:
        return self._server.classes.names

    def give_class_names(self, names: Sequence[str], told_by: str) -> None:
        """Take names as those of the run's classes, before any client joins; `told_by` says whose they are."""
        self._server.classes.give(names, told_by)

    def refused(self) -> Mapping[str, int]:
        return self._server.refused()

    def last_heard(self) -> Mapping[str, float]:
        return self._server.last_heard()

    def here(self) -> list[str]:
        return [] if self._finished else sorted(session.client_id for session in self._server.connected())

    def waiting_for(self) -> list[str]:
        return sorted(client for client, begun in dict(self.of_client).items() if begun.waits_for(client))

    def last_replies(self) -> Mapping[str, tuple[ExchangeId, float]]:
        return dict(self._last_replies)

    def answers(self, timeout_s: float) -> bool:
        return self._finished or self._server.answers(timeout_s)

    def states(self) -> ClientStates:
        if self._finished:
            return ClientStates()  # who has been let go is not lost
        connected, of_client = self._server.connected(), dict(self.of_client)
        working = sum(session.client_id in of_client and of_client[session.client_id].waits_for(session.client_id) for session in connected)
        return ClientStates(len(connected) - working, working, self.num_joined - len(connected))

    @property
    def num_joined(self) -> int:
        """Clients that have joined so far, connected or not."""
        return len(self._server.sessions())

    def other_traffic(self) -> Traffic:
        return self.other.traffic

    def check_aborted(self) -> None:
        if self._aborted is not None:
            raise self._aborted

    def abort(self, reason: str) -> None:
        if self._aborted is None:
            self._aborted = RunError(reason)
        if not self._finished:
            self._server.call(self._abort())

    def let_go(self, clients: Collection[str], reason: str) -> None:
        self._server.call(self._let_go(frozenset(clients), reason)).result()

    def finish(self, completed: bool, reason: str, paused: bool = False) -> None:
        if self._finished:
            return
        self._finished = True
        self._server.call(self._finish(completed, reason, paused)).result()
        self._server.stop(FAREWELL_GRACE_S)
        self._executor.shutdown()
        self._spool.close()

    # On the loop.

    async def _clients(self) -> dict[str, ExampleCounts]:
        present = self._server.present(self._config.scheduler.reconnect_grace_s)
        return {session.client_id: session.counts for session in present}

    async def _remember(self, counted: Mapping[str, ExchangeId]) -> None:
        self.receipts.remember(counted)
        self.receipts.answer_questions(self._server.session, self.current)

    def _num_staying(self) -> int:
        return sum(not session.leaves for session in self._server.connected())

    def _is_connected(self, client: str) -> bool:
        session = self._server.session(client)
        return session is not None and session.stream is not None and not session.leaves

    async def _wait_until(self, reached: Callable[[], bool], timeout_s: float | None) -> bool:
        """Look again whenever a client connects; False after the timeout."""
        try:
            async with asyncio.timeout(timeout_s):
                while not reached():
                    self.check_aborted()
                    self.joined.clear()
                    await self.joined.wait()
        except TimeoutError:
            return False
        self.check_aborted()
        return True

    async def _begin(self, exchange: Exchange) -> tuple[GrpcExchange, Future[Outcome]]:
        self.check_aborted()  # an abort may have reached the loop first
        if busy := [client for client in exchange.clients if client in self.of_client]:
            raise ValueError(f"{busy[0]} takes part in {self.of_client[busy[0]].exchange.id}, which is open")
        sessions = {client: self._server.session(client) for client in exchange.clients}
        holdout = self._config.data.holdout
        limits = {client: max_evaluated(session.counts.labelled, holdout) for client, session in sessions.items() if session is not None}
        meter = self._meter(exchange.id)
        transport = self._config.transport
        hashes_bytes = transport.contribution_hash == "sha256"
        begun = GrpcExchange(exchange, meter, self._spool, self._executor, transport.chunk_bytes, limits, hashes_bytes=hashes_bytes)
        self._open.add(begun)
        asked = self.receipts.begin(exchange.clients)
        self.of_client.update(dict.fromkeys(exchange.clients, begun))
        for client, session in sessions.items():
            if session is None or session.stream is None:
                begun.disconnected(client)
            else:
                begun.connected(session, asked.get(client))
        failpoint("engine.exchange.after_begin")
        outcome: Future[Outcome] = Future()
        begun.task = asyncio.create_task(self._complete(begun))
        # Not the task itself: one that is cancelled before it has started does nothing.
        begun.task.add_done_callback(lambda task: self._end(begun, task, outcome))
        return begun, outcome

    def _meter(self, exchange: ExchangeId) -> Meter:
        """Count the messages of an exchange that begins."""
        if self._mark is None:
            return Meter(self.other)
        if not self.of_client:  # none is open
            self._mark.begin(exchange)
        return Meter(self.other, self._mark.open)

    async def _complete(self, begun: GrpcExchange) -> Outcome:
        """Wait for an exchange's outcome."""
        reduced = await begun.run()
        failpoint("engine.exchange.before_outcome")
        self._last_replies.update({client: (begun.exchange.id, seconds) for client, seconds in begun.reply_seconds().items()})
        return begun.close(reduced, {session.client_id for session in self._server.connected()})

    def _end(self, begun: GrpcExchange, task: asyncio.Task[Outcome], outcome: Future[Outcome]) -> None:
        """Hand the outcome of an exchange to the thread that waits for it; let one that has none go."""
        begun.release()
        self._open.discard(begun)
        if task.cancelled() or task.exception() is not None:
            self._release_clients(begun)
        if task.cancelled():
            outcome.set_exception(self._aborted or RunError("the server stopped"))
        elif (error := task.exception()) is not None:  # for instance what a rule raises
            outcome.set_exception(error)
        else:
            outcome.set_result(task.result())

    async def _acknowledge(self, begun: GrpcExchange) -> None:
        self.check_aborted()
        failpoint("engine.acknowledge.before")
        if any(self.of_client.get(client) is begun for client in begun.exchange.clients):
            self._release_clients(begun)
            for receipt in begun.receipts:
                self._take_down(begun, receipt)
                self.receipts.send(receipt, self._server.session(receipt.client), _first_sent)
            asyncio.get_running_loop().call_later(RECEIPT_LINGER_S, self._flush, begun.exchange.clients)
            self.receipts.answer_questions(self._server.session, self.current)

    def _take_down(self, begun: GrpcExchange, receipt: Receipt) -> None:
        """Tell the audit log of a contribution that counts, now that the outcome is durable."""
        if receipt.judgement.verdict in (Verdict.VERDICT_OK, Verdict.VERDICT_DUPLICATE):
            size_bytes, digest = begun.content(receipt.client)
            self._audit.accepted(receipt.client, str(begun.exchange.id), size_bytes, digest)

    def _flush(self, clients: Iterable[str]) -> None:
        """Send what lingers for these clients."""
        for client in clients:
            if (session := self._server.session(client)) is not None:
                session.flush()

    def _release_clients(self, begun: GrpcExchange) -> None:
        for client in begun.exchange.clients:
            del self.of_client[client]

    async def _abort(self) -> None:
        self._server.take_no_more()
        self.joined.set()
        self.receipts.pause()
        for begun in self._open:
            if begun.task is not None:
                begun.task.cancel()

    async def _finish(self, completed: bool, reason: str, paused: bool) -> None:
        self._server.take_no_more()
        self._say_farewell(self._server.connected(), farewell_message(completed, reason, paused))

    async def _let_go(self, clients: Collection[str], reason: str) -> None:
        sessions = [session for session in self._server.connected() if session.client_id in clients]
        self._say_farewell(sessions, farewell_message(completed=True, reason=reason))

    def _say_farewell(self, sessions: Iterable[Session], message: bytes) -> None:
        for session in sessions:
            session.send(Outgoing((message,), self.other))
            if session.stream is not None:
                session.stream.close()


class PendingOutcome:
    """An exchange that is open on the server's loop."""

    def __init__(self, engine: GrpcEngine, begun: GrpcExchange, future: Future[Outcome]) -> None:
        self._engine = engine
        self._begun = begun
        self._future = future

    def outcome(self) -> Outcome:
        self._engine.check_aborted()
        return self._future.result()

    def acknowledge(self) -> None:
        self.outcome()
        self._engine.acknowledge(self._begun)


def _read_owners(texts: Mapping[str, str]) -> dict[str, Owner]:
    """Read who owns which client id. Raises StateError."""
    try:
        return {client: Owner.of_text(text) for client, text in texts.items()}
    except ValueError as error:
        raise StateError(str(error)) from error


def _first_sent() -> None:
    failpoint("engine.acknowledge.after_first")


def _admission(config: Config) -> Admission:
    named = config.scheduler.clients
    return Admission(
        expected=frozenset(named) if isinstance(named, list) else None,
        max_examples=config.scheduler.max_examples,
        max_examples_of=config.scheduler.max_examples_of,
        max_clients=config.scheduler.admitted_clients,
    )
