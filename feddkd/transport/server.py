"""The gRPC server: admits clients and moves messages; what they mean is its inbox's business.

One asyncio loop in a thread of its own serves all clients. The sessions, and everything the inbox does,
live on that loop; other threads reach it through `call`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import threading
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from feddkd.errors import AddressInUseError, ProtocolError
from feddkd.traffic import Traffic
from feddkd.transport.frames import CLIENT_ID, PROTOCOL_VERSION, SERVICE, Chunk, decode_chunk, is_chunk
from feddkd.transport.options import SERVER_OPTIONS
from feddkd.transport.pb import federation_pb2 as pb
from feddkd.transport.sessions import Session, Stream

logger = logging.getLogger(__name__)

HELLO_TIMEOUT_S = 10.0
"""Seconds a new stream has to say whose it is."""

STREAM_END_TIMEOUT_S = 5.0
"""Seconds that cancelled streams have to come to their end when the server stops."""

MAX_SESSIONS = 100_000
MAX_INSTANCE_ID_BYTES = 64
MAX_EXAMPLES = 2**53
"""Example counts are weights in float64; beyond this they would not be exact."""

_T = TypeVar("_T")

Context = grpc.aio.ServicerContext[bytes, bytes]


class Inbox(Protocol):
    """What becomes of the clients' messages. Called on the server's loop; none of these may raise for bad input.

    The methods that take `size_bytes`, the size of the serialized message, count it.
    """

    traffic_outside: Traffic

    def connected(self, session: Session) -> None:
        """The client's stream is open."""

    def disconnected(self, session: Session) -> None:
        """The client's stream is gone; another may follow."""

    def answered(self, session: Session, answer: pb.Answer, size_bytes: int) -> None:
        """An answer begins."""

    async def received(self, session: Session, chunk: Chunk, size_bytes: int) -> None:
        """A chunk of the last answer; not returning holds the client back."""

    def failed(self, session: Session, failure: pb.Failure, size_bytes: int) -> None:
        """The client cannot do the work."""


class FederationServer:
    """Serves feddkd.v1.FederationService on one port."""

    def __init__(self, manifest: pb.Manifest, inbox: Inbox) -> None:
        self._manifest = manifest
        self._inbox = inbox
        self._sessions: dict[str, Session] = {}
        self._streams: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="feddkd-server", daemon=True)
        self._server: grpc.aio.Server | None = None

    def start(self, host: str, port: int, credentials: grpc.ServerCredentials | None = None) -> int:
        """Listen, and return the port: the one asked for, or a free one for port 0.

        Raises:
            AddressInUseError: the address is taken, or is not one of this machine's.
        """
        self._thread.start()
        try:
            return self.call(self._start(host, port, credentials)).result()
        except AddressInUseError:
            self.stop()
            raise

    def call(self, coroutine: Coroutine[Any, Any, _T]) -> Future[_T]:
        """Run a coroutine on the server's loop, from any other thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def stop(self, grace_s: float = 0.0) -> None:
        """Let streams end for `grace_s` seconds, then cut them off and stop the loop."""
        if self._server is not None:
            self.call(self._server.stop(grace_s)).result()
            self.call(_ended(self._streams)).result()
            self._server = None
        if self._thread.is_alive():
            self.call(_cancel_others()).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()

    def session(self, client_id: str) -> Session | None:
        """The session of a client that has joined. On the loop only."""
        return self._sessions.get(client_id)

    def sessions(self) -> list[Session]:
        """All sessions, in client order. From any thread: the copy is one step of the interpreter."""
        sessions = list(self._sessions.values())
        return sorted(sessions, key=lambda session: session.client_id)

    async def _start(self, host: str, port: int, credentials: grpc.ServerCredentials | None) -> int:
        server = grpc.aio.server(options=SERVER_OPTIONS)
        server.add_generic_rpc_handlers((self._handlers(),))
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
        except RuntimeError as error:
            raise AddressInUseError(f"cannot listen on {address}: the port is taken or the address is not this machine's") from error
        await server.start()
        self._server = server
        return bound

    def _handlers(self) -> grpc.GenericRpcHandler:
        """Unary calls go through protobuf; the stream is raw bytes, so that chunks are framed without copies."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Describe": grpc.unary_unary_rpc_method_handler(
                    self._describe, pb.DescribeRequest.FromString, pb.DescribeResponse.SerializeToString
                ),
                "Join": grpc.unary_unary_rpc_method_handler(self._join, pb.JoinRequest.FromString, pb.JoinResponse.SerializeToString),
                "Participate": grpc.stream_stream_rpc_method_handler(self._participate, None, None),
            },
        )

    async def _describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:
        await _check_version(request.protocol_version, context)
        response = pb.DescribeResponse(manifest=self._manifest)
        self._count(request.ByteSize(), response.ByteSize())
        return response

    async def _join(self, request: pb.JoinRequest, context: Context) -> pb.JoinResponse:
        await _check_version(request.protocol_version, context)
        if not CLIENT_ID.fullmatch(request.client_id):
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"client id {request.client_id[:64]!r} is not 1 to 64 of a-z 0-9 . _ - that begin with a letter or digit",
            )
        if not 1 <= request.num_examples <= MAX_EXAMPLES:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{request.num_examples} examples; a client needs at least 1")
        if len(request.instance_id.encode()) > MAX_INSTANCE_ID_BYTES:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"an instance id of more than {MAX_INSTANCE_ID_BYTES} bytes")
        known = self._sessions.get(request.client_id)
        if known is None and len(self._sessions) >= MAX_SESSIONS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MAX_SESSIONS} clients have joined; no more are admitted")
        if known is not None and known.stream is not None and known.instance_id != request.instance_id:
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, f"another process takes part as {request.client_id!r}")
        if known is not None:
            self._supersede(known)
        session = Session(request.client_id, request.num_examples, request.instance_id)
        self._sessions[session.client_id] = session
        logger.info("%s joined with %d examples (feddkd %s)", session.client_id, session.num_examples, request.software_version[:32])
        response = pb.JoinResponse(manifest=self._manifest, session_token=session.token)
        self._count(request.ByteSize(), response.ByteSize())
        return response

    def _count(self, up_bytes: int, down_bytes: int) -> None:
        self._inbox.traffic_outside.wire_bytes_up += up_bytes
        self._inbox.traffic_outside.wire_bytes_down += down_bytes

    async def _participate(self, _: AsyncIterator[bytes], context: Context) -> None:
        """Read and write one client's stream until either side ends it."""
        if (this := asyncio.current_task()) is not None:
            self._streams.add(this)
            this.add_done_callback(self._streams.discard)
        session = await self._identify(context)
        stream = session.stream = Stream()
        self._inbox.connected(session)
        writer = asyncio.create_task(_write(stream, context))
        reader = asyncio.create_task(self._read(session, stream, context))
        superseded = asyncio.create_task(stream.superseded.wait())
        tasks: tuple[asyncio.Task[Any], ...] = (reader, writer, superseded)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if superseded.done():
                await context.abort(grpc.StatusCode.ABORTED, f"{session.client_id!r} opened a newer stream")
            for task in (reader, writer):
                if task.done():
                    await task
        except ProtocolError as error:
            logger.warning("%s broke the protocol: %s", session.client_id, error)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except grpc.aio.BaseError as error:
            logger.info("the stream of %s ended: %s", session.client_id, error)
        finally:
            for task in tasks:
                task.cancel()  # from here on the reader hands over nothing
            if session.stream is stream:  # before any wait: gRPC may cancel this handler there, and nobody would ever know
                session.stream = None
                self._inbox.disconnected(session)
            await asyncio.wait(tasks)

    async def _identify(self, context: Context) -> Session:
        """The session that the stream's first message names."""
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                message = await context.read()
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"no message within {HELLO_TIMEOUT_S:g} s of opening the stream")
        request = pb.ParticipateRequest()
        with contextlib.suppress(DecodeError):
            request = pb.ParticipateRequest.FromString(message if isinstance(message, bytes) else b"")
        token = request.hello.session_token.encode()
        session = next((session for session in self._sessions.values() if secrets.compare_digest(session.token.encode(), token)), None)
        if session is None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the first message of the stream names no session; join first")
        assert session is not None
        self._inbox.traffic_outside.wire_bytes_up += len(message)
        self._supersede(session)
        return session

    def _supersede(self, session: Session) -> None:
        """End the stream of a client that comes again: its old connection may be dead without anyone having noticed."""
        stream, session.stream = session.stream, None
        if stream is not None:
            stream.superseded.set()
            self._inbox.disconnected(session)

    async def _read(self, session: Session, stream: Stream, context: Context) -> None:
        """Hand every message to the inbox, until a newer stream takes over. Raises ProtocolError for one that breaks the contract."""
        while isinstance(message := await context.read(), bytes):  # anything else is gRPC's end of stream
            if session.stream is not stream:
                self._inbox.traffic_outside.wire_bytes_up += len(message)
                return
            if is_chunk(message):
                await self._inbox.received(session, decode_chunk(message), len(message))
                continue
            try:
                request = pb.ParticipateRequest.FromString(message)
            except DecodeError:
                raise ProtocolError(f"a message of {len(message)} bytes is not a ParticipateRequest") from None
            match request.WhichOneof("message"):
                case "answer":
                    self._inbox.answered(session, request.answer, len(message))
                case "failure":
                    self._inbox.failed(session, request.failure, len(message))
                case other:
                    raise ProtocolError(f"a {other or 'empty'} message where an answer, a chunk or a failure may come")


async def _write(stream: Stream, context: Context) -> None:
    """Write what is sent to the client, and count it where it crosses into gRPC."""
    while (outgoing := await stream.outbox.get()) is not None:
        frames = iter(outgoing.frames)
        while outgoing.wanted() and (frame := next(frames, None)) is not None:
            outgoing.traffic().wire_bytes_down += len(frame)  # before the write: its answer may be read before it returns
            await context.write(frame)


async def _ended(streams: set[asyncio.Task[Any]]) -> None:
    """Let streams that gRPC has just cancelled come to their end: cancelled a second time they would be logged as failures."""
    if streams:
        await asyncio.wait(set(streams), timeout=STREAM_END_TIMEOUT_S)


async def _cancel_others() -> None:
    """End what still runs on the loop, for instance a wait for clients that nobody waits for any more."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _check_version(version: int, context: Context) -> None:
    if version != PROTOCOL_VERSION:
        await context.abort(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"the client speaks protocol version {version}, this server {PROTOCOL_VERSION}; install the same feddkd on both",
        )
