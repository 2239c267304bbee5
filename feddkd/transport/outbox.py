"""Queues the messages to one stream until they are written."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from feddkd.traffic import Meter

MAX_WAITING_MESSAGES = 64
MAX_WAITING_BYTES = 1 << 20
"""What may wait beside a broadcast. A client that reads stays far below it."""


def always() -> bool:
    return True


def nothing() -> None:
    """Do nothing."""


@dataclass(slots=True, eq=False)
class Outgoing:
    """Messages for one client, written one after another.

    Attributes:
        frames: the messages; produced only as fast as the client takes them.
        meter: counts each message: of a broadcast before it is written, short ones when they are sent.
        still_needed: asked before each message; once it returns False the rest is dropped.
        on_last: called when the last message is about to be written.
        on_written: called when it has been handed to gRPC.
    """

    frames: Iterable[bytes]
    meter: Meter
    still_needed: Callable[[], bool] = always
    on_last: Callable[[], None] = nothing
    on_written: Callable[[], None] = nothing


class Outbox:
    """The messages for one stream in order: short ones, and at most one broadcast that waits.

    A client that does not read must not make the server hold one payload for each exchange.
    So a new broadcast replaces one that still waits, and the short messages are bounded.
    """

    def __init__(self) -> None:
        self._waiting: deque[Outgoing] = deque()
        self._work: Outgoing | None = None
        self._messages = 0
        self._bytes = 0
        self._writing: _Writing | None = None
        self._closed = False
        self._changed = asyncio.Event()

    def put(self, outgoing: Outgoing) -> bool:
        """Add short messages, and count them. Returns False, and adds nothing, if too much waits already."""
        short = dataclasses.replace(outgoing, frames=tuple(outgoing.frames), meter=Meter())
        messages, size_bytes = _size(short)
        messages += self._messages
        size_bytes += self._bytes
        if messages > MAX_WAITING_MESSAGES or size_bytes > MAX_WAITING_BYTES:
            return False
        self._messages, self._bytes = messages, size_bytes
        # Counted now, not when it is written: a refusal belongs to its exchange, which may close before the
        # client reads it.
        for frame in short.frames:
            outgoing.meter.down(len(frame))
        self._add(short)
        return True

    def put_work(self, outgoing: Outgoing) -> None:
        """Add a broadcast, in place of one that still waits."""
        if self._work is not None:
            self._waiting.remove(self._work)
        if self._writing is not None and not self._writing.outgoing.still_needed():
            self._writing = None  # its payload need not wait for a client that does not read
        self._work = outgoing
        self._add(outgoing)

    def close(self) -> None:
        """Mark the end: the outbox is `finished` once everything is written."""
        self._closed = True
        self._changed.set()

    def clear(self) -> None:
        """Drop everything."""
        self._waiting.clear()
        self._work = self._writing = None
        self._messages = self._bytes = 0

    @property
    def finished(self) -> bool:
        """True once the outbox is closed and nothing is left to write."""
        return self._closed and not self._waiting and self._writing is None

    def next_frame(self) -> bytes | None:
        """Return the next message to write, and count it; None if there is none."""
        while self._writing is not None or self._waiting:
            if self._writing is None:
                self._writing = _Writing(self._take())
            if (frame := self._writing.next_frame()) is not None:
                return frame
            self._writing = None
        return None

    async def changed(self) -> None:
        """Return once something was added, or the outbox was closed, since `next_frame`."""
        if not self._waiting and not self._closed:
            self._changed.clear()
            await self._changed.wait()

    def _add(self, outgoing: Outgoing) -> None:
        self._waiting.append(outgoing)
        self._changed.set()

    def _take(self) -> Outgoing:
        outgoing = self._waiting.popleft()
        if outgoing is self._work:
            self._work = None
        else:
            messages, size_bytes = _size(outgoing)
            self._messages -= messages
            self._bytes -= size_bytes
        return outgoing


class _Writing:
    """An `Outgoing` whose messages are being written."""

    def __init__(self, outgoing: Outgoing) -> None:
        self.outgoing = outgoing
        self._frames = iter(outgoing.frames)
        self._started = False
        self._next: bytes | None = None

    def next_frame(self) -> bytes | None:
        """Return the next message, or None after the last one that is needed.

        It is counted before it is written: its answer may be read before the write returns.
        """
        if not self.outgoing.still_needed():
            return None
        frame = self._next if self._started else next(self._frames, None)
        if frame is None:
            self.outgoing.on_written()
            return None
        self._started = True
        self._next = next(self._frames, None)
        if self._next is None:
            self.outgoing.on_last()
        self.outgoing.meter.down(len(frame))
        return frame


def _size(outgoing: Outgoing) -> tuple[int, int]:
    """Messages and bytes of an `Outgoing` whose frames are a tuple."""
    frames = tuple(outgoing.frames)
    return len(frames), sum(map(len, frames))
