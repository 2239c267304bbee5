"""Answers unary calls, and ends those that the server refuses."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import NoReturn

import grpc
import grpc.aio

Context = grpc.aio.ServicerContext[bytes, bytes]

MAX_REASON_CHARACTERS = 500
"""Of a status: it travels in HTTP/2 headers, which are small."""

RESPONSE_TIMEOUT_S = 10.0
"""Seconds a client has to read a response."""

MAX_UNREAD_OF_A_CONNECTION = 4
MAX_WRITING = 64
MAX_WRITING_BYTES = 64 << 20
"""Of all connections, responses being written: the limit that allows more calls counts."""


async def refuse(context: Context, code: grpc.StatusCode, reason: str) -> NoReturn:
    """End a call with a status. Where the client is gone already, end it silently.

    Returns as soon as the status is written. That may take until the client closes its connection,
    if it does not read.
    """
    try:
        await context.abort(code, reason[:MAX_REASON_CHARACTERS])
    except grpc.aio.AbortError:
        raise
    except grpc.aio.BaseError:
        raise asyncio.CancelledError from None


class Responses:
    """Writes the responses of calls that have one each, and bounds those that are not read.

    gRPC keeps a copy of each response until the client reads it or closes its connection; to end
    the call does not free it. So a response counts for its connection until its call has ended. It
    counts for all connections only while it is written: a client that never reads may not keep
    the others out for longer than the timeout.
    """

    def __init__(self, size_bytes: int) -> None:
        """Args:
        size_bytes: about the size of a response.
        """
        self._max_writing = max(MAX_WRITING, MAX_WRITING_BYTES // max(1, size_bytes))
        self._writing = 0
        self._unread_of: Counter[str] = Counter()

    async def write(self, context: Context, make: Callable[[], Awaitable[bytes]]) -> None:
        """Write the response that `make` returns, or end the call with a status.

        Too many unread responses end it with RESOURCE_EXHAUSTED before `make` is called. A client
        that does not read in time gets DEADLINE_EXCEEDED. What `make` raises is passed on.
        """
        peer = context.peer()
        if (reason := self._full(peer)) is not None:
            await refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, reason)
        self._unread_of[peer] += 1
        try:
            response = await make()
            if not await self._is_read(context, response):
                reason = f"the client did not read the response for {RESPONSE_TIMEOUT_S:g} s"
                await refuse(context, grpc.StatusCode.DEADLINE_EXCEEDED, reason)
        finally:
            self._unread_of[peer] -= 1
            if not self._unread_of[peer]:
                del self._unread_of[peer]

    def _full(self, peer: str) -> str | None:
        """Say why no response may be written to a connection now; None if one may."""
        if self._unread_of.get(peer, 0) >= MAX_UNREAD_OF_A_CONNECTION:
            return f"{MAX_UNREAD_OF_A_CONNECTION} responses on this connection are not read"
        if self._writing >= self._max_writing:
            return f"{self._max_writing} responses are being written; try again"
        return None

    async def _is_read(self, context: Context, response: bytes) -> bool:
        """Write a response; returns False if the client does not read it in time."""
        self._writing += 1
        try:
            async with asyncio.timeout(RESPONSE_TIMEOUT_S):
                # By itself: gRPC cannot end a call whose first write, with this, is cut off.
                await context.send_initial_metadata(())
                await context.write(response)
        except TimeoutError:
            return False
        except grpc.aio.BaseError:  # the client is gone; nobody is left to be told
            raise asyncio.CancelledError from None
        finally:
            self._writing -= 1
        return True
