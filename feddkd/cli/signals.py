"""Lets a handler of a signal act in the process that set it, and in none that is forked from it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType

Handler = Callable[[int, FrameType | None], None]


def for_this_process(handler: Handler) -> Handler:
    """Return a handler that does what `handler` does here; a forked process ends by the signal, as if it had none.

    A pool of processes ends its workers by SIGTERM. What a command does at that signal is not theirs to do.
    """
    here = os.getpid()

    def act(number: int, frame: FrameType | None) -> None:
        if os.getpid() == here:
            handler(number, frame)
            return
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    return act
