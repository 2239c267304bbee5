"""What a client's end of the stream makes of gRPC's own errors."""

from __future__ import annotations

import asyncio
from typing import cast

import grpc.aio
import pytest

from feddkd.errors import UnreachableError
from feddkd.transport.client import ServerStream


class EndedCall:
    """A call on which nothing can be written any more."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def write(self, message: bytes) -> None:
        raise self._error


@pytest.mark.parametrize("error", [asyncio.InvalidStateError("RPC already finished."), grpc.aio.UsageError("RPC is closed.")])
def test_a_write_after_the_end_is_a_lost_connection(error: Exception) -> None:
    stream = ServerStream(cast("grpc.aio.StreamStreamCall[bytes, bytes]", EndedCall(error)), "127.0.0.1:1")
    with pytest.raises(UnreachableError, match=r"^server 127\.0\.0\.1:1: the stream is closed \(RPC"):
        asyncio.run(stream.send([b"answer"]))
