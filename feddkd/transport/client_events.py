"""Says which clients come and go, in the log and in the audit log; a client that does so in a loop fills neither."""

from __future__ import annotations

import logging
from collections import OrderedDict

import grpc

from feddkd.log_events import about
from feddkd.transport.audit_sink import AuditSink
from feddkd.transport.limits import TokenBuckets
from feddkd.transport.peer import Peer
from feddkd.transport.sessions import Session
from feddkd.transport.stream import End

logger = logging.getLogger(__name__)

BURST = 20
PER_S = 1 / 60
"""Lines of one client id: so many at once, then one a minute."""

BURST_OF_HOST = 10_000
PER_S_OF_HOST = 1.0
"""Lines of all ids of one host: many clients may share it, and one may make ids up."""

REMEMBERED = 10_000
"""Ids, and hosts, whose lines are counted."""

_ORDINARY = (grpc.StatusCode.OK, grpc.StatusCode.ABORTED, grpc.StatusCode.UNAVAILABLE)
"""Ends of a stream that need nobody's attention: a newer stream, a lost connection."""


class ClientEvents:
    """Says who joined, left and was lost. Lives on the server's loop."""

    def __init__(self, audit: AuditSink, run_id: str = "") -> None:
        """Args:
        run_id: for the log.
        """
        self._audit = audit
        self._run_id = run_id
        self._of_client = TokenBuckets(BURST, PER_S, REMEMBERED)
        self._of_host = TokenBuckets(BURST_OF_HOST, PER_S_OF_HOST, REMEMBERED)
        self._unsaid: OrderedDict[str, int] = OrderedDict()

    def joined(self, session: Session, peer: Peer, software_version: str, now: float) -> None:
        """Say that a client was admitted. `now` is on the loop's clock, as everywhere here."""
        unsaid = self._unsaid_before(session.client_id, peer, now)
        if unsaid is None:
            return
        counts = session.counts
        self._audit.joined(session.client_id, peer.address, peer.certificate, counts.total, unsaid)
        logger.info(
            "%s joined with %d examples, %d of them labelled (feddkd %r)",
            session.client_id,
            counts.total,
            counts.labelled,
            software_version[:32],
            extra=about("client_joined", run_id=self._run_id, client=session.client_id, examples=counts.total),
        )

    def ended(self, session: Session, peer: Peer, end: End, now: float) -> None:
        """Say how a client's stream ended."""
        client_id = session.client_id
        unsaid = self._unsaid_before(client_id, peer, now)
        if unsaid is None:
            return
        if end.code is grpc.StatusCode.OK and session.leaves:
            self._audit.left(client_id, unsaid)
            logger.info("%s takes part no more", client_id, extra=about("client_left", run_id=self._run_id, client=client_id))
        elif not end.reason:
            self._audit.ended(client_id, unsaid)
        else:
            self._audit.lost(client_id, end.reason, unsaid)
            level = logging.INFO if end.code in _ORDINARY else logging.WARNING
            lost = about("client_lost", run_id=self._run_id, client=client_id, reason=end.reason)
            logger.log(level, "the stream of %s ended: %s", client_id, end.reason, extra=lost)

    def _unsaid_before(self, client_id: str, peer: Peer, now: float) -> int | None:
        """Return how many events of a client were left out before this one; None if this one is to be left out."""
        if self._of_client.take(client_id, now) and self._of_host.take(peer.host, now):
            return self._unsaid.pop(client_id, 0)
        self._unsaid[client_id] = self._unsaid.pop(client_id, 0) + 1
        if len(self._unsaid) > REMEMBERED:
            self._unsaid.popitem(last=False)
        return None
