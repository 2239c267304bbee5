"""What the server sees of its clients, without a network and on a clock that the test moves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Mapping
from typing import Any, NoReturn, TypeVar, cast

import grpc
import grpc.aio

from feddkd.errors import ProtocolError
from feddkd.exchange import ExchangeId, Reply
from feddkd.traffic import Meter
from feddkd.transport.frames import Chunk, encode_chunk
from feddkd.transport.messages import Holding, answer_message, failure_message, hello_message
from feddkd.transport.pb import federation_pb2 as pb
from feddkd.transport.server import Admission, Context, FederationServer
from feddkd.transport.sessions import Session

EXCHANGE = ExchangeId("run", 1, 0, "local_train", 0)
ANSWER = answer_message(EXCHANGE, Reply(), None)
FAILURE = failure_message(EXCHANGE, "no data")
CHUNK = encode_chunk(Chunk(0, 1, memoryview(b"data")))

_T = TypeVar("_T")


class Clock(asyncio.SelectorEventLoop):
    """A loop whose time stands still until the test moves it."""

    now_s = 1_000.0

    def time(self) -> float:
        return self.now_s

    async def pass_time(self, seconds: float) -> None:
        """Let everything happen that is due within so many seconds, each at its own time."""
        end = self.now_s + seconds
        await settle()
        while (due := self._next_timer()) <= end:
            self.now_s = max(self.now_s, due)
            await settle()
        self.now_s = end
        await settle()

    def _next_timer(self) -> float:
        timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        return min((t.when() for t in timers if not t.cancelled()), default=float("inf"))


def clock() -> Clock:
    """The clock of the running test."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Clock)
    return loop


def run(test: Coroutine[Any, Any, _T]) -> _T:
    """Run a test on a clock of its own."""
    with asyncio.Runner(loop_factory=Clock) as runner:
        return runner.run(test)


async def settle(iterations: int = 30) -> None:
    """Let everything happen that needs no time."""
    for _ in range(iterations):
        await asyncio.sleep(0)


class FakeInbox:
    """Keeps what it is told. `open` says whether the clients' messages belong to an exchange."""

    def __init__(self) -> None:
        self.other = Meter()
        self.exchange = Meter(self.other)
        self.open = True
        self.events: list[str] = []
        self.holdings: list[Holding | None] = []
        self.room = asyncio.Event()
        self.room.set()
        self.connect_error: Exception | None = None
        self.error: Exception | None = None

    def connected(self, session: Session, holding: Holding | None) -> None:
        self.events.append(f"{session.client_id} connected")
        self.holdings.append(holding)
        if self.connect_error is not None:
            raise self.connect_error

    def disconnected(self, session: Session) -> None:
        self.events.append(f"{session.client_id} disconnected")

    def replied(self, session: Session, answer: pb.Answer) -> Meter:
        return self._note(f"{session.client_id} replied")

    def meter_of(self, session: Session) -> Meter:
        return self.exchange if self.open else self.other

    async def received(self, session: Session, chunk: Chunk) -> None:
        self.events.append(f"{session.client_id} sent {len(chunk.data)} bytes")
        await self.room.wait()

    def lacking(self, session: Session, lacking: pb.Lacking) -> Meter:
        return self.other

    def failed(self, session: Session, failure: pb.Failure) -> Meter:
        return self._note(f"{session.client_id} failed: {failure.reason}")

    def _note(self, event: str) -> Meter:
        if self.error is not None:
            raise self.error
        self.events.append(event)
        return self.exchange if self.open else self.other


class Connection:
    """One call as its handler sees it: the client's messages, and what the client has read."""

    def __init__(
        self,
        *messages: bytes,
        certificate: bytes | None = None,
        peer: str = "ipv4:127.0.0.1:50000",
    ) -> None:
        self._messages: asyncio.Queue[object] = asyncio.Queue()
        self._reads = asyncio.Event()
        self._reads.set()
        self._reads_one = False
        self._metadata_sent = False
        self._pem = certificate
        self._peer = peer
        self.written: list[bytes] = []
        self.status: tuple[grpc.StatusCode, str] | None = None
        self.bring(*messages)

    # What the client does.

    def bring(self, *messages: bytes) -> None:
        for message in messages:
            self._messages.put_nowait(message)

    def half_close(self) -> None:
        self._messages.put_nowait(grpc.aio.EOF)

    def stop_reading(self) -> None:
        self._reads.clear()

    def read_again(self) -> None:
        self._reads.set()

    def read_one(self) -> None:
        """Read one message, then stop again."""
        self._reads_one = True
        self._reads.set()

    def code(self) -> grpc.StatusCode | None:
        """How the server ended the call; None if it did not, or leaves it to gRPC to say OK."""
        return self.status[0] if self.status is not None else None

    def reason(self) -> str:
        return self.status[1] if self.status is not None else ""

    @property
    def responses(self) -> list[str | None]:
        """What the client has read, by kind."""
        parse = pb.ParticipateResponse.FromString
        return [parse(message).WhichOneof("message") for message in self.written]

    # What the server calls.

    async def read(self) -> object:
        return await self._messages.get()

    async def write(self, message: bytes) -> None:
        assert self._metadata_sent, "gRPC cannot end a call whose first write is cut off"
        await self._reads.wait()
        self.written.append(message)
        if self._reads_one:
            self._reads_one = False
            self._reads.clear()

    async def send_initial_metadata(self, metadata: object) -> None:
        self._metadata_sent = True

    async def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        assert self.status is None, "a call ends once"
        self.status = code, details
        if self._metadata_sent:
            await self._reads.wait()  # the status waits behind the message that is not read
        raise grpc.aio.AbortError

    def peer(self) -> str:
        return self._peer

    def auth_context(self) -> Mapping[str, list[bytes]]:
        return {} if self._pem is None else {"x509_pem_cert": [self._pem]}


class Server:
    """A server without a port, and calls to it."""

    def __init__(self, admission: Admission | None = None, write_stall_s: float = 60.0) -> None:
        self.inbox = FakeInbox()
        self.server = FederationServer(
            pb.Manifest(run_id="run"),
            self.inbox,
            admission=admission or Admission(),
            write_stall_s=write_stall_s,
        )
        self._streams: list[asyncio.Task[None]] = []

    async def join(
        self,
        client_id: str = "site",
        instance: str = "secret",
        examples: int = 1,
        certificate: bytes | None = None,
    ) -> str:
        """Join, and return the token. Raises NotJoinedError."""
        request = pb.JoinRequest(
            protocol_version=1,
            client_id=client_id,
            num_examples=examples,
            instance_id=instance,
        )
        return await self.join_with(request.SerializeToString(), certificate)

    async def join_with(self, request: bytes, certificate: bytes | None = None) -> str:
        call = Connection(certificate=certificate)
        try:
            await self.server._join(request, cast("Context", call))
        except grpc.aio.AbortError:
            assert call.status is not None
            raise NotJoinedError(*call.status) from None
        (response,) = call.written
        return pb.JoinResponse.FromString(response).session_token

    def open(self, *messages: bytes) -> tuple[Connection, asyncio.Task[None]]:
        """Open a stream. Returns it, and its handler at the server."""
        connection = Connection(*messages)
        no_iterator = cast("AsyncIterator[bytes]", None)  # the handler reads from its context
        handling = self.server._participate(no_iterator, cast("Context", connection))
        stream = asyncio.create_task(_until_aborted(handling))
        self._streams.append(stream)
        return connection, stream

    async def connect(self, client_id: str = "site", instance: str = "secret") -> Connection:
        """Join and open a stream."""
        connection, _ = self.open(hello_message(await self.join(client_id, instance)))
        await settle()
        assert self.inbox.events[-1] == f"{client_id} connected"
        return connection

    def session(self, client_id: str = "site") -> Session:
        session = self.server.session(client_id)
        assert session is not None
        return session

    async def close(self) -> None:
        for stream in self._streams:
            stream.cancel()
        await asyncio.gather(*self._streams, return_exceptions=True)
        self.server.stop()


class NotJoinedError(ProtocolError):
    """The server refused a join."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code


async def _until_aborted(handling: Coroutine[Any, Any, None]) -> None:
    """As gRPC does: the handler of a call that was aborted ends with an AbortError."""
    with contextlib.suppress(grpc.aio.AbortError):
        await handling
