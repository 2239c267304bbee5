"""Queues the messages to one stream until they are written."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from feddkd.traffic import Meter
from feddkd.transport.batches import MAX_BATCH_BYTES, MAX_BATCH_MESSAGES

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
        lingers: may wait for another message that it can share a batch with, or for `Outbox.flush`.
    """

    frames: Iterable[bytes]
    meter: Meter
    still_needed: Callable[[], bool] = always
    on_last: Callable[[], None] = nothing
    on_written: Callable[[], None] = nothing
    lingers: bool = False


class Outbox:
    """The messages for one stream in order: short ones, and at most one broadcast that waits.

    A client that does not read must not make the server hold one payload for each exchange.
    So a new broadcast replaces one that still waits, and the short messages are bounded.
    """

    def __init__(self, *, takes_batches: bool = False) -> None:
        """Args:
        takes_batches: the client takes several messages in one.
        """
        self._takes_batches = takes_batches
        self._waiting: deque[Outgoing] = deque()
        self._work: Outgoing | None = None
        self._messages = 0
        self._bytes = 0
        self._writing: _Writing | None = None
        self._written: list[Callable[[], None]] = []
        self._closed = False
        self._is_due = False
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
        self.wake()

    def flush(self) -> None:
        """Let what lingers be written."""
        if self._waiting:
            self.wake()

    def wake(self) -> None:
        """Let the writer look for what there is to write."""
        self._is_due = True
        self._changed.set()

    def clear(self) -> None:
        """Drop everything."""
        self._waiting.clear()
        self._work = self._writing = None
        self._messages = self._bytes = 0
        self._written.clear()

    @property
    def finished(self) -> bool:
        """True once the outbox is closed and nothing is left to write."""
        return self._closed and not self._waiting and self._writing is None and not self._written

    def next_batch(self) -> list[bytes]:
        """Return the messages to write next, and count them; none if nothing is due.

        More than one only for a client that takes batches, and together they are short.
        """
        batch: list[bytes] = []
        self._tell_written()
        size_bytes = 0
        while self._is_due and len(batch) < MAX_BATCH_MESSAGES:
            writing = self._next_writing()
            if writing is None:
                self._is_due = False
            elif batch and not (self._takes_batches and size_bytes + writing.next_bytes <= MAX_BATCH_BYTES):
                break
            else:
                batch.append(self._take_frame(writing))
                size_bytes += len(batch[-1])
        return batch

    async def changed(self) -> None:
        """Return once something is due that `next_batch` has not returned, or the outbox was closed."""
        if not self._is_due and not self._closed:
            self._changed.clear()
            await self._changed.wait()

    def _tell_written(self) -> None:
        """Tell those whose last message was in the batch before."""
        written, self._written = self._written, []
        for on_written in written:
            on_written()

    def _take_frame(self, writing: _Writing) -> bytes:
        frame = writing.take()
        if writing.is_over:
            self._written.append(writing.outgoing.on_written)
            self._writing = None
        return frame

    def _next_writing(self) -> _Writing | None:
        """Return what has a message to write next; None if nothing has."""
        while self._writing is not None or self._waiting:
            if self._writing is None:
                self._writing = _Writing(self._take())
            if self._writing.has_next():
                return self._writing
            self._writing = None
        return None

    def _add(self, outgoing: Outgoing) -> None:
        self._waiting.append(outgoing)
        if self._closed or not (outgoing.lingers and self._takes_batches):
            self.wake()

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

    def has_next(self) -> bool:
        """Return whether there is another message that is needed."""
        if not self.outgoing.still_needed():
            return False
        if not self._started:
            self._started = True
            self._next = next(self._frames, None)
        return self._next is not None

    @property
    def next_bytes(self) -> int:
        """Size of the next message, if there is one."""
        return len(self._next or b"")

    @property
    def is_over(self) -> bool:
        """Whether the last message has been taken."""
        return self._started and self._next is None

    def take(self) -> bytes:
        """Return the next message, which there is.

        It is counted before it is written: its answer may be read before the write returns.
        """
        frame = self._next
        assert frame is not None
        self._next = next(self._frames, None)
        if self._next is None:
            self.outgoing.on_last()
        self.outgoing.meter.down(len(frame))
        return frame


def _size(outgoing: Outgoing) -> tuple[int, int]:
    """Messages and bytes of an `Outgoing` whose frames are a tuple."""
    frames = tuple(outgoing.frames)
    return len(frames), sum(map(len, frames))
