"""Holds a finished reply as the messages that it is sent in, in memory or in a file of a state directory."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError
from torch import Tensor

from feddkd.client.codings import reply_coding
from feddkd.client.state_dir import StateDir
from feddkd.compression.encoding import Encoded, Encoding
from feddkd.errors import ConfigError, ProtocolError
from feddkd.exchange import ExchangeId
from feddkd.tensors import DTYPE_NAMES, DTYPES, Schema, Tensors, TensorSpec
from feddkd.transport.messages import id_from_message, repeated_answer_message
from feddkd.transport.payload import Payload
from feddkd.transport.pb import federation_pb2 as pb

_PAYLOAD = "payload"
_LEFTOVER = "leftover/"


@dataclass(frozen=True, slots=True)
class KeptReply:
    """A reply as messages, or the notice that there will be none.

    Attributes:
        header: the first message.
        payload: what follows it in chunks, if anything does.
        leftover: what the codec left out, where that is added to the next contribution if this one counts.
    """

    header: bytes
    payload: Payload | None = None
    leftover: Tensors | None = None

    def messages(self, offset: int, *, again: bool = False) -> Iterable[bytes]:
        """Return the header and the chunks from byte `offset` on. Raises ProtocolError if none begins there."""
        if self.payload is None:
            return (self.header,)
        header = repeated_answer_message(self.header, self.payload) if again else self.header
        return itertools.chain((header,), self.payload.frames(offset))


class StoredReply(NamedTuple):
    """A reply as a file holds it.

    Attributes:
        work: the message that it replies to.
        configuration: names what the client computed with.
    """

    work: pb.Work
    reply: KeptReply
    configuration: str

    @property
    def exchange(self) -> ExchangeId:
        return id_from_message(self.work.id)


def save_reply(state: StateDir, name: str, stored: StoredReply) -> None:
    """Write a reply. What it leaves over is on the disk when this returns; the rest can be computed again. Raises StateError."""
    work, reply, configuration = stored
    tensors: dict[str, Tensor] = {}
    schema = None
    if reply.payload is not None:
        tensors[_PAYLOAD] = reply.payload.block
        schema = _to_json(reply.payload.encoding.schema)
    if reply.leftover is not None:
        tensors |= {f"{_LEFTOVER}{key}": tensor for key, tensor in reply.leftover.items()}
    leaves_over = reply.leftover is not None
    label = {
        "work": _text(work.SerializeToString()),
        "answer": _text(reply.header),
        "schema": schema,
        "leaves_over": leaves_over,
        "configuration": configuration,
    }
    state.save(name, tensors, json.dumps(label), durable=leaves_over)


def read_reply(state: StateDir, name: str) -> StoredReply | None:
    """Read a reply; None if there is none, or none that this version can send. Raises StateError if it cannot be read."""
    file = state.read(name)
    if file is None:
        return None
    try:
        label = json.loads(file.label)
        work, header = pb.Work.FromString(_bytes(label["work"])), _bytes(label["answer"])
        id_from_message(work.id)
        payload = _payload_of(work, label["schema"], file.tensors)
        leftover = _leftover_of(label["schema"], file.tensors) if label["leaves_over"] else None
        return StoredReply(work, KeptReply(header, payload, leftover), label["configuration"])
    except (ValueError, KeyError, TypeError, DecodeError, ConfigError, ProtocolError):  # as of another version
        return None


def exchange_of(state: StateDir, name: str) -> ExchangeId | None:
    """Read which exchange a stored reply belongs to; None if there is none. Raises StateError if it cannot be read."""
    label = state.label(name)
    try:
        return id_from_message(pb.Work.FromString(_bytes(json.loads(label or "")["work"])).id)
    except (ValueError, KeyError, TypeError, DecodeError, ProtocolError):
        return None


def _payload_of(work: pb.Work, schema: Any, tensors: Mapping[str, Tensor]) -> Payload | None:
    """Put a payload together again. Raises ValueError if it has not the size that its layout says."""
    if schema is None:
        return None
    encoding = Encoding(_from_json(schema), work.payload.chunk_bytes, reply_coding(work))
    block = tensors[_PAYLOAD]
    if len(block) != encoding.size_bytes:
        raise ValueError(f"{len(block)} bytes where the layout has {encoding.size_bytes}")
    return Payload.of(Encoded(encoding, block))


def _leftover_of(schema: Any, tensors: Mapping[str, Tensor]) -> Tensors:
    left = {name.removeprefix(_LEFTOVER): tensor for name, tensor in tensors.items() if name.startswith(_LEFTOVER)}
    return Tensors.copy_of(_from_json(schema), left)


def _to_json(schema: Schema) -> list[Any]:
    return [[spec.name, DTYPE_NAMES[spec.dtype], list(spec.shape), spec.trainable, spec.extra] for spec in schema.specs]


def _from_json(specs: list[Any]) -> Schema:
    return Schema(TensorSpec(name, DTYPES[dtype], tuple(shape), trainable, extra) for name, dtype, shape, trainable, extra in specs)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
