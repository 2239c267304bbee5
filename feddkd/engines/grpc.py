"""The real engine: pushes each exchange to the clients' streams and reduces what comes back."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import grpc

from feddkd.aggregator.weighted_mean import Rule, WeightedMean
from feddkd.config import Config
from feddkd.engines.intake import Intake
from feddkd.engines.upload import Progress, Upload
from feddkd.errors import RunError
from feddkd.exchange import ExchangeId
from feddkd.scheduler.engine import DISCONNECTED, NOT_CONNECTED, ClientStates, Exchange, Outcome, Report
from feddkd.tensors import Schema
from feddkd.traffic import Traffic
from feddkd.transport.frames import Chunk
from feddkd.transport.messages import (
    MAX_REASON_CHARACTERS,
    Verdict,
    farewell_message,
    id_from_message,
    receipt_message,
    resend_message,
    work_message,
)
from feddkd.transport.payload import Payload, schema_to_message
from feddkd.transport.pb import federation_pb2 as pb
from feddkd.transport.server import FederationServer
from feddkd.transport.sessions import Outgoing, Session

FAREWELL_GRACE_S = 5.0
"""Seconds for the last messages to reach the clients."""


class GrpcEngine:
    """Carries out exchanges over gRPC.

    The public methods are called from the scheduler's thread; everything else runs on the server's loop.
    """

    def __init__(self, config: Config, run_id: str, model_schema: Schema, rule: Rule = WeightedMean) -> None:
        self._config = config
        self._rule = rule
        manifest = pb.Manifest(run_id=run_id, config_toml=config.to_toml(), model=schema_to_message(model_schema))
        self.traffic_outside = Traffic()
        self._server = FederationServer(manifest, self)
        self._intake: Intake | None = None
        self._work: tuple[bytes, Payload] | None = None
        self._receiving: dict[str, Upload | None] = {}
        self._away: dict[str, asyncio.TimerHandle] = {}
        self._joined = asyncio.Event()
        self._aborted: RunError | None = None
        # One thread: each keeps a memory arena of its own, and chunks are reduced one after another anyway.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="reduce")
        self._finished = False

    def start(self, host: str, port: int, credentials: grpc.ServerCredentials | None = None) -> int:
        """Listen, and return the port. Raises AddressInUseError."""
        return self._server.start(host, port, credentials)

    def clients(self) -> Mapping[str, int]:
        return self._server.call(self._clients()).result()

    def wait_for_clients(self, count: int, timeout_s: float | None) -> bool:
        return self._server.call(self._wait_for_clients(count, timeout_s)).result()

    def carry_out(self, exchange: Exchange) -> Outcome:
        return self._server.call(self._carry_out(exchange)).result()

    def states(self) -> ClientStates:
        if self._finished:
            return ClientStates()  # who has been let go is not lost
        sessions, intake = self._server.sessions(), self._intake
        connected = [session.client_id for session in sessions if session.stream is not None]
        working = sum(map(intake.pending, connected)) if intake is not None else 0
        return ClientStates(len(connected) - working, working, len(sessions) - len(connected))

    @property
    def num_joined(self) -> int:
        """Clients that have joined so far, connected or not."""
        return len(self._server.sessions())

    def other_traffic(self) -> Traffic:
        return dataclasses.replace(self.traffic_outside)

    def finish(self, completed: bool, reason: str) -> None:
        if self._finished:
            return
        self._finished = True
        self._server.call(self._finish(completed, reason)).result()
        self._server.stop(FAREWELL_GRACE_S)
        self._executor.shutdown()

    def abort(self, reason: str) -> None:
        """Make the run fail at once, from any thread: nobody is left to wait for."""
        if not self._finished:
            self._server.call(self._abort(reason))

    async def _clients(self) -> dict[str, int]:
        return {session.client_id: session.num_examples for session in self._server.sessions() if session.stream is not None}

    async def _wait_for_clients(self, count: int, timeout_s: float | None) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                while len(await self._clients()) < count:
                    if self._aborted is not None:
                        raise self._aborted
                    self._joined.clear()
                    await self._joined.wait()
        except TimeoutError:
            return False
        return True

    async def _abort(self, reason: str) -> None:
        self._aborted = RunError(reason)
        self._joined.set()
        if self._intake is not None:
            for client in self._intake.uploads:
                self._intake.lose(client, reason)

    async def _carry_out(self, exchange: Exchange) -> Outcome:
        started = time.monotonic()
        chunk_bytes = self._config.transport.chunk_bytes
        payload = Payload(exchange.payload, chunk_bytes)
        intake = Intake(
            exchange.id,
            exchange.clients,
            exchange.answer_schema,
            rule=self._rule,
            chunk_bytes=chunk_bytes,
            staging_bytes=self._config.transport.staging_bytes,
            stall_timeout_s=self._config.scheduler.stall_timeout_s,
            ask_again=self._ask_again,
            executor=self._executor,
        )
        work = work_message(exchange.id, payload, evaluate=exchange.evaluate, deadline_s=exchange.deadline_s)
        self._intake, self._work = intake, (work, payload)
        for client in exchange.clients:
            session = self._server.session(client)
            if session is None or session.stream is None:
                intake.lose(client, NOT_CONNECTED)
            else:
                self._push(session)
        mean = await intake.reduce(exchange.deadline_s)
        self._send_receipts(intake)
        intake.open = False
        self._intake = self._work = None
        done = {client: upload for client, upload in intake.uploads.items() if upload.progress is Progress.COMPLETE}
        if exchange.answer_schema is not None:
            intake.traffic.payload_bytes_up += len(done) * exchange.answer_schema.size_bytes
        return Outcome(
            mean=mean,
            reports={client: Report.of(upload.numbers) for client, upload in done.items()},
            missing={client: upload.reason for client, upload in intake.uploads.items() if client not in done},
            traffic=dataclasses.replace(intake.traffic),
            seconds=time.monotonic() - started,
        )

    def _push(self, session: Session) -> None:
        """Send the open exchange's work, unless the exchange closes before all of it is written."""
        assert self._intake is not None
        assert self._work is not None
        intake = self._intake
        frames = _count_whole(*self._work, self._traffic_of(intake))
        session.send(Outgoing(frames, self._traffic_of(intake), wanted=lambda: intake.awaits(session.client_id)))

    def _send_receipts(self, intake: Intake) -> None:
        """Tell every client of the cohort how the exchange ended for it; counted now, so that the record is whole."""
        for client, upload in intake.uploads.items():
            session = self._server.session(client)
            if session is None or session.stream is None or upload.knows:
                continue
            if upload.progress is Progress.COMPLETE:
                message = receipt_message(intake.exchange, Verdict.VERDICT_OK)
            else:
                message = receipt_message(intake.exchange, Verdict.VERDICT_DEADLINE_EXCEEDED, upload.reason)
            intake.traffic.wire_bytes_down += len(message)
            session.send(Outgoing((message,), traffic=Traffic))

    def _ask_again(self, client: str) -> None:
        assert self._intake is not None
        session = self._server.session(client)
        if session is None or session.stream is None:
            self._allow_return(self._intake, client)
        else:
            session.send(Outgoing((resend_message(self._intake.exchange),), self._traffic_of(self._intake)))

    def _traffic_of(self, intake: Intake) -> Callable[[], Traffic]:
        """Where a frame of an exchange is counted: a straggler's belong to no exchange once the record is written."""
        return lambda: intake.traffic if intake.open else self.traffic_outside

    async def _finish(self, completed: bool, reason: str) -> None:
        message = farewell_message(completed, reason)
        for session in self._server.sessions():
            session.send(Outgoing((message,), lambda: self.traffic_outside))
            if session.stream is not None:
                session.stream.close()

    # What the server tells us, on its loop.

    def connected(self, session: Session) -> None:
        self._receiving[session.client_id] = None
        self._joined.set()
        self._is_back(session.client_id)
        if self._intake is not None and self._intake.awaits(session.client_id):
            self._push(session)

    def disconnected(self, session: Session) -> None:
        self._receiving.pop(session.client_id, None)
        intake = self._intake
        if intake is not None and intake.interrupt(session.client_id):
            self._allow_return(intake, session.client_id)

    def _allow_return(self, intake: Intake, client: str) -> None:
        """Leave out a client without connection, unless it comes back in time; each loss has its own time."""
        self._is_back(client)
        grace_s = self._config.scheduler.reconnect_grace_s
        self._away[client] = asyncio.get_running_loop().call_later(grace_s, self._give_up, intake, client)

    def _is_back(self, client: str) -> None:
        if (gives_up := self._away.pop(client, None)) is not None:
            gives_up.cancel()

    def _give_up(self, intake: Intake, client: str) -> None:
        del self._away[client]
        intake.lose(client, DISCONNECTED)

    def answered(self, session: Session, answer: pb.Answer, size_bytes: int) -> None:
        exchange = id_from_message(answer.id)
        self._receiving[session.client_id] = None
        if self._intake is None or self._intake.exchange != exchange:
            self._answer_to_closed(session, exchange, size_bytes)
            return
        self._intake.traffic.wire_bytes_up += size_bytes
        upload, receipt = self._intake.answered(session.client_id, answer)
        self._receiving[session.client_id] = upload
        if receipt is not None:
            session.send(Outgoing((receipt,), self._traffic_of(self._intake)))

    async def received(self, session: Session, chunk: Chunk, size_bytes: int) -> None:
        upload, intake = self._receiving.get(session.client_id), self._intake
        if upload is None or intake is None or intake.uploads.get(session.client_id) is not upload:
            self.traffic_outside.wire_bytes_up += size_bytes
            return
        intake.traffic.wire_bytes_up += size_bytes
        receipt = await intake.received(upload, chunk)
        if receipt is not None:
            session.send(Outgoing((receipt,), self._traffic_of(intake)))

    def failed(self, session: Session, failure: pb.Failure, size_bytes: int) -> None:
        exchange = id_from_message(failure.id)
        if self._intake is None or self._intake.exchange != exchange:
            self._answer_to_closed(session, exchange, size_bytes)
            return
        self._intake.traffic.wire_bytes_up += size_bytes
        self._intake.failed(session.client_id, failure.reason[:MAX_REASON_CHARACTERS] or "failed without a reason")

    def _answer_to_closed(self, session: Session, exchange: ExchangeId, size_bytes: int) -> None:
        """An answer to an exchange that is not open: say so, and where the run is."""
        self.traffic_outside.wire_bytes_up += size_bytes
        current = self._intake.exchange if self._intake is not None else None
        receipt = receipt_message(exchange, Verdict.VERDICT_FAILED_PRECONDITION, f"{exchange} is closed", current)
        session.send(Outgoing((receipt,), lambda: self.traffic_outside))


def _count_whole(work: bytes, payload: Payload, traffic: Callable[[], Traffic]) -> Iterator[bytes]:
    """The messages of a broadcast; its payload is counted as the last of them is handed to gRPC."""
    remaining = payload.num_frames
    for message in itertools.chain((work,), payload.frames()):
        if remaining == 0:
            traffic().payload_bytes_down += payload.size_bytes
        remaining -= 1
        yield message
