"""Bytes that crossed the network, as seen from the client: up is towards the server.

Also defines the names of the metrics of an exchange's codecs.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, Protocol, Self

Direction = Literal["down", "up"]

DIRECTIONS: tuple[Direction, ...] = ("down", "up")

CODEC_SECONDS: dict[Direction, str] = {"down": "codec_s_down", "up": "codec_s_up"}
"""Metric of an exchange: seconds that its codec took, of the server (down) and of the mean client (up)."""

CODEC_ERROR: dict[Direction, str] = {"down": "codec_error_down", "up": "codec_error_up"}
"""Metric of an exchange: norm of what its codec changed over the norm of what it encoded."""


@dataclass(slots=True)
class Traffic:
    """Byte counts of one exchange, or of a sum of them.

    Attributes:
        payload_bytes_down: encoded tensors that reached clients whole, counted once for each client however often its
            connection breaks.
        payload_bytes_up: encoded tensors of the contributions that were reduced, each counted once.
        wire_bytes_down: serialized gRPC messages written to clients, retries included.
        wire_bytes_up: serialized gRPC messages read from clients, retries included.
        dense_bytes_down: what the tensors of `payload_bytes_down` take without a codec.
        dense_bytes_up: what the tensors of `payload_bytes_up` take without a codec.
        snapshot_bytes_down: the part of `payload_bytes_down` that was a whole model, for clients that were not sent
            the one before it, in a run that sends steps. A client that was, and has lost it, is sent the whole model
            beyond what counts here; that is on the wire alone.
    """

    payload_bytes_down: int = 0
    payload_bytes_up: int = 0
    wire_bytes_down: int = 0
    wire_bytes_up: int = 0
    dense_bytes_down: int = 0
    dense_bytes_up: int = 0
    snapshot_bytes_down: int = 0

    def __iadd__(self, other: Traffic) -> Self:
        for field in dataclasses.fields(Traffic):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))
        return self

    def __add__(self, other: Traffic) -> Traffic:
        total = dataclasses.replace(self)
        total += other
        return total

    def wire_beyond(self, other: Traffic) -> Traffic:
        """Return the bytes on the wire that are not in `other`, which is a part of these."""
        return Traffic(wire_bytes_down=self.wire_bytes_down - other.wire_bytes_down, wire_bytes_up=self.wire_bytes_up - other.wire_bytes_up)

    @property
    def wire_bytes(self) -> int:
        """Both directions together."""
        return self.wire_bytes_down + self.wire_bytes_up


class Mirror(Protocol):
    """Counts the same messages as a meter."""

    def down(self, message_bytes: int) -> None: ...

    def up(self, message_bytes: int) -> None: ...


class Meter:
    """Counts the messages of one exchange, each once, where it crosses into or out of gRPC.

    A message may still cross after the exchange was recorded: a straggler's upload, the rest of a
    broadcast. From then on everything counts on the meter of what belongs to no exchange.
    """

    def __init__(self, after_close: Meter | None = None, mirror: Mirror | None = None) -> None:
        """Start at zero.

        Args:
            after_close: counts what comes after `close`; None for a meter that is never closed.
            mirror: told of every message that is counted here.
        """
        self._traffic = Traffic()
        self._mirror = mirror
        self._after_close = after_close
        self._closed = False

    @property
    def traffic(self) -> Traffic:
        """A copy of the counts so far. From any thread."""
        return dataclasses.replace(self._traffic)

    def down(self, message_bytes: int) -> None:
        """Count a message that is about to be written to a client."""
        meter = self._open
        meter._traffic.wire_bytes_down += message_bytes
        if meter._mirror is not None:
            meter._mirror.down(message_bytes)

    def up(self, message_bytes: int) -> None:
        """Count a message that was read from a client."""
        meter = self._open
        meter._traffic.wire_bytes_up += message_bytes
        if meter._mirror is not None:
            meter._mirror.up(message_bytes)

    def payload_down(self, payload_bytes: int, *, dense_bytes: int | None = None, snapshot: bool = False) -> None:
        """Count a broadcast whose last message is about to be written to a client.

        Args:
            dense_bytes: what its tensors take without a codec; None where there is no codec.
            snapshot: whether this client gets a whole model because it lacks the one before it.
        """
        traffic = self._open._traffic
        traffic.payload_bytes_down += payload_bytes
        traffic.dense_bytes_down += payload_bytes if dense_bytes is None else dense_bytes
        traffic.snapshot_bytes_down += payload_bytes if snapshot else 0

    def payload_up(self, payload_bytes: int, *, dense_bytes: int | None = None) -> None:
        """Count contributions that were reduced.

        Args:
            dense_bytes: what their tensors take without a codec; None where there is no codec.
        """
        traffic = self._open._traffic
        traffic.payload_bytes_up += payload_bytes
        traffic.dense_bytes_up += payload_bytes if dense_bytes is None else dense_bytes

    def close(self) -> Traffic:
        """Return the final counts; what comes later counts elsewhere."""
        self._closed = True
        return self.traffic

    @property
    def _open(self) -> Meter:
        """The meter that counts now: this one, or what comes after it."""
        if self._closed and self._after_close is not None:
            return self._after_close._open
        return self
