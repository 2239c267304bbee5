"""Says what a signal leaves behind, where it ends a command."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from feddkd.errors import CommandInterruptedError


@contextlib.contextmanager
def interruptible(what_is_left: str, go_on: str = "") -> Iterator[None]:
    """Let an interrupt end the command with a word.

    Args:
        what_is_left: for the message.
        go_on: the command that does the rest; empty for none.

    Raises:
        CommandInterruptedError: Ctrl-C or SIGTERM came.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise CommandInterruptedError(what_is_left, go_on) from None
