"""Lets SIGTERM and Ctrl-C pause a run that can go on later."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Self

from feddkd.errors import RunError, StoppedError
from feddkd.scheduler.engine import Engine
from feddkd.scheduler.records import Observer

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals(Observer):
    """Hears of the engine, and ends what waits for it when a signal comes.

    The first signal raises nothing where it arrives, once there is an engine: what is being written is
    written to its end, and an exception might be swallowed in a callback of an extension (pydantic and
    Cython do that). The second one ends the process.

    Attributes:
        reason: names the signal; empty until one came.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._engine: Engine | None = None

    def engine_ready(self, engine: Engine) -> None:
        self._engine = engine

    def receive(self, number: int, frame: FrameType | None = None) -> None:
        """Handle a signal. Raises KeyboardInterrupt for the second one, or where there is no engine yet."""
        if self.reason or self._engine is None:
            raise KeyboardInterrupt
        self.reason = f"stopped by {signal.Signals(number).name}"
        # In a thread of its own: this one may hold a lock that the engine needs.
        threading.Thread(target=self._engine.abort, args=[self.reason], daemon=True).start()

    @contextlib.contextmanager
    def handled(self, resumed_by: str | None) -> Iterator[Self]:
        """Handle the signals for a while.

        Args:
            resumed_by: how the run goes on later; None if it cannot.

        Raises:
            StoppedError: a signal came, and the run ended for it.
            KeyboardInterrupt: likewise, where the run cannot go on.
        """
        previous = {number: signal.signal(number, self.receive) for number in SIGNALS}
        try:
            yield self
        except RunError as error:
            if not self.reason:
                raise
            if resumed_by is None:
                raise KeyboardInterrupt from error
            raise StoppedError(f"{self.reason}; to go on, {resumed_by}") from error
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
