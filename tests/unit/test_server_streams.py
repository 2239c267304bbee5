"""How the server takes the end of a client's stream, whichever part of it comes first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import pytest

from feddkd.traffic import Traffic
from feddkd.transport.messages import hello_message
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


class Connection:
    """What the server sees of one stream: its messages, until it is lost."""

    def __init__(self, first: bytes) -> None:
        self._messages: asyncio.Queue[object] = asyncio.Queue()
        self._messages.put_nowait(first)

    def lose(self) -> None:
        self._messages.put_nowait(END_OF_STREAM)

    async def read(self) -> object:
        return await self._messages.get()


async def _pass(iterations: int) -> None:
    for _ in range(iterations):
        await asyncio.sleep(0)


async def _events_of_a_loss(iterations: int) -> tuple[list[str], Session]:
    """The connection ends; so many iterations of the loop later gRPC cancels the stream's handler."""
    inbox = Presence()
    server = FederationServer(pb.Manifest(), cast("Inbox", inbox))
    session = Session("client-1", 1, "instance")
    server._sessions["client-1"] = session
    connection = Connection(hello_message(session.token))
    stream = asyncio.create_task(server._participate(NO_ITERATOR, cast("Context", connection)))
    await _pass(20)
    assert inbox.events == ["client-1 connected"]
    connection.lose()
    await _pass(iterations)
    stream.cancel()
    await asyncio.wait((stream,))
    server.stop()
    return inbox.events, session


@pytest.mark.parametrize("iterations", range(12))
def test_a_lost_client_is_told_once_however_close_the_end_and_the_cancellation_are(iterations: int) -> None:
    events, session = asyncio.run(_events_of_a_loss(iterations))
    assert events == ["client-1 connected", "client-1 disconnected"]
    assert session.stream is None
