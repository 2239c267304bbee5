"""Talks to a server as a client: asks what runs there, joins, and holds one stream open."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from feddkd import __version__
from feddkd.errors import HandshakeError, IdTakenError, ProtocolError, RefusedError, TransportError, UnreachableError
from feddkd.exchange import ExampleCounts
from feddkd.text import printable
from feddkd.transport.batches import MAX_BATCH_BYTES, MAX_BATCH_MESSAGES, messages_of, request_batch
from feddkd.transport.frames import PROTOCOL_VERSION, SERVICE
from feddkd.transport.messages import CLIENT_HEARTBEAT, Holding, hello_message
from feddkd.transport.options import client_options
from feddkd.transport.pb import federation_pb2 as pb
from feddkd.transport.proxy import proxy_for
from feddkd.transport.tls import ClientTls
from feddkd.transport.tls_problems import cause_of, handshake_problem, host_and_port, lasting_problem, never_arrived

CALL_TIMEOUT_S = 10.0
"""Deadline of the calls that carry no tensors."""

_ERRORS: dict[grpc.StatusCode, type[TransportError]] = {
    grpc.StatusCode.FAILED_PRECONDITION: RefusedError,
    grpc.StatusCode.INVALID_ARGUMENT: RefusedError,
    grpc.StatusCode.UNIMPLEMENTED: RefusedError,
    grpc.StatusCode.PERMISSION_DENIED: RefusedError,
    # Another process with this client's secret has taken over, and to come back would end that one.
    grpc.StatusCode.ABORTED: RefusedError,
    grpc.StatusCode.ALREADY_EXISTS: IdTakenError,
}
"""What a status means where it is not simply worth another try."""

_UNANSWERED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
"""Statuses of a call that may never have reached the server."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Heartbeats:
    """Settings of heartbeats, which show that both ends of a stream are alive.

    Attributes:
        send_after_s: seconds in which the client wrote nothing, after which it writes a heartbeat.
        dead_after_s: seconds without a message from the server, after which the connection is dead.
    """

    send_after_s: float = 10.0
    dead_after_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of a server and its TLS settings; None for plaintext."""

    address: str
    tls: ClientTls | None = None

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn gRPC's errors into TransportErrors."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise self._error(error.code(), error.details()) from None
        # gRPC raises the latter for a call that has ended.
        except (grpc.aio.UsageError, asyncio.InvalidStateError) as error:
            raise UnreachableError(f"server {self.address}: the stream is closed ({error})") from None

    def _error(self, code: grpc.StatusCode, details: str | None) -> TransportError:
        """What a call's status comes to, in one line that is safe to print."""
        where, cause = f"server {self.address}", printable(cause_of(details or code.name.lower()))
        if code not in _UNANSWERED:
            return _ERRORS.get(code, UnreachableError)(f"{where}: {cause}")
        host, _ = host_and_port(self.address)
        problem = lasting_problem(cause, host, self.tls)
        proxy = proxy_for(host) if never_arrived(details or "") else None
        through = f" (through {proxy}; no_proxy={host} connects directly)" if proxy is not None else ""
        return (UnreachableError if problem is None else HandshakeError)(f"{where}: {problem or cause}{through}")


class ServerStream:
    """An open Participate stream: messages down, messages up.

    Attributes:
        received_bytes: of messages, so far.
        sent_bytes: of messages, so far; the first one is not among them.
    """

    def __init__(
        self,
        call: grpc.aio.StreamStreamCall[bytes, bytes],
        server: Endpoint,
        heartbeats: Heartbeats,
        *,
        server_takes_batches: bool = False,
    ) -> None:
        self._call = call
        self._server = server
        self._heartbeats = heartbeats
        self._takes_batches = server_takes_batches
        self.received_bytes = self.sent_bytes = 0
        self._outgoing: Iterator[bytes] = iter(())
        self._next: bytes | None = None
        self._has_outgoing = asyncio.Event()

    async def messages(self) -> AsyncIterator[bytes]:
        """Yield what the server sends, until it ends the stream.

        Raises:
            UnreachableError: the connection broke, or the server was silent for too long.
            RefusedError: the server ended the stream for good.
            ProtocolError: a batch is malformed.
        """
        with self._server.errors():
            # Anything but bytes is gRPC's end of stream.
            while isinstance(message := await self._read(), bytes):
                self.received_bytes += len(message)
                for each in messages_of(message):
                    yield each
            if await self._call.code() is not grpc.StatusCode.OK:
                raise grpc.aio.AioRpcError(
                    await self._call.code(),
                    grpc.aio.Metadata(),
                    grpc.aio.Metadata(),
                    details=await self._call.details(),
                )

    def send(self, messages: Iterable[bytes]) -> None:
        """Write `messages` as the server takes them, in place of those not yet written."""
        self._outgoing = iter(messages)
        self._next = None
        self._has_outgoing.set()

    async def write(self) -> None:
        """Write what `send` is given, and heartbeats in between, until the connection breaks.

        One task does all the writing, so messages never mix. Who reads the stream learns how the
        connection broke.
        """
        with contextlib.suppress(TransportError), self._server.errors():
            while True:
                message = request_batch(await self._next_batch())
                await self._call.write(message)
                self.sent_bytes += len(message)

    async def _read(self) -> object:
        silence_s = self._heartbeats.dead_after_s
        try:
            async with asyncio.timeout(silence_s):
                return await self._call.read()
        except TimeoutError:
            raise UnreachableError(f"server {self._server.address}: no message arrived for {silence_s:g} s") from None

    async def _next_batch(self) -> list[bytes]:
        """Return the next message, with those after it that fit into a batch; a heartbeat if there is none for long."""
        while not self._has_next():
            self._has_outgoing.clear()
            try:
                async with asyncio.timeout(self._heartbeats.send_after_s):
                    await self._has_outgoing.wait()
            except TimeoutError:
                return [CLIENT_HEARTBEAT]
        batch = [self._take_next()]
        size_bytes = len(batch[0])
        # One that is too long waits as `_next`. None is looked for after a long one: it would be held for longer.
        while self._takes_batches and size_bytes < MAX_BATCH_BYTES and len(batch) < MAX_BATCH_MESSAGES and self._has_next():
            size_bytes += len(self._next or b"")
            if size_bytes <= MAX_BATCH_BYTES:
                batch.append(self._take_next())
        return batch

    def _has_next(self) -> bool:
        """Look for another message; return whether there is one."""
        if self._next is None:
            self._next = next(self._outgoing, None)
        return self._next is not None

    def _take_next(self) -> bytes:
        message, self._next = self._next, None
        assert message is not None
        return message


class ServerConnection:
    """A channel to one server."""

    def __init__(self, address: str, tls: ClientTls | None = None) -> None:
        """Prepare a channel of the running event loop; it connects with the first call."""
        self._endpoint = Endpoint(address, tls)
        self._channel = self._new_channel()

    def _new_channel(self) -> grpc.aio.Channel:
        address, tls = self._endpoint.address, self._endpoint.tls
        options = client_options(host_and_port(address)[0])
        if tls is None:
            return grpc.aio.insecure_channel(address, options=options)
        self._credentials = tls.credentials
        return grpc.aio.secure_channel(address, self._credentials, options=options)

    async def _read_files_again(self) -> None:
        """Connect with what the TLS files hold now, if they have changed."""
        tls = self._endpoint.tls
        if tls is None:
            return
        tls.refresh()
        if tls.credentials is not self._credentials:  # several connections share the files
            await self._channel.close()
            self._channel = self._new_channel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def describe(self) -> pb.Manifest:
        """Ask what runs at the server. Raises UnreachableError or RefusedError."""
        await self._read_files_again()
        call = self._channel.unary_unary(f"/{SERVICE}/Describe", pb.DescribeRequest.SerializeToString, pb.DescribeResponse.FromString)
        request = pb.DescribeRequest(protocol_version=PROTOCOL_VERSION)
        response = await self._response_of(call(request, timeout=CALL_TIMEOUT_S))
        return response.manifest

    async def join(
        self, client_id: str, counts: ExampleCounts, instance_id: str, class_names: Sequence[str] = (), join_token: str = ""
    ) -> pb.JoinResponse:
        """Register a client, with the certificate that the files hold now. Raises UnreachableError or RefusedError."""
        await self._read_files_again()
        call = self._channel.unary_unary(f"/{SERVICE}/Join", pb.JoinRequest.SerializeToString, pb.JoinResponse.FromString)
        request = pb.JoinRequest(
            protocol_version=PROTOCOL_VERSION,
            client_id=client_id,
            num_examples=counts.total,
            num_labelled=counts.labelled,
            instance_id=instance_id,
            software_version=__version__,
            class_names=class_names,
            join_token=join_token,
        )
        return await self._response_of(call(request, timeout=CALL_TIMEOUT_S))

    @contextlib.asynccontextmanager
    async def participate(
        self,
        session_token: str,
        holding: Holding | None = None,
        *,
        lacks_constants: bool = False,
        server_takes_batches: bool = False,
        heartbeats: Heartbeats = Heartbeats(),
    ) -> AsyncIterator[ServerStream]:
        """Hold the stream of a session open.

        Args:
            session_token: as `join` returned it.
            holding: the broadcast that the client has in hand from before a connection broke.
            lacks_constants: the client does not hold those that the manifest names.
            server_takes_batches: as `join` returned it.
            heartbeats: how often to show a sign of life, and how long to wait for one.
        """
        call: grpc.aio.StreamStreamCall[bytes, bytes] = self._channel.stream_stream(f"/{SERVICE}/Participate")()
        stream = ServerStream(call, self._endpoint, heartbeats, server_takes_batches=server_takes_batches)
        writer: asyncio.Task[None] | None = None
        try:
            with self._endpoint.errors():
                await call.write(hello_message(session_token, holding, lacks_constants=lacks_constants, takes_batches=True))
            writer = asyncio.create_task(stream.write())
            yield stream
        finally:
            call.cancel()
            if writer is not None:
                writer.cancel()
                await asyncio.wait([writer])

    async def _response_of(self, call: Awaitable[_T]) -> _T:
        """The response to a unary call. Of a server that hangs up, find out why."""
        server = self._endpoint
        try:
            with server.errors():
                return await call
        except UnreachableError as error:
            if proxy_for(host_and_port(server.address)[0]) is not None:
                raise  # it would be another way to the server
            problem = await handshake_problem(str(error), server.address, server.tls)
            if problem is None:
                raise
            raise HandshakeError(f"server {server.address}: {problem}") from None


def parse_response(message: bytes) -> pb.ParticipateResponse:
    """Read a message that is not a chunk. Raises ProtocolError."""
    try:
        return pb.ParticipateResponse.FromString(message)
    except DecodeError:
        raise ProtocolError(f"a message of {len(message)} bytes is not a ParticipateResponse") from None
