"""Counts the joins that were refused, and logs them without end only where there is none of a flood."""

from __future__ import annotations

import logging
from collections import Counter

import grpc

from feddkd.log_events import about
from feddkd.text import printable
from feddkd.transport.admission import NotAdmittedError

logger = logging.getLogger(__name__)

KINDS = {
    grpc.StatusCode.PERMISSION_DENIED: "identity",
    grpc.StatusCode.UNAUTHENTICATED: "token",
    grpc.StatusCode.ALREADY_EXISTS: "taken",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "full",
    grpc.StatusCode.FAILED_PRECONDITION: "version",
}
"""What a status says of a refusal; any other is `OTHER_KIND`."""

OTHER_KIND = "invalid"

LINES_A_MINUTE = 30
PERIOD_S = 60.0


class Refusals:
    """The joins that one server refused. Lives on its loop.

    Attributes:
        count: how many, by kind.
    """

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self._period_began = 0.0
        self._in_period = 0

    def add(self, error: NotAdmittedError, peer: str, now: float) -> None:
        """Count a refusal, and log it if there were not too many in this minute.

        Args:
            peer: where it came from, as gRPC says it.
            now: seconds on the loop's clock.
        """
        kind = KINDS.get(error.code, OTHER_KIND)
        self.count[kind] += 1
        if now - self._period_began >= PERIOD_S:
            self._tell_the_rest()
            self._period_began, self._in_period = now, 0
        self._in_period += 1
        if self._in_period <= LINES_A_MINUTE:
            reason = printable(str(error))
            logger.info("refused %s: %s", printable(peer), reason, extra=about("client_refused", peer=peer, kind=kind, reason=reason))

    def _tell_the_rest(self) -> None:
        if (unsaid := self._in_period - LINES_A_MINUTE) > 0:
            logger.warning("%d more joins were refused", unsaid, extra=about("clients_refused", count=unsaid))
