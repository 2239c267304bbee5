"""Gives processes that a user's code forks the signal handlers of plain Python."""

from __future__ import annotations

import os
import signal


def keep_handlers_to_this_process() -> None:
    """Let children that are forked from now on end on a signal, in place of acting as a command of feddkd.

    A pool of processes ends its workers by SIGTERM: this process's handler would raise in each of them.
    """
    os.register_at_fork(after_in_child=_reset)


def _reset() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
