"""The forms in which the broadcast of one exchange reaches its clients."""

from __future__ import annotations

from feddkd.compression.encoding import Coding, Encoding
from feddkd.exchange import Exchange
from feddkd.transport.messages import replica_message, work_message
from feddkd.transport.payload import Payload


class Forms:
    """The payload of an exchange as it is sent: whole, or as a step from what a client holds."""

    def __init__(self, exchange: Exchange, chunk_bytes: int, *, shared: bool = False) -> None:
        """Prepare nothing yet.

        Args:
            shared: keep a few chunks for clients that are about to need the same ones.
        """
        self._exchange = exchange
        self._shared = shared
        self._lacking: set[str] = set()
        self._chunk_bytes = chunk_bytes
        self._whole: Payload | None = None
        self._step: Payload | None = None
        self._message_bytes: dict[str, int] = {}

    def is_step(self, client: str) -> bool:
        """Whether a client receives a step."""
        broadcast = self._exchange.broadcast
        return broadcast is not None and client in broadcast.holders and client not in self._lacking

    def is_snapshot(self, client: str) -> bool:
        """Whether a client receives a whole model because it does not hold what a step leads from."""
        broadcast = self._exchange.broadcast
        return broadcast is not None and broadcast.has_codec and not self.is_step(client)

    def lacks(self, client: str) -> bool:
        """Take in that a client cannot use the step; returns whether that is news."""
        if not self.is_step(client):
            return False
        self._lacking.add(client)
        return True

    def payload(self, client: str) -> Payload:
        """What a client is sent."""
        if self.is_step(client):
            self._step = self._step or self._step_payload()
            return self._step
        self._whole = self._whole or self._whole_payload()
        return self._whole

    def _step_payload(self) -> Payload:
        broadcast = self._exchange.broadcast
        assert broadcast is not None
        assert broadcast.step is not None
        moved = [spec.name for spec in broadcast.step.encoding.schema.specs]
        lossy = [spec.name for spec in self._exchange.payload.schema.specs if spec.lossy]
        return Payload.of(broadcast.step, shared=self._shared, listed=moved != lossy)

    def _whole_payload(self) -> Payload:
        exchange = self._exchange
        if exchange.broadcast is not None:
            return Payload.of(exchange.broadcast.whole, shared=self._shared)
        encoding = Encoding(exchange.payload.schema, self._chunk_bytes, Coding(zstd=exchange.zstd))
        return Payload.of(encoding.encode(exchange.payload), shared=self._shared)

    def is_whole(self, client: str, digest: bytes) -> bool:
        """Whether a client that is to receive a step has the model that is sent to those who lack its base."""
        if not self.is_step(client):
            return False
        self._whole = self._whole or self._whole_payload()
        return self._whole.header.digest == digest

    def sent_bytes(self, client: str) -> int:
        """Size of the messages that bring the broadcast to a client, each counted once, as it was last announced."""
        return self._message_bytes[client] + self.payload(client).frames_bytes

    def message(self, client: str) -> bytes:
        """What precedes it."""
        exchange = self._exchange
        replica = None
        if exchange.broadcast is not None:
            replica = replica_message(exchange.broadcast, whole=not self.is_step(client))
        message = work_message(
            exchange.id,
            self.payload(client),
            evaluate=exchange.evaluate,
            deadline_s=exchange.closing.deadline_s,
            replica=replica,
            reply_coding=exchange.reply_coding(client),
        )
        self._message_bytes[client] = len(message)
        return message
