"""The client's end of the connection: ask, join, and hold one stream open."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Self

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from feddkd import __version__
from feddkd.errors import IdTakenError, ProtocolError, RefusedError, TransportError, UnreachableError
from feddkd.transport.frames import PROTOCOL_VERSION, SERVICE
from feddkd.transport.messages import hello_message
from feddkd.transport.options import CLIENT_OPTIONS
from feddkd.transport.pb import federation_pb2 as pb

CALL_TIMEOUT_S = 10.0
"""Deadline of the calls that carry no tensors."""

_ERRORS: dict[grpc.StatusCode, type[TransportError]] = {
    grpc.StatusCode.FAILED_PRECONDITION: RefusedError,
    grpc.StatusCode.INVALID_ARGUMENT: RefusedError,
    grpc.StatusCode.UNIMPLEMENTED: RefusedError,
    grpc.StatusCode.PERMISSION_DENIED: RefusedError,
    grpc.StatusCode.ALREADY_EXISTS: IdTakenError,
}
"""What a status means where it is not simply worth another try."""


class ServerStream:
    """An open Participate stream: messages down, messages up."""

    def __init__(self, call: grpc.aio.StreamStreamCall[bytes, bytes], address: str) -> None:
        self._call = call
        self._address = address

    async def messages(self) -> AsyncIterator[bytes]:
        """What the server sends, until it ends the stream. Raises TransportError if the connection breaks."""
        with _errors_of(self._address):
            while isinstance(message := await self._call.read(), bytes):  # anything else is gRPC's end of stream
                yield message
            if await self._call.code() is not grpc.StatusCode.OK:
                raise grpc.aio.AioRpcError(
                    await self._call.code(), grpc.aio.Metadata(), grpc.aio.Metadata(), details=await self._call.details()
                )

    async def send(self, messages: Iterable[bytes]) -> None:
        """Write messages, each as soon as the server takes it. Raises TransportError if the connection breaks."""
        with _errors_of(self._address):
            for message in messages:
                await self._call.write(message)


class ServerConnection:
    """A channel to one server."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        self.address = address
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(address, options=CLIENT_OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(address, credentials, options=CLIENT_OPTIONS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def describe(self) -> pb.Manifest:
        """What runs at the server. Raises UnreachableError or RefusedError."""
        call = self._channel.unary_unary(f"/{SERVICE}/Describe", pb.DescribeRequest.SerializeToString, pb.DescribeResponse.FromString)
        with _errors_of(self.address):
            response = await call(pb.DescribeRequest(protocol_version=PROTOCOL_VERSION), timeout=CALL_TIMEOUT_S)
        return response.manifest

    async def join(self, client_id: str, num_examples: int, instance_id: str) -> pb.JoinResponse:
        """Register a client. Raises UnreachableError or RefusedError."""
        call = self._channel.unary_unary(f"/{SERVICE}/Join", pb.JoinRequest.SerializeToString, pb.JoinResponse.FromString)
        request = pb.JoinRequest(
            protocol_version=PROTOCOL_VERSION,
            client_id=client_id,
            num_examples=num_examples,
            instance_id=instance_id,
            software_version=__version__,
        )
        with _errors_of(self.address):
            return await call(request, timeout=CALL_TIMEOUT_S)

    @contextlib.asynccontextmanager
    async def participate(self, session_token: str) -> AsyncIterator[ServerStream]:
        """Hold the stream of a session open."""
        call: grpc.aio.StreamStreamCall[bytes, bytes] = self._channel.stream_stream(f"/{SERVICE}/Participate")()
        stream = ServerStream(call, self.address)
        try:
            await stream.send([hello_message(session_token)])
            yield stream
        finally:
            call.cancel()


@contextlib.contextmanager
def _errors_of(address: str) -> Iterator[None]:
    """Turn gRPC's errors into ours."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        kind = _ERRORS.get(error.code(), UnreachableError)
        details = error.details() or error.code().name.lower()
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            details = details.rpartition(": ")[2]  # gRPC lists every address it tried; what went wrong comes last
        raise kind(f"server {address}: {details}") from None
    except (grpc.aio.UsageError, asyncio.InvalidStateError) as error:  # the latter for a write to a call that has ended
        raise UnreachableError(f"server {address}: the stream is closed ({error})") from None


def parse_response(message: bytes) -> pb.ParticipateResponse:
    """Read a message that is not a chunk. Raises ProtocolError."""
    try:
        return pb.ParticipateResponse.FromString(message)
    except DecodeError:
        raise ProtocolError(f"a message of {len(message)} bytes is not a ParticipateResponse") from None
