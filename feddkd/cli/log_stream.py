"""Turns what is printed on standard error into entries of the log, a line an entry."""

from __future__ import annotations

import io
import logging
import threading
from typing import TextIO

from feddkd.log_events import about
from feddkd.text import printable

logger = logging.getLogger(__name__)

LINE_LETTERS = 4_000


class LogStream(io.TextIOBase):
    """Stands in the place of standard error, for a user's code, its libraries and client processes.

    What the logging itself prints there, where a handler fails, goes to the stream of before.
    """

    def __init__(self, before: TextIO) -> None:
        """Args:
        before: standard error until now.
        """
        self._before = before
        self._lock = threading.Lock()
        self._rest = ""
        self._logging = threading.local()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._before.encoding

    def fileno(self) -> int:
        return self._before.fileno()

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if getattr(self._logging, "is_active", False):
            return self._before.write(text)
        with self._lock:
            *lines, self._rest = f"{self._rest}{text}".split("\n")
            if len(self._rest) > LINE_LETTERS:
                lines, self._rest = [*lines, self._rest], ""
        self._logging.is_active = True
        try:
            for line in lines:
                if line.strip():
                    logger.info("%s", printable(line, LINE_LETTERS), extra=about("stderr_line"))
        finally:
            self._logging.is_active = False
        return len(text)

    def flush(self) -> None:
        self._before.flush()
