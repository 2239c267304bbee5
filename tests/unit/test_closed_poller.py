"""What an event loop logs of gRPC's poller."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator

import pytest

from feddkd.transport.closed_poller import ignore_closed_poller


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    found = asyncio.new_event_loop()
    ignore_closed_poller(found)
    yield found
    found.close()


@pytest.mark.parametrize(
    ("error", "cancelled", "logged"),
    [
        (OSError(errno.EBADF, "Bad file descriptor"), True, False),
        (OSError(errno.EBADF, "Bad file descriptor"), False, True),
        (OSError(errno.EPIPE, "Broken pipe"), True, True),
        (ValueError("wrong"), True, True),
    ],
)
def test_only_a_cancelled_read_of_a_closed_file_is_passed_over(
    loop: asyncio.AbstractEventLoop,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    cancelled: bool,
    logged: bool,
) -> None:
    handle = loop.call_soon(print)
    if cancelled:
        handle.cancel()
    loop.call_exception_handler({"message": "Exception in callback", "exception": error, "handle": handle})
    assert bool(caplog.records) is logged
