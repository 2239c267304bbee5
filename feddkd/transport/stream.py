"""One open Participate stream: sends, checks that its client is alive, and ends."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import grpc

from feddkd.certs.certificate import Certificate
from feddkd.traffic import Meter
from feddkd.transport.batches import response_batch
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


CLIENT_IS_GONE = "the client has ended it, or is gone"
"""gRPC does not tell the two apart."""


class End(NamedTuple):
    """How a stream ended: the status for the client, and one line for it and for the log; empty if both ends wanted it."""

    code: grpc.StatusCode
    reason: str


class Stream:
    """One open Participate stream of a client.

    Attributes:
        end: set by the first `finish`.
        certificates: that the client showed, its own first.
        messages: bounds the client's messages other than chunks.
        stray_chunks: bounds its chunks that belong to no open exchange.
    """

    def __init__(self, now: float = 0.0, *, takes_batches: bool = False, certificates: tuple[Certificate, ...] = ()) -> None:
        """Begin to listen.

        Args:
            now: on the loop's clock.
            takes_batches: the client takes several messages in one.
        """
        self.outbox = Outbox(takes_batches=takes_batches)
        self.end: End | None = None
        self.certificates = certificates
        self.messages = TokenBucket(MESSAGE_BURST, MESSAGES_PER_S, now)
        self.stray_chunks = TokenBucket(STRAY_CHUNK_BURST, STRAY_CHUNKS_PER_S, now)
        self._ended = asyncio.Event()
        self._listening_since: float | None = now
        self._writing_since: float | None = None
        self._idle_since: float | None = now
        self._heartbeat_is_due = False

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
        """Return the client's next message, or None at its end."""
        self._listening_since = asyncio.get_running_loop().time()
        message: object = await context.read()
        self._listening_since = None
        if not isinstance(message, bytes):  # gRPC's end of stream
            self.finish(grpc.StatusCode.OK, "" if self.outbox.finished else CLIENT_IS_GONE)
            return None
        return message

    async def write(self, context: Context, other: Meter) -> None:
        """Write what is sent, until the outbox is finished; heartbeats while there is nothing.

        Args:
            other: counts the heartbeats.
        """
        now = asyncio.get_running_loop().time
        while not self.outbox.finished:
            if batch := self._next_batch(other):
                self._idle_since, self._writing_since = None, now()
                await context.write(response_batch(batch))
                self._idle_since, self._writing_since = now(), None
            else:
                await self.outbox.changed()
        self.finish(grpc.StatusCode.OK, "")

    def _next_batch(self, other: Meter) -> list[bytes]:
        """Return the next messages, or a heartbeat, or nothing if nothing is due."""
        batch, heartbeat_is_due = self.outbox.next_batch(), self._heartbeat_is_due
        self._heartbeat_is_due = False
        if not batch and heartbeat_is_due:
            other.down(len(SERVER_HEARTBEAT))
            return [SERVER_HEARTBEAT]
        return batch

    async def watch(self, stall_s: float) -> None:
        """End the stream if the client is silent or does not read for too long; let heartbeats be sent.

        One timer for all that may take too long: one for each message would cost more than the messages. It looks
        again before anything that begins meanwhile can be over.

        Args:
            stall_s: seconds after which a message that the client does not take ends the stream.
        """
        now = asyncio.get_running_loop().time
        while self.end is None:
            self._end_if_late(now(), stall_s)
            if _is_over(self._idle_since, HEARTBEAT_S, now()):
                self._heartbeat_is_due, self._idle_since = True, None
                self.outbox.wake()
            await asyncio.sleep(self._next_look_s(now(), stall_s))

    def _end_if_late(self, now: float, stall_s: float) -> None:
        if _is_over(self._listening_since, SILENCE_LIMIT_S, now):
            silent = f"no message of the client for {SILENCE_LIMIT_S:g} s, not even a heartbeat"
            self.finish(grpc.StatusCode.DEADLINE_EXCEEDED, silent)
        elif _is_over(self._writing_since, stall_s, now):
            unread = f"the client did not read for {stall_s:g} s (scheduler.stall_timeout_s)"
            self.finish(grpc.StatusCode.DEADLINE_EXCEEDED, unread)

    def _next_look_s(self, now: float, stall_s: float) -> float:
        """Seconds until something that has begun takes too long, or could if it began now."""
        begun = ((self._listening_since, SILENCE_LIMIT_S), (self._writing_since, stall_s), (self._idle_since, HEARTBEAT_S))
        until = [since + limit_s - now for since, limit_s in begun if since is not None]
        return min(*until, HEARTBEAT_S, stall_s, SILENCE_LIMIT_S)


def _is_over(since: float | None, limit_s: float, now: float) -> bool:
    return since is not None and now >= since + limit_s
