"""How the server moves a client's messages, and how it takes the end of its stream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc
import pytest
from fake_streams import (
    ANSWER,
    CHUNK,
    EXCHANGE,
    FAILURE,
    Connection,
    Server,
    clock,
    run,
    settle,
)
from hypothesis import given
from hypothesis import strategies as st

from feddkd.errors import ProtocolError
from feddkd.exchange import ExchangeId, Reply
from feddkd.traffic import Meter
from feddkd.transport import participation
from feddkd.transport.messages import (
    CLIENT_HEARTBEAT,
    SERVER_HEARTBEAT,
    Holding,
    Verdict,
    answer_message,
    failure_message,
    hello_message,
    receipt_message,
)
from feddkd.transport.pb import federation_pb2 as pb
from feddkd.transport.sessions import Outgoing

RECEIPT = receipt_message(EXCHANGE, Verdict.VERDICT_OK)
DEADLINE = grpc.StatusCode.DEADLINE_EXCEEDED
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@asynccontextmanager
async def serving(write_stall_s: float = 60.0) -> AsyncIterator[Server]:
    server = Server(write_stall_s=write_stall_s)
    try:
        yield server
    finally:
        await server.close()


def work(size: int = 3, meter: Meter | None = None) -> Outgoing:
    """A broadcast of a few frames that a test can tell from other messages."""
    frames = (pb.ParticipateResponse(work=pb.Work(deadline_s=1)).SerializeToString(),) * size
    counted = meter or Meter()
    return Outgoing(frames, counted, on_last=lambda: counted.payload_down(100 * size))


# The end of a stream.


@pytest.mark.parametrize("iterations", range(12))
def test_a_lost_client_is_told_once_however_close_the_end_and_the_cancellation_are(
    iterations: int,
) -> None:
    """The connection ends; so many iterations of the loop later gRPC cancels the handler."""

    async def lose() -> None:
        async with serving() as server:
            connection, stream = server.open(hello_message(await server.join()))
            await settle()
            connection.half_close()
            await settle(iterations)
            stream.cancel()
            await asyncio.wait((stream,))
            assert server.inbox.events == ["site connected", "site disconnected"]
            assert server.session().stream is None

    run(lose())


@pytest.mark.parametrize("again", ["hello", "join"])
@pytest.mark.parametrize("iterations", range(12))
def test_a_stream_that_a_newer_one_has_replaced_tells_nothing_more(
    iterations: int,
    again: str,
) -> None:
    """The client comes again; so many iterations later the old connection brings a message."""

    async def come_again() -> None:
        async with serving() as server:
            token = await server.join()
            old, old_stream = server.open(hello_message(token))
            await settle()
            if again == "join":
                token = await server.join()
            new, new_stream = server.open(hello_message(token))
            await settle(iterations)
            old.bring(FAILURE)
            await asyncio.wait((old_stream,))
            await settle()
            new.half_close()
            await asyncio.wait((new_stream,))
            assert old.code() is grpc.StatusCode.ABORTED
            replaced = server.inbox.events.index("site disconnected")
            assert server.inbox.events[replaced:] == [
                "site disconnected",
                "site connected",
                "site disconnected",
            ]

    run(come_again())


def test_a_client_that_ends_its_side_gets_ok() -> None:
    async def end() -> None:
        async with serving() as server:
            connection, stream = server.open(hello_message(await server.join()))
            connection.half_close()
            await asyncio.wait((stream,))
            assert connection.code() is None  # gRPC says OK when the handler returns

    run(end())


def test_a_closed_stream_ends_once_everything_is_written() -> None:
    async def close() -> None:
        async with serving() as server:
            connection = await server.connect()
            session = server.session()
            session.send(Outgoing((RECEIPT,), Meter()))
            session.send_work(work())
            session.send(Outgoing((RECEIPT,), Meter()))
            assert session.stream is not None
            session.stream.close()
            await settle()
            assert connection.responses == ["receipt", "work", "work", "work", "receipt"]
            assert server.inbox.events[-1] == "site disconnected"
            assert connection.code() is None

    run(close())


def test_a_failure_of_the_server_itself_ends_the_stream_and_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail() -> None:
        async with serving() as server:
            connection = await server.connect()
            server.inbox.error = RuntimeError("a bug")
            connection.bring(ANSWER)
            await settle()
            assert connection.code() is grpc.StatusCode.INTERNAL
            assert "a bug" not in connection.reason()
            assert server.inbox.events == ["site connected", "site disconnected"]

    run(fail())
    assert "RuntimeError: a bug" in caplog.text


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xff\xff",
        b"\x12\x05\x00",
        hello_message("a second hello"),
        answer_message(replace(EXCHANGE, name="n" * 65), Reply(), None),
        failure_message(replace(EXCHANGE, run_id="r" * 65), "no data"),
        answer_message(EXCHANGE, Reply(metrics={"m" * 300_000: 1.0}), None),
        failure_message(EXCHANGE, "")[:-1],
    ],
    ids=[
        "empty",
        "garbage",
        "damaged chunk",
        "hello",
        "long name",
        "long run id",
        "large",
        "cut off",
    ],
)
def test_a_message_that_breaks_the_contract_ends_the_stream_and_is_counted(
    message: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def break_it() -> None:
        async with serving() as server:
            connection = await server.connect()
            server.inbox.open = False
            before = server.inbox.other.traffic.wire_bytes_up
            connection.bring(message)
            await settle()
            assert connection.code() is INVALID
            assert server.inbox.events == ["site connected", "site disconnected"]
            assert server.inbox.other.traffic.wire_bytes_up == before + len(message)

    run(break_it())
    assert "Traceback" not in caplog.text


def test_the_inbox_may_find_a_message_malformed() -> None:
    async def refuse() -> None:
        async with serving() as server:
            connection = await server.connect()
            server.inbox.error = ProtocolError("the loss is nan")
            connection.bring(ANSWER)
            await settle()
            assert connection.status == (INVALID, "the loss is nan")

    run(refuse())


# Who is alive.


def test_a_silent_client_loses_its_stream_after_thirty_seconds() -> None:
    async def fall_silent() -> None:
        async with serving() as server:
            connection = await server.connect()
            await clock().pass_time(29)
            connection.bring(CLIENT_HEARTBEAT)
            await clock().pass_time(29)
            assert connection.code() is None
            await clock().pass_time(2)
            assert connection.code() is DEADLINE
            assert "no message of the client for 30 s" in connection.reason()
            assert server.inbox.events[-1] == "site disconnected"

    run(fall_silent())


def test_a_client_that_falls_silent_in_the_middle_of_an_upload_loses_its_stream() -> None:
    async def stall() -> None:
        async with serving() as server:
            connection = await server.connect()
            connection.bring(ANSWER, CHUNK)
            await clock().pass_time(31)
            assert connection.code() is DEADLINE

    run(stall())


def test_a_client_that_the_server_holds_back_is_not_silent() -> None:
    async def hold_back() -> None:
        async with serving() as server:
            connection = await server.connect()
            server.inbox.room.clear()
            connection.bring(CHUNK)
            await clock().pass_time(3_600)
            session = server.session()
            assert connection.code() is None
            assert session.silent_s(clock().time()) == 0
            server.inbox.room.set()
            connection.bring(CLIENT_HEARTBEAT)
            await settle()
            await clock().pass_time(29)
            assert connection.code() is None

    run(hold_back())


def test_the_server_sends_a_heartbeat_when_it_has_nothing_else_to_send() -> None:
    async def be_quiet() -> None:
        async with serving() as server:
            connection = await server.connect()
            before = server.inbox.other.traffic.wire_bytes_down
            for _ in range(3):
                connection.bring(CLIENT_HEARTBEAT)
                await clock().pass_time(9)
                server.session().send(Outgoing((RECEIPT,), Meter()))
                await settle()
            assert connection.responses == ["receipt"] * 3
            await clock().pass_time(21)
            assert connection.responses == ["receipt"] * 3 + ["heartbeat"] * 2
            counted = server.inbox.other.traffic.wire_bytes_down - before
            assert counted == 2 * len(SERVER_HEARTBEAT)

    run(be_quiet())


def test_a_client_that_stops_reading_loses_its_stream() -> None:
    async def stop_reading() -> None:
        async with serving(write_stall_s=7) as server:
            connection = await server.connect()
            connection.stop_reading()
            server.session().send_work(work())
            await clock().pass_time(6)
            assert connection.code() is None
            await clock().pass_time(2)
            assert connection.code() is DEADLINE
            assert "did not read for 7 s" in connection.reason()
            assert server.inbox.events[-1] == "site disconnected"

    run(stop_reading())


def test_a_client_that_reads_slowly_keeps_its_stream() -> None:
    async def read_slowly() -> None:
        async with serving(write_stall_s=7) as server:
            connection = await server.connect()
            connection.stop_reading()
            server.session().send_work(work(size=10))
            for _ in range(10):
                await clock().pass_time(6)
                connection.read_one()
                connection.bring(CLIENT_HEARTBEAT)
            await settle()
            assert connection.code() is None
            assert connection.responses == ["work"] * 10

    run(read_slowly())


# What one client can make the server hold, or do.


def test_messages_that_are_no_chunks_are_bounded() -> None:
    async def flood() -> None:
        async with serving() as server:
            connection = await server.connect()
            connection.bring(*[FAILURE] * 32)
            await settle(100)
            assert connection.code() is None
            await clock().pass_time(1)  # allows two more
            connection.bring(FAILURE, FAILURE)
            await settle()
            assert connection.code() is None
            connection.bring(CLIENT_HEARTBEAT)
            await settle()
            assert connection.code() is EXHAUSTED

    run(flood())


def test_an_answer_to_every_work_is_allowed_however_fast_and_however_late() -> None:
    async def be_always_late() -> None:
        async with serving() as server:
            connection = await server.connect()
            server.inbox.open = False
            for _ in range(500):
                server.session().send_work(work())
                connection.bring(ANSWER)
                await settle(10)
            assert connection.code() is None
            assert server.inbox.events.count("site replied") == 500

    run(be_always_late())


def test_chunks_of_no_open_exchange_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def flood() -> None:
        async with serving() as server:
            connection = await server.connect()
            connection.bring(*[CHUNK] * 10)  # of an open exchange: as many as the exchange takes
            await settle(100)
            server.inbox.open = False
            connection.bring(*[CHUNK] * 5)
            await settle(100)
            assert connection.code() is None
            connection.bring(CHUNK)
            await settle()
            assert connection.code() is EXHAUSTED

    monkeypatch.setattr("feddkd.transport.stream.STRAY_CHUNK_BURST", 5)
    run(flood())


def test_receipts_that_a_client_does_not_read_are_bounded() -> None:
    async def do_not_read() -> None:
        async with serving() as server:
            connection = await server.connect()
            connection.stop_reading()
            for _ in range(66):  # one is being written, 64 wait
                server.session().send(Outgoing((RECEIPT,), Meter()))
                await settle(3)
            await settle()
            assert connection.code() is EXHAUSTED
            assert "does not read" in connection.reason()
            assert server.session().stream is None
            server.session().send(Outgoing((RECEIPT,), Meter()))  # dropped

    run(do_not_read())


def test_streams_whose_client_does_not_read_their_end_are_bounded() -> None:
    """gRPC keeps the last message of each until the client closes its connection."""

    async def open_many() -> None:
        async with serving() as server:
            token = await server.join()
            connections = []
            for _ in range(participation.MAX_STREAMS_OF_A_CLIENT + 2):
                connection, _stream = server.open(hello_message(token))
                connection.stop_reading()
                connections.append(connection)
                await settle()
                server.session().send_work(work())
                await settle()
            refused = connections[participation.MAX_STREAMS_OF_A_CLIENT :]
            assert [c.code() for c in refused] == [EXHAUSTED] * 2
            for connection in connections:
                connection.read_again()
            await settle()
            last, _stream = server.open(hello_message(token))
            await settle()
            assert last.code() is None

    run(open_many())


def test_streams_before_hello_are_bounded_in_number_and_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def open_many() -> None:
        async with serving() as server:
            token = await server.join()
            silent = [server.open()[0] for _ in range(3)]
            await clock().pass_time(1)
            newer, _ = server.open()
            server.open()
            await settle()
            assert [c.code() for c in silent] == [DEADLINE, DEADLINE, None]
            newer.bring(hello_message(token))
            await settle()
            assert server.inbox.events == ["site connected"]
            await clock().pass_time(8.5)
            assert silent[2].code() is None
            await clock().pass_time(1)
            assert [c.code() for c in silent] == [DEADLINE] * 3
            assert newer.code() is None

    monkeypatch.setattr("feddkd.transport.participation.MAX_STREAMS_BEFORE_HELLO", 3)
    run(open_many())


# Hello.


@pytest.mark.parametrize(
    "first",
    [
        hello_message("0123456789abcdef0123456789abcdef"),
        hello_message(""),
        FAILURE,
        CHUNK,
        b"\xff\xff",
        b"",
        hello_message("0" * 5_000),
    ],
    ids=["wrong token", "empty token", "failure", "chunk", "garbage", "empty", "large"],
)
def test_a_stream_that_names_no_session_is_refused(first: bytes) -> None:
    async def open_it() -> None:
        async with serving() as server:
            await server.join()
            connection, _ = server.open(first)
            await settle()
            assert connection.code() is grpc.StatusCode.UNAUTHENTICATED
            assert server.inbox.events == []

    run(open_it())


def test_hello_says_what_the_client_holds() -> None:
    async def hold() -> None:
        async with serving() as server:
            holding = Holding(EXCHANGE, b"d" * 32, 1_000)
            token = await server.join()
            server.open(hello_message(token))
            await settle()
            server.open(hello_message(token, holding))
            await settle()
            assert server.inbox.holdings == [None, holding]

    run(hold())


def test_a_client_that_claims_to_hold_nonsense_is_refused() -> None:
    async def hold() -> None:
        async with serving() as server:
            holding = Holding(ExchangeId("run", 1, 0, "n" * 65, 0), b"", 0)
            connection, _ = server.open(hello_message(await server.join(), holding))
            await settle()
            assert connection.code() is INVALID

    run(hold())


# What is counted.


@given(st.lists(st.sampled_from([ANSWER, FAILURE, CHUNK, CLIENT_HEARTBEAT]), max_size=20))
def test_every_message_is_counted_once(messages: list[bytes]) -> None:
    async def exchange() -> None:
        async with serving() as server:
            connection = await server.connect()
            before = server.inbox.other.traffic
            server.session().send_work(work(size=3, meter=server.inbox.exchange))
            connection.bring(*messages)
            await settle(100)
            heartbeats = messages.count(CLIENT_HEARTBEAT) * len(CLIENT_HEARTBEAT)
            counted = server.inbox.exchange.traffic
            assert counted.wire_bytes_up == sum(map(len, messages)) - heartbeats
            assert counted.wire_bytes_down == sum(map(len, connection.written))
            assert counted.payload_bytes_down == 300
            other = server.inbox.other.traffic
            assert other.wire_bytes_up == before.wire_bytes_up + heartbeats
            assert other.wire_bytes_down == before.wire_bytes_down

    run(exchange())


def test_joining_counts_as_what_belongs_to_no_exchange() -> None:
    async def join() -> None:
        async with serving() as server:
            hello = hello_message(await server.join())
            joined = server.inbox.other.traffic
            response = pb.JoinResponse(manifest=pb.Manifest(run_id="run"), session_token="0" * 32, takes_batches=True)
            assert joined.wire_bytes_down == response.ByteSize()
            server.open(hello)
            await settle()
            assert server.inbox.other.traffic.wire_bytes_up == joined.wire_bytes_up + len(hello)

    run(join())


def test_an_ordinary_end_of_a_stream_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    async def come_again() -> None:
        async with serving() as server:
            await server.connect()
            await server.connect()

    caplog.set_level(logging.INFO)
    run(come_again())
    assert "opened a newer stream" in caplog.text or "joined again" in caplog.text
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


def test_a_join_tells_the_old_stream_why_it_ends() -> None:
    async def come_again() -> None:
        async with serving() as server:
            old: Connection = await server.connect()
            await server.join()
            await settle()
            assert old.status == (grpc.StatusCode.ABORTED, "'site' joined again")

    run(come_again())


def test_an_inbox_that_fails_to_take_a_client_loses_it_once() -> None:
    async def fail() -> None:
        async with serving() as server:
            token = await server.join()
            server.inbox.connect_error = RuntimeError("no room")
            _, stream = server.open(hello_message(token))
            await asyncio.wait((stream,))
            assert isinstance(stream.exception(), RuntimeError)
            assert server.inbox.events == ["site connected", "site disconnected"]
            assert server.session().stream is None
            server.inbox.connect_error = None
            server.open(hello_message(token))
            await settle()
            assert server.inbox.events[2:] == ["site connected"]

    run(fail())
