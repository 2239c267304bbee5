"""Says how clients come in to a server: what they have to show, and where it is recorded."""

from __future__ import annotations

from dataclasses import dataclass, field

import grpc

from feddkd.transport.audit_sink import AuditSink, NoAudit
from feddkd.transport.certificate_policy import ClientCertificatePolicy
from feddkd.transport.join_tokens import JoinTokens
from feddkd.transport.tls import ServerTls


@dataclass(frozen=True, slots=True)
class ServerSecurity:
    """How clients come in.

    Attributes:
        tls: None for plaintext.
        tokens: that admit clients at their first join; None where they need none.
        audit: records who came and went.
    """

    tls: ServerTls | None = None
    tokens: JoinTokens | None = None
    audit: AuditSink = field(default_factory=NoAudit)

    @property
    def credentials(self) -> grpc.ServerCredentials | None:
        """As gRPC takes them; None for plaintext."""
        return self.tls.credentials if self.tls is not None else None

    @property
    def policy(self) -> ClientCertificatePolicy:
        """What client certificates have to be."""
        return self.tls.policy if self.tls is not None else ClientCertificatePolicy()


OPEN = ServerSecurity()
"""Anybody comes in, in plaintext, and nothing is recorded."""
