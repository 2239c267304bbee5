"""Bounds and counts what a client sends on its stream, and hands it to the inbox."""

from __future__ import annotations

import asyncio
from typing import NamedTuple, Protocol

import grpc
from google.protobuf.message import DecodeError

from feddkd.errors import ProtocolError
from feddkd.traffic import Meter
from feddkd.transport.frames import Chunk, decode_chunk, is_chunk
from feddkd.transport.messages import Holding, holding_of, id_from_message
from feddkd.transport.pb import federation_pb2 as pb
from feddkd.transport.sessions import Session
from feddkd.transport.stream import MESSAGE_BURST, MESSAGES_PER_S, Stream

MAX_HELLO_BYTES = 4 << 10


class Inbox(Protocol):
    """Receives what the clients send. Called on the server's loop.

    A method may raise ProtocolError for a message that breaks the contract; that ends the stream.

    Attributes:
        other: counts the messages that belong to no exchange.
    """

    other: Meter

    def connected(self, session: Session, holding: Holding | None) -> None:
        """Note that a client's stream is open; `holding` is the broadcast that it still has."""

    def disconnected(self, session: Session) -> None:
        """Note that a client's stream is gone; another may follow."""

    def replied(self, session: Session, answer: pb.Answer) -> Meter:
        """Begin an answer. Returns the meter that counts this message."""

    def meter_of(self, session: Session) -> Meter:
        """Return the meter that counts the client's next chunk."""

    async def received(self, session: Session, chunk: Chunk) -> None:
        """Take a chunk of the last answer; not returning holds the client back."""

    def failed(self, session: Session, failure: pb.Failure) -> Meter:
        """Note that the client cannot do the work. Returns the meter that counts this message."""

    def lacking(self, session: Session, lacking: pb.Lacking) -> Meter:
        """Note that the client lacks the base of a step. Returns the meter that counts this message."""


class Incoming:
    """Hands the messages of one stream to the inbox."""

    def __init__(
        self,
        session: Session,
        stream: Stream,
        inbox: Inbox,
        max_message_bytes: int,
    ) -> None:
        """Args:
        max_message_bytes: bounds every message that is no chunk.
        """
        self._session = session
        self._stream = stream
        self._inbox = inbox
        self._max_message_bytes = max_message_bytes

    async def take(self, message: bytes) -> None:
        """Count a message and hand it on; too many end the stream.

        Raises:
            ProtocolError: the message breaks the contract.
        """
        if is_chunk(message):
            await self._take_chunk(message)
        else:
            self._take_message(message)

    async def _take_chunk(self, message: bytes) -> None:
        meter = self._inbox.meter_of(self._session)
        meter.up(len(message))
        if meter is self._inbox.other and not self._stream.stray_chunks.take(_now()):
            self._refuse("too many chunks that belong to no open exchange")
            return
        await self._inbox.received(self._session, decode_chunk(message))

    def _take_message(self, message: bytes) -> None:
        meter = self._inbox.other
        try:
            if self._stream.messages.take(_now()):
                meter = self._hand_over(self._parse(message))
            else:
                rate = f"{MESSAGE_BURST} messages at once or {MESSAGES_PER_S:g} a second"
                self._refuse(f"more than {rate}, beside one for each work")
        finally:
            meter.up(len(message))

    def _parse(self, message: bytes) -> pb.ParticipateRequest:
        if len(message) > self._max_message_bytes:
            limit = f"{self._max_message_bytes} bytes are the limit"
            raise ProtocolError(f"a message of {len(message)} bytes that is no chunk; {limit}")
        try:
            return pb.ParticipateRequest.FromString(message)
        except DecodeError:
            size = f"{len(message)} bytes"
            raise ProtocolError(f"a message of {size} is not a ParticipateRequest") from None

    def _hand_over(self, request: pb.ParticipateRequest) -> Meter:
        match request.WhichOneof("message"):
            case "answer":
                id_from_message(request.answer.id)
                return self._inbox.replied(self._session, request.answer)
            case "failure":
                id_from_message(request.failure.id)
                return self._inbox.failed(self._session, request.failure)
            case "lacking":
                id_from_message(request.lacking.id)
                return self._inbox.lacking(self._session, request.lacking)
            case "heartbeat":
                return self._inbox.other
            case kind:
                allowed = "an answer, a chunk, a failure, a heartbeat or word of what is lacking"
                raise ProtocolError(f"a {kind or 'empty'} message where {allowed} may come")

    def _refuse(self, reason: str) -> None:
        self._stream.finish(grpc.StatusCode.RESOURCE_EXHAUSTED, reason)


class Hello(NamedTuple):
    """The first message of a stream.

    Attributes:
        token: of the session; empty if the message is no Hello.
        holding: the broadcast at the client.
        lacks_constants: the client does not hold the run's constants.
        takes_batches: the client takes several messages in one.
    """

    token: str
    holding: Holding | None = None
    lacks_constants: bool = False
    takes_batches: bool = False


def read_hello(message: object) -> Hello:
    """Read the first message of a stream.

    Raises:
        ProtocolError: what the client says it holds is malformed.
    """
    if not isinstance(message, bytes) or len(message) > MAX_HELLO_BYTES:
        return Hello("")
    try:
        hello = pb.ParticipateRequest.FromString(message).hello
    except DecodeError:
        return Hello("")
    return Hello(hello.session_token, holding_of(hello), hello.lacks_constants, hello.takes_batches)


def _now() -> float:
    return asyncio.get_running_loop().time()
