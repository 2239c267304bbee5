"""Messages that travel together, as the server takes and sends them: the same bytes are counted as if each came alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from fake_streams import ANSWER, CHUNK, EXCHANGE, FAILURE, Connection, Server, clock, run, settle
from hypothesis import given
from hypothesis import strategies as st

from feddkd.traffic import Meter
from feddkd.transport.batches import messages_of, request_batch
from feddkd.transport.messages import CLIENT_HEARTBEAT, SERVER_HEARTBEAT, Verdict, hello_message, receipt_message
from feddkd.transport.pb import federation_pb2 as pb
from feddkd.transport.sessions import Outgoing

RECEIPT = receipt_message(EXCHANGE, Verdict.VERDICT_OK)
WORK = pb.ParticipateResponse(work=pb.Work(deadline_s=1)).SerializeToString()


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Server, Connection]]:
    """A server with one client, which takes batches."""
    server = Server()
    try:
        connection, _ = server.open(hello_message(await server.join(), takes_batches=True))
        await settle()
        yield server, connection
    finally:
        await server.close()


def lingering(meter: Meter) -> Outgoing:
    return Outgoing((RECEIPT,), meter, lingers=True)


def test_a_receipt_that_lingers_travels_with_the_next_work() -> None:
    async def exchange() -> None:
        async with connected() as (server, connection):
            server.session().send(lingering(Meter()))
            await settle()
            assert connection.written == []
            server.session().send_work(Outgoing((WORK, CHUNK), Meter()))
            await settle()
            (batch,) = connection.written
            assert list(messages_of(batch)) == [RECEIPT, WORK, CHUNK]

    run(exchange())


@pytest.mark.parametrize("end", ["flush", "heartbeat", "farewell"])
def test_a_receipt_that_lingers_comes_without_a_work_too(end: str) -> None:
    async def exchange() -> None:
        async with connected() as (server, connection):
            session = server.session()
            session.send(lingering(Meter()))
            if end == "flush":
                session.flush()
            elif end == "farewell":
                assert session.stream is not None
                session.stream.close()
            else:
                await clock().pass_time(10.0)
            await settle()
            assert connection.written == [RECEIPT]

    run(exchange())


def test_a_client_that_does_not_take_batches_gets_none() -> None:
    async def exchange() -> None:
        server = Server()
        connection = await server.connect()
        server.session().send(lingering(Meter()))
        server.session().send_work(Outgoing((WORK, CHUNK), Meter()))
        await settle()
        assert connection.written == [RECEIPT, WORK, CHUNK]
        await server.close()

    run(exchange())


@given(st.lists(st.lists(st.sampled_from([ANSWER, FAILURE, CHUNK, CLIENT_HEARTBEAT]), min_size=1, max_size=5), max_size=5))
def test_the_messages_of_batches_count_as_if_each_came_alone(batches: list[list[bytes]]) -> None:
    async def exchange() -> None:
        async with connected() as (server, connection):
            inbox = server.inbox
            before = inbox.other.traffic
            server.session().send_work(Outgoing((WORK,) * 3, inbox.exchange))
            connection.bring(*map(request_batch, batches))
            await settle(100)
            counted, other = inbox.exchange.traffic, inbox.other.traffic
            sent = [message for batch in batches for message in batch]
            heartbeats = sent.count(CLIENT_HEARTBEAT) * len(CLIENT_HEARTBEAT)
            assert counted.wire_bytes_up == sum(map(len, sent)) - heartbeats
            assert counted.wire_bytes_down == 3 * len(WORK)
            assert other.wire_bytes_up == before.wire_bytes_up + heartbeats
            assert other.wire_bytes_down == before.wire_bytes_down

    run(exchange())


def test_a_batch_is_handed_over_in_order_until_a_message_ends_the_stream() -> None:
    broken = pb.ParticipateRequest(hello=pb.Hello()).SerializeToString()

    async def exchange() -> None:
        async with connected() as (server, connection):
            connection.bring(request_batch([CHUNK, broken, FAILURE]))
            await settle()
            assert server.inbox.events[1:] == ["site sent 4 bytes", "site disconnected"]
            assert connection.code() is grpc.StatusCode.INVALID_ARGUMENT

    run(exchange())


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"\x3a\x05", "is not a batch"),
        (request_batch([CHUNK, request_batch([CHUNK, CHUNK])]), "a batch in a batch"),
        (request_batch([CLIENT_HEARTBEAT] * 65), "2 to 64"),
    ],
)
def test_a_batch_that_breaks_the_contract_ends_the_stream(message: bytes, reason: str) -> None:
    async def exchange() -> None:
        async with connected() as (_, connection):
            connection.bring(message)
            await settle()
            assert connection.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert reason in connection.reason()

    run(exchange())


def test_the_messages_of_a_batch_are_rated_one_by_one() -> None:
    async def exchange() -> None:
        async with connected() as (_, connection):
            connection.bring(request_batch([CLIENT_HEARTBEAT] * 33))
            await settle()
            assert connection.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    run(exchange())


def test_heartbeats_come_after_as_long_without_a_message_as_before() -> None:
    async def idle() -> None:
        async with connected() as (server, connection):
            await clock().pass_time(4.0)
            server.session().send_work(Outgoing((WORK,), Meter()))
            connection.bring(CLIENT_HEARTBEAT)
            await clock().pass_time(9.9)
            assert connection.written == [WORK]
            await clock().pass_time(0.1)
            assert connection.written == [WORK, SERVER_HEARTBEAT]

    run(idle())
