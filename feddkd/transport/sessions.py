"""Who has joined, and what is on its way to them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from feddkd.traffic import Traffic


@dataclass(slots=True)
class Outgoing:
    """Messages for one client, written one after another.

    Attributes:
        frames: the messages; produced only as fast as the client takes them.
        traffic: says where the bytes of the next frame are counted.
        wanted: asked before each frame; when it says no, the rest is dropped.
    """

    frames: Iterable[bytes]
    traffic: Callable[[], Traffic]
    wanted: Callable[[], bool] = lambda: True


class Stream:
    """One open Participate stream of a client."""

    def __init__(self) -> None:
        self.outbox: asyncio.Queue[Outgoing | None] = asyncio.Queue()
        self.superseded = asyncio.Event()

    def close(self) -> None:
        """End the stream once everything sent before is written."""
        self.outbox.put_nowait(None)


@dataclass(slots=True)
class Session:
    """A client that has joined; its stream comes and goes."""

    client_id: str
    num_examples: int
    instance_id: str
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    stream: Stream | None = None

    def send(self, outgoing: Outgoing) -> None:
        """Write when the client takes it; dropped if it is not connected."""
        if self.stream is not None:
            self.stream.outbox.put_nowait(outgoing)
