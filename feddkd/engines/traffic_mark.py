"""Keeps the wire bytes of a server in a file that outlives its process, so that no crash hides what it cost."""

from __future__ import annotations

import json
import logging
import mmap
import os
from pathlib import Path
from typing import NamedTuple

from feddkd.errors import StateError
from feddkd.exchange import ExchangeId
from feddkd.files import read_regular
from feddkd.traffic import Traffic

logger = logging.getLogger(__name__)

TRAFFIC_MARK = "traffic"
"""File in a run's folder with the wire bytes that its server has counted."""

SIZE_BYTES = 4096
"""One page of memory."""

MAGIC = int.from_bytes(b"feddkd02", "little")

_OPEN, _OTHER, _ID_BYTES, _INCARNATION = 1, 3, 5, 6
"""Positions of what follows `MAGIC`, in words of 8 bytes: down and up of each, the length of the exchange's id, the process."""

_ID = 7 * 8
"""Byte at which the id begins."""


class Marked(NamedTuple):
    """The byte counts of a process when it ended.

    Attributes:
        exchange: the one that it began last, open or closed; None if it began none. If several were open, the first.
        open: wire bytes spent on that, or on all that were open.
        other: wire bytes that belong to no exchange.
        incarnation: which process of the run counted.
    """

    exchange: ExchangeId | None
    open: Traffic
    other: Traffic
    incarnation: int = 1


class TrafficMark:
    """A memory-mapped file with the byte counts of the process that has it open.

    What is in it survives the process, not a power failure. Every count is one word, written at once: a process
    that is killed leaves whole numbers.

    Attributes:
        open: counts the messages of open exchanges.
        other: counts those of none.
    """

    def __init__(self, path: Path, incarnation: int = 1) -> None:
        """Make the file, with zeros, in place of an earlier process's: `read` that one first.

        Args:
            incarnation: counts the processes of the run; this is its number.

        Raises:
            StateError: the file cannot be made.
        """
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                # Its blocks too: a write to a map that has none would kill the process on a full disk.
                os.posix_fallocate(descriptor, 0, SIZE_BYTES)
                self._map = mmap.mmap(descriptor, SIZE_BYTES)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StateError(f"cannot create {path}: {error.strerror}") from error
        self._words = memoryview(self._map).cast("Q")
        self._words[_INCARNATION] = incarnation
        self._words[0] = MAGIC
        self.open = Tally(self._words, _OPEN)
        self.other = Tally(self._words, _OTHER)

    def begin(self, exchange: ExchangeId) -> None:
        """Begin to count for another exchange."""
        text = json.dumps([exchange.run_id, exchange.round, exchange.attempt, exchange.name, exchange.step]).encode()
        # Killed in between, the process leaves a mark of no exchange.
        self._words[_ID_BYTES] = 0
        self._words[_OPEN] = self._words[_OPEN + 1] = 0
        self._map[_ID : _ID + len(text)] = text
        self._words[_ID_BYTES] = len(text)

    @staticmethod
    def read(path: Path) -> Marked | None:
        """Return what an earlier process left; None if it left nothing that can be read."""
        try:
            content = read_regular(path, SIZE_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("cannot read %s: %s; the bytes that the previous server process counted are unknown", path, error.strerror)
            return None
        try:
            return _parse(content)
        except (ValueError, TypeError, RecursionError) as error:
            logger.warning("%s is damaged (%s); the bytes that the previous server process counted are unknown", path, error)
            return None


class Tally:
    """Two words of a mark: bytes down and up."""

    __slots__ = ("_at", "_words")

    def __init__(self, words: memoryview[int], at: int) -> None:
        self._words = words
        self._at = at

    def down(self, message_bytes: int) -> None:
        """Count a message to a client."""
        self._words[self._at] += message_bytes

    def up(self, message_bytes: int) -> None:
        """Count a message of a client."""
        self._words[self._at + 1] += message_bytes


def _parse(content: bytes) -> Marked:
    """Read a mark. Raises ValueError or TypeError."""
    if len(content) != SIZE_BYTES:
        raise ValueError(f"{len(content)} bytes where {SIZE_BYTES} are expected")
    words = memoryview(content).cast("Q")
    if words[0] != MAGIC:
        raise ValueError("it is not a traffic mark")
    exchange = None
    if words[_ID_BYTES]:
        run_id, number, attempt, name, step = json.loads(content[_ID : _ID + words[_ID_BYTES]])
        exchange = ExchangeId(run_id, number, attempt, name, step)
    return Marked(exchange, _traffic(words, _OPEN), _traffic(words, _OTHER), words[_INCARNATION])


def _traffic(words: memoryview[int], at: int) -> Traffic:
    return Traffic(wire_bytes_down=words[at], wire_bytes_up=words[at + 1])
