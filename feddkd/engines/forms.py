"""The forms in which the broadcast of one exchange reaches its clients."""

from __future__ import annotations

from feddkd.compression.constants import CONSTANT
from feddkd.compression.encoding import Coding, Encoding
from feddkd.exchange import Exchange
from feddkd.transport.messages import replica_message, work_message
from feddkd.transport.payload import Payload


class Forms:
    """The payload of an exchange as sent: a whole model, or a step from the model that a client holds."""

    def __init__(self, exchange: Exchange, chunk_bytes: int, *, shared: bool = False) -> None:
        """Prepare nothing yet.

        Args:
            shared: keep a few chunks for clients that are about to need the same ones.
        """
        self._exchange = exchange
        self._shared = shared
        self._lacking: set[str] = set()
        self._needs_constants: set[str] = set()
        self._chunk_bytes = chunk_bytes
        self._whole: Payload | None = None
        self._step: Payload | None = None
        self._complete: Payload | None = None
        self._messages: dict[tuple[Payload, bool, Coding], bytes] = {}

    def include_constants(self, client: str) -> None:
        """Send a client the constants beside a whole model, from now on in this exchange."""
        if self._exchange.constants.version:
            self._needs_constants.add(client)

    def is_step(self, client: str) -> bool:
        """Return whether a client receives a step."""
        broadcast = self._exchange.broadcast
        if broadcast is None or client not in broadcast.holders:
            return False
        return client not in self._lacking and client not in self._needs_constants

    def is_snapshot(self, client: str) -> bool:
        """Return whether a client gets a whole model because it does not hold the base of the step."""
        broadcast = self._exchange.broadcast
        return broadcast is not None and broadcast.has_codec and client not in broadcast.holders

    def lacks(self, client: str) -> bool:
        """Take in that a client cannot use the step; returns whether that is news."""
        if not self.is_step(client):
            return False
        self._lacking.add(client)
        return True

    def payload(self, client: str) -> Payload:
        """Return the payload for a client."""
        return self._form(client, is_step=self.is_step(client))

    def dense_bytes(self, client: str) -> int:
        """Return the bytes of the tensors that a client's payload is worth, without a codec."""
        constants = self._exchange.constants.schema.size_bytes if client in self._needs_constants else 0
        return self._exchange.payload.schema.size_bytes + constants

    def _planned(self, client: str) -> Payload:
        """What it was to be sent before it was known to lack anything."""
        return self._form(client, is_step=self.is_step(client) or client in self._lacking)

    def _form(self, client: str, *, is_step: bool) -> Payload:
        if client in self._needs_constants:
            self._complete = self._complete or self._complete_payload()
            return self._complete
        if is_step:
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

    def _complete_payload(self) -> Payload:
        """Put the constants beside the model that clients without them are to hold. No codec: they hold it exactly."""
        exchange = self._exchange
        complete = exchange.payload.beside(**{CONSTANT: exchange.constants.tensors})
        encoding = Encoding(complete.schema, self._chunk_bytes, Coding(zstd=exchange.zstd))
        return Payload.of(encoding.encode(complete), shared=self._shared)

    def is_complete(self, digest: bytes) -> bool:
        """Return whether a digest is that of the payload with constants."""
        if not self._exchange.constants.version:
            return False
        self._complete = self._complete or self._complete_payload()
        return self._complete.header.digest == digest

    def is_whole(self, client: str, digest: bytes) -> bool:
        """Return whether a client that gets a step already has the model that is sent to clients without its base."""
        if not self.is_step(client):
            return False
        self._whole = self._whole or self._whole_payload()
        return self._whole.header.digest == digest

    def message(self, client: str) -> bytes:
        """Return the message before the payload."""
        return self._message(client, self.payload(client), whole=not self.is_step(client))

    def planned_bytes(self, client: str) -> int:
        """Return the size of the messages of a broadcast to a client that lacks nothing, each counted once."""
        payload = self._planned(client)
        return len(self._message(client, payload, whole=payload is self._whole)) + payload.frames_bytes

    def _message(self, client: str, payload: Payload, *, whole: bool) -> bytes:
        """Build the message, once for all clients that get the same one: without a codec all do."""
        coding = self._exchange.reply_coding(client)
        if coding.codec is not None:  # with a seed of each client's own
            return self._build(payload, coding, whole=whole)
        key = (payload, whole, coding)
        if key not in self._messages:
            self._messages[key] = self._build(payload, coding, whole=whole)
        return self._messages[key]

    def _build(self, payload: Payload, reply_coding: Coding, *, whole: bool) -> bytes:
        exchange = self._exchange
        return work_message(
            exchange.id,
            payload,
            evaluate=exchange.evaluate,
            deadline_s=exchange.closing.deadline_s,
            replica=replica_message(exchange.broadcast, whole=whole) if exchange.broadcast is not None else None,
            reply_coding=reply_coding,
            constants=exchange.constants,
            has_constants=payload is self._complete,
        )
