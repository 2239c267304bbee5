"""Lets a signal act in the process that set its handler and in none that is forked from it, and not in the middle of an import."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
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


@contextlib.contextmanager
def held_back(*numbers: signal.Signals) -> Iterator[None]:
    """Let signals wait until the context ends.

    Raises:
        KeyboardInterrupt: one of them came.
    """
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def import_torch() -> None:
    """Import torch, which takes seconds; an interrupt comes after it.

    In the middle its C code may drop the exception, or end the process with what looks like a fault of torch.
    """
    with held_back(signal.SIGINT, signal.SIGTERM):
        import torch  # noqa: F401
