"""Lets SIGTERM and Ctrl-C pause a run that can go on later."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Protocol

from feddkd.errors import RunError, StoppedError

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Abortable(Protocol):
    """What can be told to stop: an engine."""

    def abort(self, reason: str) -> None:
        """Make whatever waits for it raise RunError(reason)."""


class Stop:
    """Whether a process was told to stop.

    Attributes:
        reason: names the signal; empty until one came.
    """

    def __init__(self) -> None:
        self.reason = ""


@contextlib.contextmanager
def stopped_by_signals(engine: Abortable) -> Iterator[Stop]:
    """Let the first signal end what waits for the engine, and the second one end the process.

    The first raises nothing where it arrives: what is being written is written to its end, and an
    exception would be swallowed in a callback of an extension (pydantic and Cython do that).

    Raises:
        StoppedError: a signal came, and the run ended for it.
    """
    stop = Stop()

    def end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if stop.reason:
            raise KeyboardInterrupt
        stop.reason = f"stopped by {signal.Signals(number).name}"
        # In a thread of its own: this one may hold a lock that the engine needs.
        threading.Thread(target=engine.abort, args=[stop.reason], daemon=True).start()

    previous = {number: signal.signal(number, end) for number in SIGNALS}
    try:
        yield stop
    except RunError as error:
        if not stop.reason:
            raise
        raise StoppedError(stop.reason) from error
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
