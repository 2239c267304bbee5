"""Describe and Join: one response, which the client must read."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

import grpc
import grpc.aio
import pytest
from fake_streams import Connection, FakeInbox, Server, clock, run, settle

from feddkd.errors import RefusedError, UnreachableError
from feddkd.exchange import ExampleCounts
from feddkd.transport.calls import (
    MAX_UNREAD_OF_A_CONNECTION,
    MAX_WRITING,
    MAX_WRITING_BYTES,
    RESPONSE_TIMEOUT_S,
    Context,
    Responses,
)
from feddkd.transport.client import ServerConnection
from feddkd.transport.frames import SERVICE
from feddkd.transport.pb import federation_pb2 as pb
from feddkd.transport.server import Admission, FederationServer

DESCRIBE = pb.DescribeRequest(protocol_version=1).SerializeToString()
JOIN = pb.JoinRequest(protocol_version=1, client_id="site", num_examples=1).SerializeToString()
DEADLINE = grpc.StatusCode.DEADLINE_EXCEEDED
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


class Calls:
    """Calls to a server without a port."""

    def __init__(self) -> None:
        self.server = Server()
        self._handlers: list[asyncio.Task[None]] = []

    async def call(self, request: bytes, peer: str = "a", *, reads: bool = True) -> Connection:
        """Call Describe or Join, and let everything happen that needs no time."""
        connection = Connection(peer=peer)
        if not reads:
            connection.stop_reading()
        server = self.server.server
        method = server._describe if request == DESCRIBE else server._join
        handling = method(request, cast("Context", connection))
        self._handlers.append(asyncio.create_task(_until_aborted(handling)))
        await settle()
        return connection

    async def close_connections(self) -> None:
        """As gRPC does when a connection is closed, cancel the handlers of its calls."""
        for handler in self._handlers:
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)


async def _until_aborted(handling: object) -> None:
    with contextlib.suppress(grpc.aio.AbortError):
        await handling  # type: ignore[misc]


@asynccontextmanager
async def calling() -> AsyncIterator[Calls]:
    calls = Calls()
    try:
        yield calls
    finally:
        await calls.close_connections()
        await calls.server.close()


@pytest.mark.parametrize("request_", [DESCRIBE, JOIN])
def test_a_response_that_is_not_read_ends_its_call(request_: bytes) -> None:
    async def wait() -> None:
        async with calling() as calls:
            connection = await calls.call(request_, reads=False)
            await clock().pass_time(RESPONSE_TIMEOUT_S - 1)
            assert connection.code() is None
            await clock().pass_time(1)
            assert connection.code() is DEADLINE
            assert connection.written == []

    run(wait())


@pytest.mark.parametrize("request_", [DESCRIBE, JOIN])
@pytest.mark.parametrize("waited_s", [0.0, 2 * RESPONSE_TIMEOUT_S])
def test_unread_responses_of_a_connection_are_bounded(request_: bytes, waited_s: float) -> None:
    """Also after the timeout: gRPC keeps the response until the connection is closed."""

    async def flood() -> None:
        async with calling() as calls:
            for _ in range(MAX_UNREAD_OF_A_CONNECTION):
                await calls.call(DESCRIBE, reads=False)
            await clock().pass_time(waited_s)
            assert (await calls.call(request_)).code() is EXHAUSTED
            assert calls.server.server.sessions() == []
            assert (await calls.call(request_, "b")).written
            await calls.close_connections()
            assert (await calls.call(DESCRIBE)).written

    run(flood())


def test_a_response_that_is_read_makes_room() -> None:
    async def read() -> None:
        async with calling() as calls:
            unread = [await calls.call(DESCRIBE, reads=False) for _ in range(MAX_UNREAD_OF_A_CONNECTION)]
            assert (await calls.call(JOIN)).code() is EXHAUSTED
            unread[0].read_again()
            await settle()
            assert (await calls.call(JOIN)).written

    run(read())


@pytest.mark.parametrize(
    ("size", "allowed"),
    [(0, MAX_WRITING_BYTES), (1 << 19, 128), (1 << 20, MAX_WRITING), (1 << 24, MAX_WRITING)],
)
def test_responses_of_all_connections_are_bounded(size: int, allowed: int) -> None:
    async def flood() -> None:
        responses = Responses(size)
        count = min(allowed, 200)
        responses._writing = allowed - count

        async def response() -> bytes:
            return b"response"

        def start(connection: Connection) -> asyncio.Task[None]:
            writing = responses.write(cast("Context", connection), response)
            return asyncio.create_task(_until_aborted(writing))

        calls = [Connection(peer=str(number)) for number in range(count)]
        for call in calls:
            call.stop_reading()
        handlers = [start(call) for call in calls]
        await settle()
        late = Connection(peer="late")
        await start(late)
        assert late.code() is EXHAUSTED
        await clock().pass_time(RESPONSE_TIMEOUT_S)
        assert {call.code() for call in calls} == {DEADLINE}
        # Clients that never read do not keep the others out for longer.
        again = Connection(peer="late")
        await start(again)
        assert again.written == [b"response"]
        for handler in handlers:
            handler.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)

    run(flood())


# At a real server.


@asynccontextmanager
async def listening(manifest: pb.Manifest) -> AsyncIterator[tuple[FederationServer, str]]:
    server = FederationServer(manifest, FakeInbox(), admission=Admission())
    port = server.start("127.0.0.1", 0)
    try:
        yield server, f"127.0.0.1:{port}"
    finally:
        await asyncio.to_thread(server.stop)


def test_a_unary_client_gets_its_response() -> None:
    manifest = pb.Manifest(run_id="run", config_toml="x" * (1 << 19))

    async def ask() -> None:
        async with listening(manifest) as (_, address):
            with grpc.insecure_channel(address) as channel:
                plain: Callable[..., bytes] = channel.unary_unary(f"/{SERVICE}/Describe", None, None)
                response = await asyncio.to_thread(plain, DESCRIBE)
            assert pb.DescribeResponse.FromString(response).manifest == manifest
            async with ServerConnection(address) as connection:
                assert await connection.describe() == manifest
                assert (await connection.join("site", ExampleCounts(1), "secret")).manifest == manifest

    asyncio.run(ask())


def test_a_client_that_comes_while_too_much_is_written_may_come_again() -> None:
    async def ask() -> None:
        async with listening(pb.Manifest(run_id="run")) as (server, address):
            server._joining.responses._max_writing = 0
            async with ServerConnection(address) as connection:
                with pytest.raises(UnreachableError, match="try again") as refused:
                    await connection.join("site", ExampleCounts(1), "secret")
                assert not isinstance(refused.value, RefusedError)
                assert server.sessions() == []
                server._joining.responses._max_writing = 1
                assert (await connection.join("site", ExampleCounts(1), "secret")).session_token

    asyncio.run(ask())
