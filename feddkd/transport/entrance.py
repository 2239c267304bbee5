"""Says how clients come in to a server: what they have to show, and where it is taken down."""

from __future__ import annotations

from dataclasses import dataclass, field

import grpc

from feddkd.transport.gate import Gate
from feddkd.transport.join_tokens import JoinTokens
from feddkd.transport.register import NoRegister, Register
from feddkd.transport.tls import ServerTls


@dataclass(frozen=True, slots=True)
class Entrance:
    """How clients come in.

    Attributes:
        tls: None for plaintext.
        tokens: that admit clients at their first join; None where they need none.
        register: takes down who came and went.
    """

    tls: ServerTls | None = None
    tokens: JoinTokens | None = None
    register: Register = field(default_factory=NoRegister)

    @property
    def credentials(self) -> grpc.ServerCredentials | None:
        """As gRPC takes them; None for plaintext."""
        return self.tls.credentials if self.tls is not None else None

    @property
    def gate(self) -> Gate:
        """What client certificates have to be."""
        return self.tls.gate if self.tls is not None else Gate()


OPEN = Entrance()
"""Anybody comes in, in plaintext, and nothing is taken down."""
