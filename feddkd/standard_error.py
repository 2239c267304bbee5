"""Keeps a reader that hangs, of the pipe or terminal behind standard error, from stopping this process.

The loop that serves the clients writes log entries. Blocked in one of them, it would answer no client.
"""

from __future__ import annotations

import atexit
import io
import os
import select
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

STANDARD_ERROR = 2

MOST_WAITING_BYTES = 1 << 20
"""What is kept for a reader that is slow; further writes are lost, and counted."""

LAST_WAIT_S = 2.0
"""How long the end of the process waits for the reader."""


class PatientStream(io.TextIOBase):
    """Writes at once what the descriptor takes, keeps the rest in order for the next write, and never waits.

    Attributes:
        lost: writes since the last notice that were not kept.
        notice: returns the line that says how many were lost.
    """

    def __init__(self, before: TextIO) -> None:
        """Args:
        before: the stream until now, whose descriptor and encoding are used.
        """
        before.flush()
        self._before = before
        self._descriptor = _not_blocking(before.fileno())
        self._lock = threading.RLock()  # a signal handler may write in the midst of a write
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self.lost = 0
        self.notice: Callable[[int], str] = _notice

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._before.encoding

    def fileno(self) -> int:
        return self._before.fileno()

    def isatty(self) -> bool:
        return self._before.isatty()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        """Write, or keep for later. Raises OSError where nothing reads any more, or a disk is full."""
        data = text.encode(self.encoding, "backslashreplace")
        with self._lock:
            self._write_waiting()
            if self._waiting and self._waiting_bytes + len(data) > MOST_WAITING_BYTES:
                self.lost += 1
                return len(text)
            if self.lost and not self._waiting:
                lost, self.lost = self.lost, 0
                self._keep(self.notice(lost).encode(self.encoding, "backslashreplace"))
            self._keep(data)
            self._write_waiting()
        return len(text)

    def finish(self, wait_s: float = LAST_WAIT_S) -> None:
        """Write what is left, as far as the reader takes it in time."""
        until = time.monotonic() + wait_s
        with self._lock:
            while self._waiting and (left_s := until - time.monotonic()) > 0:
                _wait_until_writable(self._descriptor, left_s)
                try:
                    self._write_waiting()
                except OSError:
                    return

    def _keep(self, data: bytes) -> None:
        self._waiting.append(data)
        self._waiting_bytes += len(data)

    def _write_waiting(self) -> None:
        while self._waiting and _wait_until_writable(self._descriptor, 0.0):
            data = self._waiting.popleft()
            self._waiting_bytes -= len(data)
            try:
                written = os.write(self._descriptor, data[: select.PIPE_BUF])
            except BlockingIOError:
                written = 0
            if written < len(data):
                self._waiting.appendleft(data[written:])
                self._waiting_bytes += len(data) - written
            if not written:
                return


def never_wait_for_standard_error() -> None:
    """Put a patient stream in the place of standard error, where that is a pipe, a socket or a terminal. Again does nothing."""
    try:
        if isinstance(sys.stderr, PatientStream) or sys.stderr.fileno() != STANDARD_ERROR:
            return
        mode = os.fstat(STANDARD_ERROR).st_mode
    except (OSError, ValueError, AttributeError):
        return
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode):
        stream = PatientStream(sys.stderr)
        sys.stderr = stream
        atexit.register(stream.finish)


def _not_blocking(descriptor: int) -> int:
    """Open what is behind a descriptor a second time, so that writing does not block: other processes share the first.

    Returns the descriptor itself where that cannot be: for a socket, or where the pipe belongs to another user. A
    write of at most `PIPE_BUF` bytes to one that can be written does not block, if no other process fills it meanwhile.
    """
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)):
        return descriptor
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return descriptor


def _wait_until_writable(descriptor: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(timeout_s * 1000))


def _notice(lost: int) -> str:
    return f"feddkd: {lost} lines were lost, because standard error was not read\n"
