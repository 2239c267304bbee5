"""The agent: joins a server, holds the stream open, hands work to the worker and returns its answers.

Messages are read on the event loop while the worker computes in a thread, so that a closed exchange is
noticed at once. The last answer is kept until the server has acknowledged it: after a lost connection
it is sent again, not computed again.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import secrets
from collections.abc import Coroutine
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

import grpc

from feddkd.client.backoff import Backoff
from feddkd.errors import CancelledError, FedDKDError, ProtocolError, RefusedError, UnreachableError
from feddkd.exchange import ExchangeId, Reply, Task
from feddkd.tensors import Schema, Tensors
from feddkd.transport.client import ServerConnection, ServerStream, parse_response
from feddkd.transport.frames import decode_chunk, is_chunk
from feddkd.transport.messages import Verdict, answer_message, failure_message, id_from_message
from feddkd.transport.payload import Assembly, Payload, schema_from_message
from feddkd.transport.pb import federation_pb2 as pb

logger = logging.getLogger(__name__)


class TaskRunner(Protocol):
    """What the agent needs of a worker."""

    @property
    def num_examples(self) -> int:
        """The weight of the client's contributions."""

    @property
    def model_schema(self) -> Schema:
        """The model this client computes with."""

    def broadcast_schema(self, exchange: str) -> Schema:
        """What the server may send in an exchange. Raises ClientError for one it does not know."""

    def carry_out(self, task: Task) -> Reply:
        """Compute the client's part of an exchange."""


@dataclass(frozen=True, slots=True)
class SentAnswer:
    """An answer that the server has not acknowledged yet; `work_digest` is of the broadcast it answers."""

    exchange: ExchangeId
    work_digest: bytes
    header: bytes
    payload: Payload | None


class Agent:
    """One client of a federation."""

    def __init__(
        self,
        address: str,
        client_id: str,
        worker: TaskRunner,
        executor: Executor,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        retry_for_s: float | None = None,
    ) -> None:
        """Args:
        executor: computes; several agents of a process may share one of a single thread.
        retry_for_s: seconds to keep trying a server that does not answer; None for ever.
        """
        self._address = address
        self._client_id = client_id
        self._worker = worker
        self._executor = executor
        self._credentials = credentials
        self._instance_id = secrets.token_hex(8)
        self._backoff = Backoff(client_id, retry_for_s)
        self._server_config: str | None = None
        self._task: Task | None = None
        self._work: tuple[pb.Work, Assembly] | None = None
        self._computing = set[asyncio.Task[None]]()
        self._answer: SentAnswer | None = None
        self._sending = asyncio.Lock()

    async def run(self) -> pb.Farewell:
        """Take part until the server says farewell.

        Raises:
            UnreachableError: the server did not answer for `retry_for_s` seconds.
            RefusedError: the server turned this client away.
        """
        async with ServerConnection(self._address, self._credentials) as server:
            while True:
                try:
                    return await self._take_part(server)
                except UnreachableError as error:
                    await self._backoff.wait(error)
                finally:
                    self._cancel_work()

    async def _take_part(self, server: ServerConnection) -> pb.Farewell:
        """Join and follow the stream until the farewell. Raises UnreachableError when the connection breaks."""
        joined = await server.join(self._client_id, self._worker.num_examples, self._instance_id)
        self._check_manifest(joined.manifest)
        async with server.participate(joined.session_token) as stream:
            async for message in stream.messages():
                self._backoff.reset()
                if is_chunk(message):
                    self._receive(message, stream)
                    continue
                try:
                    response = parse_response(message)
                except ProtocolError as error:
                    raise UnreachableError(f"server {self._address}: {error}") from None
                match response.WhichOneof("message"):
                    case "work":
                        await self._begin(response.work, stream)
                    case "receipt":
                        self._settle(response.receipt)
                    case "resend":
                        await self._send_again(response.resend, stream)
                    case "farewell":
                        return response.farewell
        raise UnreachableError(f"server {self._address}: it ended the stream")

    def _check_manifest(self, manifest: pb.Manifest) -> None:
        """Refuse to compute with settings that are not the server's. Raises RefusedError."""
        if self._server_config not in (None, manifest.config_toml):
            raise RefusedError(f"server {self._address} now runs another configuration; start this client again to take part in it")
        self._server_config = manifest.config_toml
        try:
            schema_from_message(manifest.model).check_same(self._worker.model_schema)
        except ProtocolError as error:
            raise RefusedError(f"this client's model is not the server's: {error}") from None

    async def _begin(self, work: pb.Work, stream: ServerStream) -> None:
        """Prepare to receive the broadcast of an exchange; whatever was in hand is no longer wanted."""
        self._cancel_work()
        exchange = id_from_message(work.id)
        try:
            assembly = Assembly(work.payload, self._worker.broadcast_schema(exchange.name))
        except FedDKDError as error:
            await self._report_failure(exchange, str(error), stream)
            return
        self._work = work, assembly
        if assembly.complete:
            self._compute(work, assembly.tensors, stream)

    def _receive(self, message: bytes, stream: ServerStream) -> None:
        """Add a chunk to the broadcast; once it is whole, compute."""
        if self._work is None:
            return
        work, assembly = self._work
        try:
            assembly.add(decode_chunk(message))
        except ProtocolError as error:
            # Damage on the way: a new stream starts the exchange over.
            raise UnreachableError(f"server {self._address}: {error}") from None
        if assembly.complete:
            self._compute(work, assembly.tensors, stream)

    def _compute(self, work: pb.Work, payload: Tensors, stream: ServerStream) -> None:
        self._work = None
        self._start(self._carry_out(work, payload, stream))

    async def _carry_out(self, work: pb.Work, payload: Tensors, stream: ServerStream) -> None:
        """Compute the answer in the executor and send it, unless it is at hand from before the connection broke."""
        exchange = id_from_message(work.id)
        known = self._answer
        try:
            if known is None or known.exchange != exchange or known.work_digest != work.payload.digest:
                self._task = task = Task(exchange, payload, work.evaluate)
                reply = await asyncio.get_running_loop().run_in_executor(self._executor, self._worker.carry_out, task)
                task.check_cancelled()
                contribution = Payload(reply.contribution, work.payload.chunk_bytes) if reply.contribution is not None else None
                header = answer_message(exchange, reply, contribution)
                self._answer = known = SentAnswer(exchange, work.payload.digest, header, contribution)
            await self._send(known, stream)
        except CancelledError as error:
            logger.info("%s: %s", self._client_id, error)
        except UnreachableError as error:
            logger.info("%s: the answer to %s is kept: %s", self._client_id, exchange, error)
        except Exception as error:  # models and data are the user's: whatever they raise is this client's failure alone
            logger.exception("%s: %s failed", self._client_id, exchange)
            await self._report_failure(exchange, f"{type(error).__name__}: {error}", stream)

    async def _send(self, answer: SentAnswer, stream: ServerStream) -> None:
        """Write the answer, as long as it is the one that the server waits for.

        A write must run to its end, because gRPC ends the stream with a write that is cancelled.
        """
        async with self._sending:
            frames = answer.payload.frames() if answer.payload is not None else ()
            await stream.send(itertools.takewhile(lambda _: self._answer is answer, itertools.chain((answer.header,), frames)))

    async def _send_again(self, resend: pb.Resend, stream: ServerStream) -> None:
        """The server had used part of the answer when another client was lost; it needs it from the start."""
        exchange = id_from_message(resend.id)
        if self._answer is not None and self._answer.exchange == exchange:
            self._answer = answer = dataclasses.replace(self._answer)  # another object: what is being written of the old one ends
            self._start(self._send(answer, stream))
        else:
            await self._report_failure(exchange, "the answer is no longer at hand", stream)

    def _settle(self, receipt: pb.Receipt) -> None:
        """Learn what became of an answer; it need not be kept any longer."""
        exchange = id_from_message(receipt.id)
        if receipt.verdict not in (Verdict.VERDICT_OK, Verdict.VERDICT_DUPLICATE):
            logger.warning("%s: not counted in %s: %s", self._client_id, exchange, receipt.reason)
            if self._task is not None and self._task.id == exchange:
                self._task.cancelled.set()
        if self._answer is not None and self._answer.exchange == exchange:
            self._answer = None

    async def _report_failure(self, exchange: ExchangeId, reason: str, stream: ServerStream) -> None:
        logger.warning("%s: cannot take part in %s: %s", self._client_id, exchange, reason)
        await stream.send((failure_message(exchange, reason),))

    def _cancel_work(self) -> None:
        """Let go of the exchange in hand: a computation stops at its next batch, and its answer goes nowhere."""
        self._work = None
        if self._task is not None:
            self._task.cancelled.set()
            self._task = None

    def _start(self, coroutine: Coroutine[None, None, None]) -> None:
        """Run beside the reading of messages; the loop itself keeps only weak references to its tasks."""
        running = asyncio.create_task(_unless_unreachable(coroutine))
        self._computing.add(running)
        running.add_done_callback(self._computing.discard)


async def _unless_unreachable(coroutine: Coroutine[None, None, None]) -> None:
    """A broken connection is the business of whoever reads the stream."""
    with contextlib.suppress(UnreachableError):
        await coroutine
