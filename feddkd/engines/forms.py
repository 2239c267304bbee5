"""The forms in which the broadcast of one exchange reaches its clients."""

from __future__ import annotations

from feddkd.compression.encoding import Encoded, Encoding
from feddkd.exchange import Exchange
from feddkd.transport.messages import replica_message, work_message
from feddkd.transport.payload import Payload


class Forms:
    """The payload of an exchange as it is sent: whole, or as a step from what a client holds."""

    def __init__(self, exchange: Exchange, chunk_bytes: int, *, shared: bool = False) -> None:
        """Prepare what is needed at once.

        Args:
            shared: keep a few chunks for clients that are about to need the same ones.
        """
        self._exchange = exchange
        self._shared = shared
        self._lacking: set[str] = set()
        broadcast = exchange.broadcast
        if broadcast is None:
            whole = Encoding(exchange.payload.schema, chunk_bytes).encode(exchange.payload)
        else:
            whole = broadcast.whole
        self._whole_form = whole
        self._whole: Payload | None = None
        self._step = self._payload_of(broadcast.step) if broadcast is not None and broadcast.step is not None else None

    def _payload_of(self, encoded: Encoded) -> Payload:
        expected = self._exchange.payload.schema
        names = [spec.name for spec in expected.specs if spec.lossy] if encoded is not self._whole_form else list(expected.by_name)
        return Payload.of(encoded, shared=self._shared, listed=list(encoded.encoding.schema.by_name) != names)

    def is_step(self, client: str) -> bool:
        """Whether a client receives a step."""
        broadcast = self._exchange.broadcast
        return broadcast is not None and client in broadcast.holders and client not in self._lacking

    def is_snapshot(self, client: str) -> bool:
        """Whether a client receives a whole model where others receive a step."""
        broadcast = self._exchange.broadcast
        return broadcast is not None and not self.is_step(client)

    def lacks(self, client: str) -> bool:
        """Take in that a client cannot use the step; returns whether that is news."""
        if not self.is_step(client):
            return False
        self._lacking.add(client)
        return True

    def payload(self, client: str) -> Payload:
        """What a client is sent."""
        if self.is_step(client):
            assert self._step is not None
            return self._step
        if self._whole is None:
            self._whole = self._payload_of(self._whole_form)
        return self._whole

    def message(self, client: str) -> bytes:
        """What precedes it."""
        exchange = self._exchange
        replica = None
        if exchange.broadcast is not None:
            replica = replica_message(exchange.broadcast, whole=not self.is_step(client))
        return work_message(
            exchange.id,
            self.payload(client),
            evaluate=exchange.evaluate,
            deadline_s=exchange.closing.deadline_s,
            replica=replica,
            reply_coding=exchange.reply_coding(client),
        )
