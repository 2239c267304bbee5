"""Decides whether a client's certificate holds, and whether it names the client."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable, Sequence

import grpc

from feddkd.certs.certificate import Certificate
from feddkd.certs.revocation import Revoked
from feddkd.transport.peer import Peer
from feddkd.transport.refusals import NotAdmittedError
from feddkd.transport.reloaded_files import ReloadedFiles

logger = logging.getLogger(__name__)

Clock = Callable[[], datetime.datetime]


def utc_now() -> datetime.datetime:
    """Return the time of this machine's clock, in UTC."""
    return datetime.datetime.now(datetime.UTC)


class ClientCertificatePolicy:
    """What a server demands of client certificates, beyond the signature of its CA.

    TLS looks at a certificate when a connection begins; this looks again at every join and stream, and every few
    seconds at those that are open. A server in plaintext, or without a client CA, demands nothing.

    Attributes:
        binds_ids: whether a certificate is good only for the client ids that it names.
    """

    def __init__(
        self, revoked: ReloadedFiles[Revoked] | None = None, *, binds_ids: bool = False, verifies: bool = False, clock: Clock = utc_now
    ) -> None:
        """Args:
        revoked: the lists of revoked certificates; None for no list.
        verifies: whether clients have certificates of a CA of this federation at all.
        """
        self._revoked = revoked
        self._verifies = verifies
        self.binds_ids = binds_ids and verifies
        self._clock = clock
        self._has_warned = False

    def refresh(self) -> None:
        """Read the lists of revoked certificates again if they have changed, and say if one is out of date."""
        if self._revoked is None:
            return
        if self._revoked.refresh():
            self._has_warned = False
        outdated = self._revoked.value.outdated_since
        if outdated is not None and outdated < self._clock() and not self._has_warned:
            self._has_warned = True
            logger.warning("the list of revoked certificates is out of date since %s; it stays in use", f"{outdated:%Y-%m-%d %H:%M} UTC")

    def problem(self, certificates: Sequence[Certificate]) -> tuple[grpc.StatusCode, str] | None:
        """Return why what a client showed does not hold now, with the status that says so; None if it does.

        Args:
            certificates: its own, and those of the CAs between that and a trusted one.
        """
        return next(filter(None, map(self._problem, certificates, ("this client", *["a CA of this client"] * len(certificates)))), None)

    def _problem(self, certificate: Certificate, whose: str) -> tuple[grpc.StatusCode, str] | None:
        if self._revoked is not None and self._revoked.value.has(certificate.issuer, certificate.serial):
            name = f"the certificate of {whose} ({certificate.shown_names}, serial number {certificate.shown_serial})"
            return grpc.StatusCode.PERMISSION_DENIED, f"{name} is revoked"
        if problem := certificate.problem(self._clock()):
            # It may be renewed, and a clock may be set right.
            return grpc.StatusCode.UNAVAILABLE, f"the certificate of {whose} ({certificate.shown_names}) {problem}"
        return None

    def check(self, peer: Peer, client_id: str | None = None) -> None:
        """Check that a client's certificate holds and, where an id is given, names it. Raises NotAdmittedError."""
        if not self._verifies:
            return
        self.refresh()
        certificate = peer.certificate
        if certificate is None:
            what = "showed no certificate" if peer.pem is None else "showed a certificate that cannot be read"
            raise NotAdmittedError(grpc.StatusCode.PERMISSION_DENIED, f"this client {what}", kind="certificate")
        if (problem := self.problem(peer.certificates)) is not None:
            raise NotAdmittedError(*problem, kind="certificate")
        if client_id is not None and self.binds_ids and client_id not in certificate.ids:
            named = f"the certificate of this client is for {certificate.shown_ids}"
            raise NotAdmittedError(
                grpc.StatusCode.PERMISSION_DENIED, f"{named}, not for the client id {client_id!r} that it asks for", kind="identity"
            )
