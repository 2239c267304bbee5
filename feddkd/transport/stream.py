"""One open Participate stream: sends, checks that its client is alive, and ends."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import grpc

from feddkd.traffic import Meter
from feddkd.transport.calls import Context
from feddkd.transport.limits import TokenBucket
from feddkd.transport.messages import SERVER_HEARTBEAT
from feddkd.transport.outbox import MAX_WAITING_BYTES, MAX_WAITING_MESSAGES, Outbox, Outgoing

HEARTBEAT_S = 10.0
"""Seconds without another message after which the server sends a heartbeat."""

SILENCE_LIMIT_S = 30.0
"""Seconds without any message of the client after which the server ends its stream."""

WRITE_STALL_S = 60.0
"""Default of the seconds that one message may wait for a client that does not read."""

MESSAGE_BURST = 32
MESSAGES_PER_S = 2.0
"""Messages other than chunks that a client may send; each work that it gets allows one more."""

STRAY_CHUNK_BURST = 65_536
STRAY_CHUNKS_PER_S = 1_000.0
"""Chunks that belong to no open exchange. An honest upload leaves some when its exchange closes:
what was under way in the network, in messages of `transport.chunk_bytes` (1 KiB or more)."""


class End(NamedTuple):
    """How a stream ended: the status for the client, and one line for it and for the log."""

    code: grpc.StatusCode
    reason: str


class Stream:
    """One open Participate stream of a client.

    Attributes:
        end: set by the first `finish`.
        messages: bounds the client's messages other than chunks.
        stray_chunks: bounds its chunks that belong to no open exchange.
    """

    def __init__(self, now: float = 0.0) -> None:
        self.outbox = Outbox()
        self.end: End | None = None
        self.messages = TokenBucket(MESSAGE_BURST, MESSAGES_PER_S, now)
        self.stray_chunks = TokenBucket(STRAY_CHUNK_BURST, STRAY_CHUNKS_PER_S, now)
        self._ended = asyncio.Event()
        self._listening_since: float | None = now

    def send(self, outgoing: Outgoing) -> None:
        """Write short messages when the client takes them. Too many that wait end the stream."""
        if self.end is None and not self.outbox.put(outgoing):
            limit = f"{MAX_WAITING_MESSAGES} messages or {MAX_WAITING_BYTES >> 20} MiB"
            self.finish(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"the client does not read: {limit} wait for it",
            )

    def send_work(self, outgoing: Outgoing) -> None:
        """Write a broadcast when the client takes it, in place of one that still waits."""
        if self.end is None:
            self.messages.give()
            self.outbox.put_work(outgoing)

    def close(self) -> None:
        """End the stream once everything sent before is written."""
        self.outbox.close()

    def finish(self, code: grpc.StatusCode, reason: str) -> None:
        """End the stream now; only the first end counts."""
        if self.end is None:
            self.end = End(code, reason)
            self._ended.set()

    async def ended(self) -> End:
        """Return how the stream ended, once it has."""
        await self._ended.wait()
        assert self.end is not None
        return self.end

    def silent_s(self, now: float) -> float:
        """Return the seconds for which the server has waited for a message of the client.

        0 while the inbox holds the client back: then the silence is not the client's. From any thread.
        """
        since = self._listening_since
        return 0.0 if since is None else now - since

    async def read(self, context: Context) -> bytes | None:
        """Return the client's next message, or None at its end or after too long a silence."""
        now = asyncio.get_running_loop().time
        self._listening_since = now()
        try:
            async with asyncio.timeout(SILENCE_LIMIT_S):
                message: object = await context.read()
        except TimeoutError:
            self.finish(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"no message of the client for {SILENCE_LIMIT_S:g} s, not even a heartbeat",
            )
            return None
        self._listening_since = None
        if not isinstance(message, bytes):  # gRPC's end of stream
            self.finish(grpc.StatusCode.OK, "")
            return None
        return message

    async def write(self, context: Context, other: Meter, stall_s: float) -> None:
        """Write what is sent, until the outbox is finished; heartbeats while there is nothing.

        Args:
            other: counts the heartbeats.
            stall_s: seconds after which a message that the client does not take ends the stream.
        """
        while not self.outbox.finished:
            if (frame := await self._next_frame(other)) is None:
                continue
            try:
                async with asyncio.timeout(stall_s):
                    await context.write(frame)
            except TimeoutError:
                self.finish(
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                    f"the client did not read for {stall_s:g} s (scheduler.stall_timeout_s)",
                )
                return
        self.finish(grpc.StatusCode.OK, "")

    async def _next_frame(self, other: Meter) -> bytes | None:
        """Return the next message, or a heartbeat; None if what was sent is no longer needed."""
        if (frame := self.outbox.next_frame()) is not None:
            return frame
        try:
            async with asyncio.timeout(HEARTBEAT_S):
                await self.outbox.changed()
        except TimeoutError:
            other.down(len(SERVER_HEARTBEAT))
            return SERVER_HEARTBEAT
        return self.outbox.next_frame()
