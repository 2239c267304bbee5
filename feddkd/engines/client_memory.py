"""What the clients of one process keep between exchanges, with and without state directories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from feddkd.client.held import Held
from feddkd.client.kept_reply import KeptReply
from feddkd.client.membership import Membership
from feddkd.client.outbox import Outbox
from feddkd.client.recent import Recent
from feddkd.exchange import ExchangeId
from feddkd.transport.messages import id_from_message
from feddkd.transport.pb import federation_pb2 as pb


class ClientMemory:
    """Keeps models and leftovers of all clients, by the rules of a client with its own process (`Agent`).

    A reply that leaves something over is on the disk before its exchange has an outcome: if the
    process dies before it is acknowledged, the next one learns from the journal whether it counted.
    Any other reply is not kept, since it can be computed again.
    """

    def __init__(self, memberships: Mapping[str, Membership], most_held: int | None = None) -> None:
        """Begin with what earlier processes left.

        Args:
            memberships: those of clients that have state directories, by id.
            most_held: clients of which anything stays in memory, at least 1; None for all. All must have state directories.
        """
        self._memberships = memberships
        self._held: Recent[str, _Kept] = Recent(most_held, lambda kept: kept.held.put_away())
        self._counted: dict[str, ExchangeId] = {}

    def remember(self, counted: Mapping[str, ExchangeId]) -> None:
        """Take in the last exchange that each client's reply counted in, in an earlier process."""
        self._counted.update(counted)

    def held(self, client: str, run_id: str) -> Held:
        """Return what a client keeps; all its exchanges are of one run. Raises StateError if it cannot be read."""
        return self._held.use(client, lambda: self._restored(client, run_id)).held

    def _restored(self, client: str, run_id: str) -> _Kept:
        """Take up what an earlier process left, or this one before it let the client go."""
        membership = self._memberships.get(client, Membership())
        kept = _Kept(Held.of_run(membership.state, run_id), Outbox(membership.state, membership.computes_with))
        left = kept.outbox.restore(run_id)
        if left is not None and left.reply.leftover is not None:
            kept.held.resume(left.exchange, left.reply.leftover)
        if left is not None:
            kept.settle(left.exchange, counted=self._counted.get(client) == left.exchange)
        return kept

    def keep(self, client: str, message: pb.Work, reply: KeptReply) -> None:
        """Keep what a reply leaves over until it is settled."""
        kept = self._held.find(client)
        assert kept is not None, "its exchange is open"
        if reply.leftover is not None:
            kept.outbox.keep(message, reply)
        else:
            kept.outbox.discard(id_from_message(message.id))

    def settle(self, client: str, exchange: ExchangeId, *, counted: bool) -> None:
        """Let a client know what became of its reply."""
        if counted:
            self._counted[client] = exchange
        if (kept := self._held.find(client)) is not None:
            kept.settle(exchange, counted=counted)

    def let_go(self, client: str) -> None:
        """Put everything of a client into its state directory: another process takes it up there."""
        if (kept := self._held.drop(client)) is not None:
            kept.held.put_away()


@dataclass(frozen=True, slots=True)
class _Kept:
    """What one client keeps."""

    held: Held
    outbox: Outbox

    def settle(self, exchange: ExchangeId, *, counted: bool) -> None:
        self.held.settle(counted=counted)
        self.outbox.settle(exchange, self.held.leftovers, counted=counted)
