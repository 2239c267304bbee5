"""How the server ends a call that it does not carry out."""

from __future__ import annotations

import asyncio
from typing import NoReturn

import grpc
import grpc.aio

Context = grpc.aio.ServicerContext[bytes, bytes]

MAX_REASON_CHARACTERS = 500
"""Of a status: it travels in HTTP/2 headers, which are small."""


async def refuse(context: Context, code: grpc.StatusCode, reason: str) -> NoReturn:
    """End a call with a status. Where the client is gone already, end it silently.

    Returns as soon as the status is written. That may take until the client closes its connection,
    if it does not read.
    """
    try:
        await context.abort(code, reason[:MAX_REASON_CHARACTERS])
    except grpc.aio.AbortError:
        raise
    except grpc.aio.BaseError:
        raise asyncio.CancelledError from None
