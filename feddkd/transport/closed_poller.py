"""Keeps an error of gRPC's that says nothing off the screen."""

from __future__ import annotations

import asyncio
import errno
from typing import Any


def ignore_closed_poller(loop: asyncio.AbstractEventLoop) -> None:
    """Let an event loop pass over the last read of gRPC's poller.

    grpc.aio closes its poller at the end of a channel or server, and cancels the callback that reads from
    it. Where that callback had been due already, it still runs, finds a closed file, and asyncio would
    log a traceback. Nothing is lost by then.
    """
    loop.set_exception_handler(_handle)


def _handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error, handle = context.get("exception"), context.get("handle")
    is_closed = isinstance(error, OSError) and error.errno == errno.EBADF
    if not (is_closed and isinstance(handle, asyncio.Handle) and handle.cancelled()):
        loop.default_exception_handler(context)
