"""Says what a server tells of its clients to what keeps it beyond the run."""

from __future__ import annotations

from typing import Protocol

from feddkd.certs.certificate import Certificate


class AuditSink(Protocol):
    """Records who came and went. Called on the server's loop; returns at once and raises nothing."""

    def joined(self, client_id: str, address: str, certificate: Certificate | None, examples: int, unsaid: int) -> None:
        """Record that a client was admitted.

        Args:
            unsaid: of this client, events since the last one that was recorded.
        """

    def left(self, client_id: str, unsaid: int) -> None:
        """Record that a client said that it takes part no more, and its stream has ended."""

    def ended(self, client_id: str, unsaid: int) -> None:
        """Record that a client's stream ended as both ends wanted, for instance with the run."""

    def lost(self, client_id: str, reason: str, unsaid: int) -> None:
        """Record that a client's stream broke, or was ended by the server."""

    def refused(self, client_id: str, address: str, kind: str, reason: str, certificate: Certificate | None, unsaid: int) -> None:
        """Record that a call was refused.

        Args:
            unsaid: refusals since the last one that was recorded.
        """

    def accepted(self, client_id: str, exchange: str, size_bytes: int, digest: str) -> None:
        """Record that a contribution counts.

        Args:
            digest: of its bytes, with the name of the hash.
        """


class NoAudit:
    """Records nothing."""

    def joined(self, client_id: str, address: str, certificate: Certificate | None, examples: int, unsaid: int) -> None:
        """Do nothing."""

    def left(self, client_id: str, unsaid: int) -> None:
        """Do nothing."""

    def ended(self, client_id: str, unsaid: int) -> None:
        """Do nothing."""

    def lost(self, client_id: str, reason: str, unsaid: int) -> None:
        """Do nothing."""

    def refused(self, client_id: str, address: str, kind: str, reason: str, certificate: Certificate | None, unsaid: int) -> None:
        """Do nothing."""

    def accepted(self, client_id: str, exchange: str, size_bytes: int, digest: str) -> None:
        """Do nothing."""
