"""Refuses calls, and keeps what it says of them bounded: each peer and reason once, and few in all."""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from typing import Literal

import grpc

from feddkd.certs.certificate import Certificate
from feddkd.errors import TransportError
from feddkd.log_events import about
from feddkd.text import printable
from feddkd.transport.limits import TokenBucket
from feddkd.transport.register import Register

logger = logging.getLogger(__name__)

Kind = Literal["identity", "token", "certificate", "taken", "full", "invalid", "version"]

REMEMBERED = 1_024
"""Peers and reasons that were said last; older ones may be said again."""

REPEAT_AFTER_S = 3600.0
"""Seconds after which a refusal that still happens is said again."""

BURST = 50
PER_S = 0.1
"""Refusals that are said: so many at once, then one each 10 seconds, in all."""


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


class Refusals:
    """Says in the log and in the register who was refused and why; a flood of joins fills neither.

    Attributes:
        counts: all refusals by kind, said or not.
    """

    def __init__(self, register: Register, run_id: str = "") -> None:
        """Args:
        run_id: for the log.
        """
        self._run_id = run_id
        self.counts: Counter[str] = Counter()
        self._register = register
        self._said: OrderedDict[tuple[str, str, Kind], float] = OrderedDict()
        self._bucket: TokenBucket | None = None
        self._unsaid = 0

    def take(self, error: NotAdmittedError, address: str, client_id: str, certificate: Certificate | None, now: float) -> None:
        """Take in a refusal.

        Args:
            address: of the peer, as gRPC writes it.
            client_id: the id asked for; text of the peer's.
            now: on the loop's clock.
        """
        self.counts[error.kind] += 1
        if not self._is_to_be_said((host_of(address), client_id[:64], error.kind), now):
            self._unsaid += 1
            return
        more, self._unsaid = self._unsaid, 0
        suffix = f" ({more} more refusals were not said)" if more else ""
        logger.warning(
            "refused %s at %s: %s%s",
            printable(client_id, 64) or "a client",
            printable(address, 100),
            error,
            suffix,
            extra=about("client_refused", run_id=self._run_id, client=client_id[:64], peer=address, kind=error.kind, reason=str(error)),
        )
        self._register.refused(client_id[:64], address, error.kind, str(error), certificate, more)

    def _is_to_be_said(self, key: tuple[str, str, Kind], now: float) -> bool:
        said_at = self._said.get(key)
        if said_at is not None and now - said_at < REPEAT_AFTER_S:
            return False
        if self._bucket is None:
            self._bucket = TokenBucket(BURST, PER_S, now)
        if not self._bucket.take(now):
            return False
        self._said[key] = now
        self._said.move_to_end(key)
        if len(self._said) > REMEMBERED:
            self._said.popitem(last=False)
        return True


def host_of(address: str) -> str:
    """Leave out the port, which is another one for each connection."""
    return address.rpartition(":")[0]
