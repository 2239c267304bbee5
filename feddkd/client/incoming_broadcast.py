"""Puts a broadcast together at a client: a whole model, or a step that is added to the one it holds."""

from __future__ import annotations

from feddkd.client.codings import coding_of
from feddkd.client.constants import HeldConstants
from feddkd.client.held import Held
from feddkd.compression.constants import CONSTANT
from feddkd.compression.replica import Replica
from feddkd.errors import CorruptionError, SchemaError
from feddkd.tensors import Schema, Tensors
from feddkd.transport.frames import Chunk
from feddkd.transport.payload import Assembly, schema_from_message
from feddkd.transport.pb import federation_pb2 as pb
from feddkd.transport.pb import tensors_pb2


class IncomingBroadcast:
    """One broadcast on its way in.

    Attributes:
        lacking: it cannot be used, because the client does not hold what the step is to be added to.
        received_bytes: how much of the payload has arrived.
        decode_s: seconds spent on decoding it.
    """

    def __init__(self, message: pb.Work, expected: Schema, held: Held, constants: HeldConstants) -> None:
        """Check what the server announces.

        Args:
            expected: what this exchange broadcasts.
            held: models of before.
            constants: takes in those that come beside the model.

        Raises:
            SchemaError: it is not what this exchange broadcasts.
            ConfigError: its codec is not known here.
            CorruptionError: it builds on constants that are not at hand.
        """
        self._expected = expected
        self._held = held
        self._constants = constants
        self._version = message.constants_sha256
        self._has_constants = message.has_constants
        if not self._has_constants:
            constants.use(self._version)
        self._replica = message.replica if message.HasField("replica") else None
        self.received_bytes = 0
        self.decode_s = 0.0
        # Kept until the step is here: meanwhile the client may be put away, and its disk may fail.
        self._base = held.replicas.get(expected) if self._is_step else None
        self.lacking = self._is_step and (self._base is None or self._base.version != message.replica.base_sha256)
        coding = coding_of(message.payload)
        schema = self._step_schema(message.payload) if self._is_step else self._whole_schema()
        self._assembly = None if self.lacking else Assembly(message.payload, schema, coding)
        self._tensors: Tensors | None = None
        if self._assembly is not None and self._assembly.complete:
            self._finish(self._assembly.tensors)

    @property
    def _is_step(self) -> bool:
        return self._replica is not None and bool(self._replica.base_sha256)

    @property
    def complete(self) -> bool:
        """Whether the broadcast is here."""
        return self._tensors is not None

    def take(self) -> Tensors:
        """Hand over what was broadcast."""
        assert self._tensors is not None
        return self._tensors

    def add(self, chunk: Chunk) -> None:
        """Add the next chunk. Raises ProtocolError if it is not that, or is damaged."""
        assembly = self._assembly
        if assembly is None:
            return
        assembly.add(chunk)
        self.received_bytes, self.decode_s = assembly.received_bytes, assembly.decode_s
        if assembly.complete:
            self._finish(assembly.tensors)

    def _step_schema(self, header: tensors_pb2.PayloadHeader) -> Schema:
        """What a step moves: what the header lists; without a list, all that a codec may change."""
        if header.codec and not header.schema.tensors:
            return Schema(spec for spec in self._expected.specs if spec.lossy)
        return _as_expected(schema_from_message(header.schema), self._expected)

    def _whole_schema(self) -> Schema:
        """What comes as a whole model."""
        return self._expected.beside({CONSTANT: self._constants.schema}) if self._has_constants else self._expected

    def _without_constants(self, received: Tensors) -> Tensors:
        """Keep the constants that came beside a model; returns the model."""
        self._constants.take(received.part(CONSTANT, self._constants.schema), self._version)
        self._constants.use(self._version)
        return received.select(self._expected)

    def _finish(self, received: Tensors) -> None:
        self._assembly = None
        if self._has_constants:
            received = self._without_constants(received)
        if self._replica is None:
            self._tensors = received
            return
        if self._base is not None:
            replica, self._base = self._base, None
            if len(received):
                replica.advance(received, in_mean=self._replica.in_mean)
            if self._replica.take_mean:
                replica.take_mean()
            elif not len(received):
                replica.look_again()
        else:
            replica = Replica(received, in_mean=self._replica.in_mean)
        self._held.replicas[self._expected] = replica
        if replica.version == self._replica.content_sha256:
            self._tensors = replica.model
        elif self._is_step:  # for instance where the model was written to: a whole one puts that right
            del self._held.replicas[self._expected]
            self.lacking = True
        else:
            raise CorruptionError("the broadcast is not the model that the server names")


def _as_expected(listed: Schema, expected: Schema) -> Schema:
    """Return the tensors of `expected` that are listed. Raises SchemaError for others."""
    unknown = next((name for name in listed.by_name if name not in expected.by_name), None)
    if unknown is not None:
        raise SchemaError(f"tensor {unknown!r} is not expected")
    return Schema(expected.by_name[name] for name in listed.by_name)
