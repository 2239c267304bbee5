"""A real client whose server is made by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from hand_server import HandServer, HandStream

from feddkd.client.agent import Agent, Farewell
from feddkd.client.membership import Membership
from feddkd.client.work import TaskRunner
from feddkd.transport.messages import farewell_message

BYE = farewell_message(True, "all rounds are done")


class AgentScene:
    """A client that takes part, and the server side of it."""

    def __init__(self, server: HandServer, running: asyncio.Task[Farewell]) -> None:
        self.server = server
        self.running = running

    async def stream(self) -> HandStream:
        """The next stream that the client opens."""
        return await self.server.stream()

    async def back(self, stream: HandStream) -> HandStream:
        """Break the connection, and return the one that follows."""
        stream.end()
        return await self.stream()

    async def part(self, stream: HandStream) -> list[bytes]:
        """Say farewell; returns what the client had still sent."""
        await stream.send(BYE)
        rest = await stream.rest()
        assert (await self.running).completed
        return rest


@asynccontextmanager
async def taking_part(
    worker: TaskRunner,
    membership: Membership | None = None,
    retry_for_s: float | None = None,
    server: HandServer | None = None,
) -> AsyncIterator[AgentScene]:
    """Let a client take part; leaving ends it at once, as far as a process can do that to itself."""
    pool = ThreadPoolExecutor(1)
    async with (server or HandServer()).serving() as server:
        running = asyncio.create_task(Agent(server.address, "site", worker, pool, retry_for_s=retry_for_s, membership=membership).run())
        try:
            yield AgentScene(server, running)
        finally:
            running.cancel()
            await asyncio.wait([running])
            await asyncio.to_thread(pool.shutdown)
