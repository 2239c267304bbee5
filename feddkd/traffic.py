"""Bytes that crossed the network, as seen from the client: up is towards the server."""

from __future__ import annotations

from dataclasses import dataclass


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

    def __iadd__(self, other: Traffic) -> Traffic:
        self.payload_bytes_down += other.payload_bytes_down
        self.payload_bytes_up += other.payload_bytes_up
        self.wire_bytes_down += other.wire_bytes_down
        self.wire_bytes_up += other.wire_bytes_up
        return self

    @property
    def wire_bytes(self) -> int:
        """Both directions together."""
        return self.wire_bytes_down + self.wire_bytes_up
