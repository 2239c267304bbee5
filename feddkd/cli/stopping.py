"""Lets SIGTERM and Ctrl-C pause a run that can go on later."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Self

from rich.console import Console

from feddkd.cli import EXIT_INTERRUPTED
from feddkd.cli.output import note
from feddkd.cli.signals import for_this_process
from feddkd.errors import CommandInterruptedError, RunError, StoppedError
from feddkd.scheduler.engine import Engine
from feddkd.scheduler.records import Observer

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals(Observer):
    """Hears of the engine, and ends what waits for it when a signal comes.

    The first signal raises nothing where it arrives, once there is an engine: what is being written is
    written to its end, and an exception might be swallowed in a callback of an extension (pydantic and
    Cython do that). The second one ends the process where it stands: the journal is good at any instant.

    Attributes:
        reason: names the signal; empty until one came.
    """

    def __init__(self, console: Console, record: Path, resumed_by: str) -> None:
        """Prepare; no signal is handled before `handled`.

        Args:
            console: a signal is answered there at once.
            record: folder of the record of the run.
            resumed_by: command that goes on with the run later; empty if it cannot go on.
        """
        self.reason = ""
        self._console = console
        self._record = record
        self._resumed_by = resumed_by
        self._engine: Engine | None = None

    def engine_ready(self, engine: Engine) -> None:
        self._engine = engine

    def receive(self, number: int, frame: FrameType | None = None) -> None:
        """Handle a signal. Raises KeyboardInterrupt where there is no engine yet."""
        if self.reason:
            with contextlib.suppress(OSError):
                self._console.show_cursor()  # the live bar hides it
                self._console.file.write("\n")  # and stands where the shell's prompt is to come
                self._console.file.flush()
            os._exit(EXIT_INTERRUPTED)
        if self._engine is None:
            raise KeyboardInterrupt
        self.reason = f"stopped by {signal.Signals(number).name}"
        # In a thread of its own: this one may hold a lock that the console or the engine needs.
        threading.Thread(target=self._stop, args=[self._engine, signal.Signals(number).name], daemon=True).start()

    def _stop(self, engine: Engine, name: str) -> None:
        """Say what happens now, and end what waits for the engine."""
        what = "pausing the run" if self._resumed_by else "ending the run, which cannot go on later (scheduler.durability = none)"
        note(self._console, f"{name}: {what}. A second signal ends the process at once.")
        engine.abort(self.reason)

    @contextlib.contextmanager
    def handled(self) -> Iterator[Self]:
        """Handle the signals for a while.

        Raises:
            StoppedError: a signal came, and the run ended for it.
            CommandInterruptedError: likewise, where the run cannot go on; or what the run called was interrupted.
            KeyboardInterrupt: a signal came before there was an engine.
        """
        handler = for_this_process(self.receive)
        previous = {number: signal.signal(number, handler) for number in SIGNALS}
        try:
            yield self
        except RunError as error:
            if not self.reason:
                raise
            if not self._resumed_by:
                raise CommandInterruptedError(f"{self.reason}; the record is in {self._record}/") from error
            raise StoppedError(self.reason, f"{self._record}/", self._resumed_by) from error
        except KeyboardInterrupt as error:
            if self._engine is None:
                raise
            raise CommandInterruptedError(f"the record is in {self._record}/", self._resumed_by) from error
        finally:
            for number, before in previous.items():
                signal.signal(number, before)
