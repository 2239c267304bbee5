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
        issuers: what the other end showed of the CAs between its certificate and one that is trusted.
    """

    address: str
    pem: bytes | None = None
    certificate: Certificate | None = None
    issuers: tuple[Certificate, ...] = ()

    @property
    def host(self) -> str:
        """The address without the port, which is another one for each connection."""
        return self.address.rpartition(":")[0]

    @property
    def name(self) -> str:
        """What it cannot change at will: its certificate, or else its host."""
        return self.certificate.sha256.hex() if self.certificate is not None else self.host

    @property
    def certificates(self) -> tuple[Certificate, ...]:
        """Its own, and those of the CAs."""
        return (self.certificate, *self.issuers) if self.certificate is not None else ()

    @classmethod
    def of(cls, context: Context) -> Peer:
        """Read it from a call."""
        shown = context.auth_context()
        pem = next(iter(shown.get("x509_pem_cert", ())), None)
        if pem is None:
            return cls(context.peer())
        try:
            issuers = Certificate.all_of_pem(b"".join(shown.get("x509_pem_cert_chain", ())))
            return cls(context.peer(), pem, Certificate.of_pem(pem), issuers)
        except ValueError:
            return cls(context.peer(), pem)
