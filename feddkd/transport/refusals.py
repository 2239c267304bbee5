"""Refuses calls, and keeps what it says of them bounded: each peer and reason once, and few in all."""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict

import grpc

from feddkd.errors import TransportError
from feddkd.log_events import about
from feddkd.refusal_kinds import Kind
from feddkd.text import printable
from feddkd.transport.audit_sink import AuditSink
from feddkd.transport.limits import TokenBuckets
from feddkd.transport.peer import Peer

logger = logging.getLogger(__name__)

REMEMBERED = 1_024
"""Peers and reasons that were said last; older ones may be said again."""

REPEAT_AFTER_S = 3600.0
"""Seconds after which a refusal that still happens is said again."""

BURST = 500
PER_S = 0.1
"""Refusals that are said: so many at once, then one each 10 seconds, in all."""

BURST_OF_PEER = 50
PER_S_OF_PEER = 0.02
"""Of one certificate or host: it must not hide what others do."""

BURST_OF_CLIENT = 10
PER_S_OF_CLIENT = 1 / 600
"""Of those that ask for the id of a client of the run: said also where names that are made up have used up the rest."""


class NotAdmittedError(TransportError):
    """A call is refused; the transport turns this into the call's status.

    Attributes:
        code: the status.
        kind: of the reason, one of a few.
    """

    def __init__(self, code: grpc.StatusCode, reason: str, kind: Kind = "invalid") -> None:
        super().__init__(reason)
        self.code = code
        self.kind = kind


class RefusalLog:
    """Says in the log and in the audit log who was refused and why; a flood of joins fills neither.

    Attributes:
        counts: all refusals by kind, said or not.
    """

    def __init__(self, audit: AuditSink, run_id: str = "") -> None:
        """Args:
        run_id: for the log.
        """
        self._run_id = run_id
        self.counts: Counter[str] = Counter()
        self._audit = audit
        self._said: OrderedDict[tuple[str, str, Kind], float] = OrderedDict()
        self._in_all = TokenBuckets(BURST, PER_S, 1)
        self._of_peer = TokenBuckets(BURST_OF_PEER, PER_S_OF_PEER, REMEMBERED)
        self._of_client = TokenBuckets(BURST_OF_CLIENT, PER_S_OF_CLIENT, REMEMBERED)
        self._unsaid = 0

    def take(self, error: NotAdmittedError, peer: Peer, client_id: str, now: float, *, is_known: bool = False) -> None:
        """Take in a refusal.

        Args:
            client_id: the id asked for; text of the peer's.
            now: on the loop's clock.
            is_known: whether the id is that of a client of this run.
        """
        self.counts[error.kind] += 1
        client_id = client_id[:64]
        if not self._is_to_be_said(error.kind, peer, client_id, now, is_known=is_known):
            self._unsaid += 1
            return
        more, self._unsaid = self._unsaid, 0
        suffix = f" ({more} more refusals were not said)" if more else ""
        logger.warning(
            "refused %s at %s: %s%s",
            printable(client_id, 64) or "a client",
            printable(peer.address, 100),
            error,
            suffix,
            extra=about("client_refused", run_id=self._run_id, client=client_id, peer=peer.address, kind=error.kind, reason=str(error)),
        )
        self._audit.refused(client_id, peer.address, error.kind, str(error), peer.certificate, more)

    def _is_to_be_said(self, kind: Kind, peer: Peer, client_id: str, now: float, *, is_known: bool) -> bool:
        key = (peer.name, client_id, kind)
        said_at = self._said.get(key)
        if said_at is not None and now - said_at < REPEAT_AFTER_S:
            return False
        if not (is_known and self._of_client.take(client_id, now)) and not (
            self._of_peer.take(peer.name, now) and self._in_all.take("", now)
        ):
            return False
        self._said[key] = now
        self._said.move_to_end(key)
        if len(self._said) > REMEMBERED:
            self._said.popitem(last=False)
        return True
