"""Lets somebody watch one client: its connection and its work."""

from __future__ import annotations

from typing import Protocol

from feddkd.exchange import ExampleCounts, Reply, Task


class Bytes(Protocol):
    """Counts the messages of an open stream, in bytes."""

    received_bytes: int
    sent_bytes: int


class ClientWatch:
    """Hears what a client does: override what you want to know. Nothing that it does may raise."""

    def has_examples(self, counts: ExampleCounts) -> None:
        """The site trains on so many examples."""

    def connected(self, run_id: str, stream: Bytes) -> None:
        """A stream to the server is open; `stream` counts on while it is."""

    def disconnected(self) -> None:
        """The stream has ended, and its counts are final."""

    def began(self, task: Task) -> None:
        """The client begins to compute."""

    def computed(self, task: Task, reply: Reply | None) -> None:
        """The client has computed; None where an error was raised."""
