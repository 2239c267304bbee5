"""How the server takes the end of a client's stream, whichever part of it comes first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NoReturn, cast

import grpc
import grpc.aio
import pytest

from feddkd.exchange import ExchangeId
from feddkd.traffic import Traffic
from feddkd.transport.messages import failure_message, hello_message
from feddkd.transport.pb import federation_pb2 as pb
from feddkd.transport.server import Context, FederationServer, Inbox
from feddkd.transport.sessions import Session

END_OF_STREAM = object()  # anything that is not bytes
NO_ITERATOR = cast("AsyncIterator[bytes]", None)  # the handler reads from its context


class Presence:
    """An inbox that keeps who comes and goes."""

    def __init__(self) -> None:
        self.traffic_outside = Traffic()
        self.events: list[str] = []

    def connected(self, session: Session) -> None:
        self.events.append(f"{session.client_id} connected")

    def disconnected(self, session: Session) -> None:
        self.events.append(f"{session.client_id} disconnected")

    def failed(self, session: Session, failure: pb.Failure, size_bytes: int) -> None:
        self.events.append(f"{session.client_id} failed: {failure.reason}")


class Connection:
    """What the server sees of one stream: its messages, until it is lost."""

    def __init__(self, first: bytes) -> None:
        self._messages: asyncio.Queue[object] = asyncio.Queue()
        self._messages.put_nowait(first)
        self.status: tuple[grpc.StatusCode, str] | None = None

    def lose(self) -> None:
        self._messages.put_nowait(END_OF_STREAM)

    def bring(self, message: bytes) -> None:
        self._messages.put_nowait(message)

    async def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        self.status = code, details
        raise grpc.aio.AbortError

    async def read(self) -> object:
        return await self._messages.get()


async def _pass(iterations: int) -> None:
    for _ in range(iterations):
        await asyncio.sleep(0)


@asynccontextmanager
async def _connected_client() -> AsyncIterator[tuple[FederationServer, Session, Presence, Connection, asyncio.Task[None]]]:
    """A server with one client whose stream is open."""
    inbox = Presence()
    server = FederationServer(pb.Manifest(), cast("Inbox", inbox))
    session = Session("client-1", 1, "instance")
    server._sessions["client-1"] = session
    connection = Connection(hello_message(session.token))
    stream = _open(server, connection)
    await _pass(20)
    assert inbox.events == ["client-1 connected"]
    yield server, session, inbox, connection, stream
    server.stop()


def _open(server: FederationServer, connection: Connection) -> asyncio.Task[None]:
    return asyncio.create_task(server._participate(NO_ITERATOR, cast("Context", connection)))


async def _events_of_a_loss(iterations: int) -> tuple[list[str], Session]:
    """The connection ends; so many iterations of the loop later gRPC cancels the stream's handler."""
    async with _connected_client() as (_, session, inbox, connection, stream):
        connection.lose()
        await _pass(iterations)
        stream.cancel()
        await asyncio.wait((stream,))
    return inbox.events, session


async def _events_of_a_newer_stream(iterations: int) -> list[str]:
    """The client opens another stream; so many iterations of the loop later the old connection brings a message."""
    async with _connected_client() as (server, session, inbox, old, old_stream):
        new = Connection(hello_message(session.token))
        new_stream = _open(server, new)
        await _pass(iterations)
        old.bring(failure_message(ExchangeId("run", 1, 0, "local_train", 0), "from the old stream"))
        await asyncio.wait((old_stream,))
        await _pass(20)
        assert session.stream is not None
        new.lose()
        await asyncio.wait((new_stream,))
    assert old.status == (grpc.StatusCode.ABORTED, "'client-1' opened a newer stream")
    return inbox.events


@pytest.mark.parametrize("iterations", range(12))
def test_a_lost_client_is_told_once_however_close_the_end_and_the_cancellation_are(iterations: int) -> None:
    events, session = asyncio.run(_events_of_a_loss(iterations))
    assert events == ["client-1 connected", "client-1 disconnected"]
    assert session.stream is None


@pytest.mark.parametrize("iterations", range(12))
def test_a_stream_that_a_newer_one_has_replaced_tells_nothing_more(iterations: int) -> None:
    events = asyncio.run(_events_of_a_newer_stream(iterations))
    replaced = events.index("client-1 disconnected")
    assert events[replaced:] == ["client-1 disconnected", "client-1 connected", "client-1 disconnected"]
