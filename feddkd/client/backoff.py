"""Waits while the server does not answer, and says so.

A library such as tenacity wraps a call that is tried again. A client instead keeps one connection
for hours and starts over after each success, and the time that it goes on depends on the error.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time

from feddkd.errors import IdTakenError, UnreachableError
from feddkd.log_events import about
from feddkd.text import clock_time

logger = logging.getLogger(__name__)

FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 10.0
ID_TAKEN_PATIENCE_S = 60.0
"""Seconds to ask for an id that another process has.

A client that lost its state directory gets its id back only when the server has given up its old
connection: 35 s after it last heard of it. More than 40 s leave room for the delay between two tries.
"""


class Backoff:
    """Delays that double from 0.2 s to 10 s, each shortened at random: clients do not return in step."""

    def __init__(self, client_id: str, retry_for_s: float | None) -> None:
        """Args:
        client_id: named in the log; empty where nobody is.
        retry_for_s: seconds to go on trying; None for ever.
        """
        self._client_id = client_id
        self._retry_for_s = retry_for_s
        self._attempts = 0
        self._since = 0.0
        self._said = ""

    async def wait(self, error: UnreachableError) -> None:
        """Log what went wrong, as a warning where it is new, and wait until the next try is due.

        Raises:
            UnreachableError: it has gone wrong for as long as was allowed.
        """
        now = time.monotonic()
        if self._attempts == 0:
            self._since = now
        patience_s = self._retry_for_s
        if isinstance(error, IdTakenError) and (patience_s is None or patience_s > ID_TAKEN_PATIENCE_S):
            patience_s = ID_TAKEN_PATIENCE_S
        if patience_s is not None and now - self._since >= patience_s:
            raise type(error)(f"{error} (gave up after {patience_s:g} s)") from None
        delay_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2**self._attempts) * random.uniform(0.5, 1.0)
        self._attempts += 1
        until = f", until {clock_time(patience_s - (now - self._since))}" if patience_s is not None else ""
        level = logging.INFO if str(error) == self._said else logging.WARNING
        away = about("server_unreachable", client=self._client_id or None, reason=str(error), delay_s=delay_s)
        who = f"{self._client_id}: " if self._client_id else ""
        logger.log(level, "%s%s; trying again in %.1f s%s", who, error, delay_s, until, extra=away)
        self._said = str(error)
        await asyncio.sleep(delay_s)

    def reset(self) -> None:
        """Start over after a success."""
        self._attempts = 0
        self._said = ""
