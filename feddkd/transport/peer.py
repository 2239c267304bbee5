"""The other end of a call: where it is, and the certificate that it showed."""

from __future__ import annotations

from dataclasses import dataclass

from feddkd.certs.certificate import Certificate
from feddkd.transport.calls import Context


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a call.

    Attributes:
        address: as gRPC writes it, for instance "ipv4:10.0.0.7:41234".
        pem: the certificate that it showed; None if it showed none.
        certificate: what it says; None also where it cannot be read.
    """

    address: str
    pem: bytes | None = None
    certificate: Certificate | None = None

    @property
    def host(self) -> str:
        """The address without the port, which is another one for each connection."""
        return self.address.rpartition(":")[0]

    @property
    def name(self) -> str:
        """What it cannot change at will: its certificate, or else its host."""
        return self.certificate.sha256.hex() if self.certificate is not None else self.host

    @classmethod
    def of(cls, context: Context) -> Peer:
        """Read it from a call."""
        pem = next(iter(context.auth_context().get("x509_pem_cert", ())), None)
        if pem is None:
            return cls(context.peer())
        try:
            return cls(context.peer(), pem, Certificate.of_pem(pem))
        except ValueError:
            return cls(context.peer(), pem)
