"""What the clients of this process keep between exchanges, with and without state directories."""

from __future__ import annotations

from collections.abc import Mapping

from feddkd.client.held import Held
from feddkd.client.kept_reply import KeptReply
from feddkd.client.leftovers import Leftovers
from feddkd.client.membership import Membership
from feddkd.client.outbox import Outbox
from feddkd.exchange import ExchangeId
from feddkd.transport.messages import id_from_message
from feddkd.transport.pb import federation_pb2 as pb


class InProcessMemory:
    """Keeps models and leftovers of all clients, by the rules of a client with its own process (`Agent`).

    A reply that leaves something over is on the disk before its exchange has an outcome: if the
    process dies before it is acknowledged, the next one learns from the journal whether it counted.
    Any other reply is not kept, since it can be computed again.
    """

    def __init__(self, memberships: Mapping[str, Membership]) -> None:
        """Begin with what earlier processes left.

        Args:
            memberships: those of clients that have state directories, by id.
        """
        self._memberships = memberships
        self._held: dict[str, Held] = {}
        self._outboxes: dict[str, Outbox] = {}
        self._counted: Mapping[str, ExchangeId] = {}

    def remember(self, counted: Mapping[str, ExchangeId]) -> None:
        """Take in the last exchange that each client's reply counted in, in an earlier process; before all exchanges."""
        self._counted = dict(counted)

    def held(self, client: str, run_id: str) -> Held:
        """Return what a client keeps; all its exchanges are of one run. Raises StateError if it cannot be read."""
        if client not in self._held:
            membership = self._memberships.get(client, Membership())
            held, outbox = Held(Leftovers(membership.state, run_id)), Outbox(membership.state, membership.computes_with)
            self._outboxes[client], self._held[client] = outbox, held
            left = outbox.restore(run_id)
            if left is not None and left.reply.leftover is not None:
                held.resume(left.exchange, left.reply.leftover)
            if left is not None:
                self.settle(client, left.exchange, counted=self._counted.get(client) == left.exchange)
        return self._held[client]

    def keep(self, client: str, message: pb.Work, reply: KeptReply) -> None:
        """Keep what a reply leaves over until it is settled."""
        outbox = self._outboxes[client]
        if reply.leftover is not None:
            outbox.keep(message, reply)
        else:
            outbox.discard(id_from_message(message.id))

    def settle(self, client: str, exchange: ExchangeId, *, counted: bool) -> None:
        """Let a client know what became of its reply."""
        if client in self._held:
            self._held[client].settle(counted=counted)
            self._outboxes[client].settle(exchange, self._held[client].leftovers, counted=counted)
