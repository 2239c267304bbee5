"""Keeps the one finished reply that the server has not acknowledged, across restarts of the client."""

from __future__ import annotations

import logging

from feddkd.client.kept_reply import KeptReply, StoredReply, read_reply, save_reply
from feddkd.client.leftovers import Leftovers
from feddkd.client.state_dir import StateDir
from feddkd.errors import StateError
from feddkd.exchange import ExchangeId
from feddkd.failpoints import failpoint
from feddkd.transport.messages import id_from_message
from feddkd.transport.pb import federation_pb2 as pb

logger = logging.getLogger(__name__)

OUTBOX = "outbox"


class Outbox:
    """The reply in a client's state directory.

    A client that was killed after it had computed sends the reply when it is back, and goes on where
    the server says that the upload broke. Without a file it computes again, to the same bits: so the
    file is not written through to the disk, and one that is damaged is set aside (`StateDir`).

    When a reply counts that leaves something over (error feedback), its file becomes the record of
    that, in one step: there is no moment at which it both counts and does not.
    """

    def __init__(self, state: StateDir | None = None, configuration: str = "") -> None:
        """Prepare to keep replies.

        Args:
            state: where; by default they are not kept.
            configuration: names what the client computes with; what it computed with anything else is not sent.
        """
        self._state = state
        self._configuration = configuration
        self._kept: ExchangeId | None = None
        self._leaves_over = False

    def restore(self, run_id: str) -> StoredReply | None:
        """Return what an earlier process left to be sent in this run; anything else is removed. Raises StateError."""
        if self._state is None:
            return None
        stored = read_reply(self._state, OUTBOX)
        if stored is None or stored.exchange.run_id != run_id or stored.configuration != self._configuration:
            self._state.remove(OUTBOX)
            return None
        self._kept, self._leaves_over = stored.exchange, stored.reply.leftover is not None
        return stored

    def keep(self, work: pb.Work, reply: KeptReply) -> None:
        """Keep the reply to `work`, in the place of the one before. Where that is not possible, the log says so.

        From any thread; one at a time.
        """
        if self._state is None:
            return
        self._kept = None
        exchange = id_from_message(work.id)
        try:
            failpoint("client.outbox.before_write")
            save_reply(self._state, OUTBOX, StoredReply(work, reply, self._configuration))
        except (StateError, OSError) as error:
            logger.warning("%s: after a restart it would compute %s again: %s", self._state.client_id, exchange, error)
            return
        self._kept, self._leaves_over = exchange, reply.leftover is not None
        failpoint("client.outbox.after_write")

    def settle(self, exchange: ExchangeId, leftovers: Leftovers, *, counted: bool) -> None:
        """Let the reply to an exchange go, of which the server has said whether it counted.

        Args:
            leftovers: of the run, what this reply left over included.
        """
        if self._state is None or self._kept != exchange:
            return
        if not (counted and self._leaves_over):
            self.discard(exchange)
            return
        self._kept = None
        try:
            leftovers.store(exchange, OUTBOX)
        except StateError as error:
            logger.warning("%s: a restart would lose the leftover of %s: %s", self._state.client_id, exchange, error)

    def discard(self, exchange: ExchangeId) -> None:
        """Remove the reply to an exchange that is closed."""
        if self._state is None or self._kept != exchange:
            return
        failpoint("client.outbox.before_remove")
        self._kept = None
        try:
            self._state.remove(OUTBOX)
        except StateError as error:
            logger.warning("%s: cannot remove the stored reply to %s: %s", self._state.client_id, exchange, error)
