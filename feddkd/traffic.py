"""Bytes that crossed the network, as seen from the client: up is towards the server."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Self


@dataclass(slots=True)
class Traffic:
    """Byte counts of one exchange, or of a sum of them.

    Attributes:
        payload_bytes_down: encoded tensors that reached clients whole.
        payload_bytes_up: encoded tensors of the contributions that were reduced, each counted once.
        wire_bytes_down: serialized gRPC messages written to clients, retries included.
        wire_bytes_up: serialized gRPC messages read from clients, retries included.
    """

    payload_bytes_down: int = 0
    payload_bytes_up: int = 0
    wire_bytes_down: int = 0
    wire_bytes_up: int = 0

    def __iadd__(self, other: Traffic) -> Self:
        self.payload_bytes_down += other.payload_bytes_down
        self.payload_bytes_up += other.payload_bytes_up
        self.wire_bytes_down += other.wire_bytes_down
        self.wire_bytes_up += other.wire_bytes_up
        return self

    @property
    def wire_bytes(self) -> int:
        """Both directions together."""
        return self.wire_bytes_down + self.wire_bytes_up


class Meter:
    """Counts the messages of one exchange, each once, where it crosses into or out of gRPC.

    A message may still cross after the exchange was recorded: a straggler's upload, the rest of a
    broadcast. From then on everything counts on the meter of what belongs to no exchange.
    """

    def __init__(self, after_close: Meter | None = None) -> None:
        """Start at zero.

        Args:
            after_close: counts what comes after `close`; None for a meter that is never closed.
        """
        self._traffic = Traffic()
        self._after_close = after_close
        self._closed = False

    @property
    def traffic(self) -> Traffic:
        """A copy of the counts so far. From any thread."""
        return dataclasses.replace(self._traffic)

    def down(self, message_bytes: int) -> None:
        """Count a message that is about to be written to a client."""
        self._open_traffic.wire_bytes_down += message_bytes

    def up(self, message_bytes: int) -> None:
        """Count a message that was read from a client."""
        self._open_traffic.wire_bytes_up += message_bytes

    def payload_down(self, payload_bytes: int) -> None:
        """Count a broadcast whose last message is about to be written to a client."""
        self._open_traffic.payload_bytes_down += payload_bytes

    def payload_up(self, payload_bytes: int) -> None:
        """Count a contribution that was reduced."""
        self._open_traffic.payload_bytes_up += payload_bytes

    def close(self) -> Traffic:
        """Return the final counts; what comes later counts elsewhere."""
        self._closed = True
        return self.traffic

    @property
    def _open_traffic(self) -> Traffic:
        if self._closed and self._after_close is not None:
            return self._after_close._open_traffic
        return self._traffic
