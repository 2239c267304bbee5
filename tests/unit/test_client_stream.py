"""A client's end of the stream: what it writes and when, and what it makes of silence and of gRPC's own errors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import cast

import grpc
import grpc.aio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddkd.errors import IdTakenError, RefusedError, TransportError, UnreachableError
from feddkd.transport.batches import MAX_BATCH_BYTES, messages_of, response_batch
from feddkd.transport.client import Endpoint, Heartbeats, ServerStream
from feddkd.transport.messages import CLIENT_HEARTBEAT

NEVER, AT_ONCE = 1000.0, 0.0


class FakeCall:
    """A call whose other end the test plays.

    Attributes:
        written: what the client wrote.
        incoming: what the server says; nothing more comes after it.
        taking: set while the server takes messages.
    """

    def __init__(self, incoming: list[bytes] | None = None, error: Exception | None = None) -> None:
        self.written: asyncio.Queue[bytes] = asyncio.Queue()
        self.incoming = incoming or []
        self.taking = asyncio.Event()
        self.taking.set()
        self._error = error

    async def write(self, message: bytes) -> None:
        if self._error is not None:
            raise self._error
        await self.taking.wait()
        self.written.put_nowait(message)

    async def read(self) -> bytes:
        if self.incoming:
            return self.incoming.pop(0)
        if self._error is not None:
            raise self._error
        await asyncio.Event().wait()
        raise AssertionError


def stream_on(call: FakeCall, send_after_s: float = NEVER, dead_after_s: float = NEVER) -> ServerStream:
    real = cast("grpc.aio.StreamStreamCall[bytes, bytes]", call)
    return ServerStream(real, Endpoint("127.0.0.1:1"), Heartbeats(send_after_s, dead_after_s))


async def written(call: FakeCall, stream: ServerStream, count: int) -> list[bytes]:
    """The first `count` messages that the stream writes."""
    writer = asyncio.create_task(stream.write())
    messages = [await call.written.get() for _ in range(count)]
    writer.cancel()
    return messages


def test_a_client_that_has_nothing_to_say_shows_that_it_is_alive() -> None:
    async def scenario() -> list[bytes]:
        call = FakeCall()
        return await written(call, stream_on(call, send_after_s=AT_ONCE), 3)

    assert asyncio.run(scenario()) == [CLIENT_HEARTBEAT] * 3


def test_heartbeats_come_only_where_nothing_else_is_written() -> None:
    async def scenario() -> list[bytes]:
        call = FakeCall()
        stream = stream_on(call, send_after_s=AT_ONCE)
        stream.send([b"one", b"two", b"three"])
        return await written(call, stream, 4)

    assert asyncio.run(scenario()) == [b"one", b"two", b"three", CLIENT_HEARTBEAT]


def test_a_client_that_has_said_something_a_moment_ago_sends_no_heartbeat() -> None:
    async def scenario() -> tuple[list[bytes], bool]:
        call = FakeCall()
        stream = stream_on(call)
        stream.send([b"one"])
        writer = asyncio.create_task(stream.write())
        first = await call.written.get()
        stream.send([b"two"])
        second = await call.written.get()
        writer.cancel()
        return [first, second], call.written.empty()

    assert asyncio.run(scenario()) == ([b"one", b"two"], True)


def test_what_is_sent_takes_the_place_of_what_is_not_yet_written() -> None:
    async def scenario() -> list[bytes]:
        call = FakeCall()
        call.taking.clear()
        stream = stream_on(call)
        asked = asyncio.Event()

        def frames() -> Iterator[bytes]:
            asked.set()
            yield b"old header"
            raise AssertionError("the next message of what is no longer wanted was built")

        stream.send(frames())
        writer = asyncio.create_task(stream.write())
        await asked.wait()
        stream.send([b"new header", b"new chunk"])
        call.taking.set()
        messages = [await call.written.get() for _ in range(3)]
        writer.cancel()
        return messages

    assert asyncio.run(scenario()) == [b"old header", b"new header", b"new chunk"]


def test_a_server_that_is_silent_for_too_long_is_a_lost_connection() -> None:
    async def scenario() -> None:
        messages = stream_on(FakeCall([b"hello"]), dead_after_s=AT_ONCE).messages()
        assert await anext(messages) == b"hello"
        with pytest.raises(UnreachableError, match=r"^server 127\.0\.0\.1:1: no message arrived for 0 s$"):
            await anext(messages)

    asyncio.run(scenario())


@pytest.mark.parametrize("error", [asyncio.InvalidStateError("RPC already finished."), grpc.aio.UsageError("RPC is closed.")])
def test_a_stream_that_has_ended_is_a_lost_connection_to_the_reader_and_the_end_to_the_writer(error: Exception) -> None:
    async def scenario() -> None:
        stream = stream_on(FakeCall(error=error), send_after_s=AT_ONCE)
        await stream.write()
        with pytest.raises(UnreachableError, match=r"^server 127\.0\.0\.1:1: the stream is closed \(RPC"):
            await anext(aiter(stream.messages()))

    asyncio.run(scenario())


def error_of(code: grpc.StatusCode, details: str | None) -> TransportError:
    error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details)
    with pytest.raises(TransportError) as raised, Endpoint("host:1").errors():
        raise error
    return raised.value


CONNECT = "failed to connect to all addresses; last error: "


@pytest.mark.parametrize(
    ("details", "cause"),
    [
        (f"{CONNECT}UNKNOWN: ipv4:127.0.0.1:5: Failed to connect: Connection refused", "Failed to connect: Connection refused"),
        (f"{CONNECT}UNAVAILABLE: ipv6:%5B::1%5D:5: Socket closed", "Socket closed"),
        ("errors resolving x.invalid:1: [field:hostname lookup error:lookup failed: not found]", "lookup failed: not found"),
        ("Stream removed", "Stream removed"),
        (None, "unavailable"),
    ],
)
def test_the_cause_is_said_without_what_grpc_wraps_it_in(details: str | None, cause: str) -> None:
    error = error_of(grpc.StatusCode.UNAVAILABLE, details)
    assert (type(error), str(error)) == (UnreachableError, f"server host:1: {cause}")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, UnreachableError),  # the server was restarted: join again
        (grpc.StatusCode.DEADLINE_EXCEEDED, UnreachableError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, UnreachableError),
        (grpc.StatusCode.ALREADY_EXISTS, IdTakenError),
        (grpc.StatusCode.ABORTED, RefusedError),
        (grpc.StatusCode.PERMISSION_DENIED, RefusedError),
    ],
)
def test_only_what_may_pass_is_worth_another_try(code: grpc.StatusCode, kind: type[TransportError]) -> None:
    assert type(error_of(code, "x")) is kind


def test_a_servers_words_are_printable_and_short() -> None:
    message = str(error_of(grpc.StatusCode.INVALID_ARGUMENT, "\x1b[2J\n" + "x" * 100_000))
    assert message.startswith("server host:1: \\x1b[2J\\nxxx")
    assert len(message) < 600


def to_a_server_that_takes_batches(call: FakeCall) -> ServerStream:
    real = cast("grpc.aio.StreamStreamCall[bytes, bytes]", call)
    return ServerStream(real, Endpoint("127.0.0.1:1"), Heartbeats(NEVER, NEVER), server_takes_batches=True)


def test_short_messages_travel_together_to_a_server_that_takes_batches() -> None:
    async def scenario() -> list[bytes]:
        call = FakeCall()
        stream = to_a_server_that_takes_batches(call)
        stream.send([b"answer", b"chunk"])
        return await written(call, stream, 1)

    (batch,) = asyncio.run(scenario())
    assert list(messages_of(batch)) == [b"answer", b"chunk"]


@given(st.lists(st.integers(1, MAX_BATCH_BYTES + 1), min_size=1, max_size=20))
def test_long_messages_travel_alone_and_in_order(sizes: list[int]) -> None:
    sent = [bytes([number]) * size for number, size in enumerate(sizes)]

    async def scenario() -> list[list[bytes]]:
        call = FakeCall()
        stream = to_a_server_that_takes_batches(call)
        stream.send(sent)
        batches: list[list[bytes]] = []
        writer = asyncio.create_task(stream.write())
        while sum(map(len, batches)) < len(sent):
            batches.append(list(messages_of(await call.written.get())))
        writer.cancel()
        return batches

    batches = asyncio.run(scenario())
    assert [message for batch in batches for message in batch] == sent
    assert all(len(batch) == 1 or sum(map(len, batch)) <= MAX_BATCH_BYTES for batch in batches)


def test_a_message_that_waits_for_the_next_batch_is_dropped_with_the_others() -> None:
    long = bytes(MAX_BATCH_BYTES)

    async def scenario() -> list[bytes]:
        call = FakeCall()
        call.taking.clear()
        stream = to_a_server_that_takes_batches(call)
        stream.send([b"short", long])
        writer = asyncio.create_task(stream.write())
        await asyncio.sleep(0)  # the first is being written, the second was looked at
        stream.send([b"other"])
        call.taking.set()
        messages = [await call.written.get() for _ in range(2)]
        writer.cancel()
        return messages

    assert asyncio.run(scenario()) == [b"short", b"other"]


def test_the_messages_of_a_batch_are_read_one_by_one() -> None:
    async def scenario() -> list[bytes]:
        messages = to_a_server_that_takes_batches(FakeCall([response_batch([b"one", b"two"]), b"three"])).messages()
        return [await anext(messages) for _ in range(3)]

    assert asyncio.run(scenario()) == [b"one", b"two", b"three"]
