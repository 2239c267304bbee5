"""Makes hostile messages of every kind from a seeded generator that knows the protobuf messages.

No answer made here is one that a server may count: what is right in all else is still wrong in its
digest, its chunks or its values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from crc32c import crc32c
from hostile_answers import NAN, TEXTS, UINT32, UINT64, spoil, upload_of_zeros

from feddkd.transport.pb import federation_pb2 as pb
from feddkd.transport.pb import tensors_pb2

HEARTBEAT = b"\x2a\x00"
"""`ParticipateRequest.heartbeat`, an empty message in field 5."""


@dataclass(frozen=True)
class Situation:
    """What a hostile client knows of a run.

    Attributes:
        exchange: the one that is open.
        past: exchanges that are closed.
        model: schema of the model.
        chunk_bytes: of tensor data in one message.
        extras: scalars that an answer to `local_train` holds beside the update.
    """

    exchange: pb.ExchangeId
    past: Sequence[pb.ExchangeId]
    model: tensors_pb2.Schema
    chunk_bytes: int
    extras: Sequence[str] = ()

    def reply_schema(self, exchange: pb.ExchangeId) -> tensors_pb2.Schema | None:
        """The schema of an honest answer; None where it holds no tensors."""
        if exchange.name == "deliver":
            return None
        specs = list(self.model.tensors)
        if exchange.name == "dkd_step":
            specs = [spec for spec in specs if spec.trainable]
        if exchange.name == "local_train":
            double = tensors_pb2.ELEMENT_TYPE_FLOAT64
            for name in self.extras:
                specs.append(tensors_pb2.TensorSpec(name=f"{name}/value", dtype=double))
            specs.sort(key=lambda spec: spec.dtype)
        return tensors_pb2.Schema(tensors=specs)


class Messages:
    """A stream of hostile messages, the same for the same seed and situation."""

    def __init__(self, random: Random, situation: Situation) -> None:
        self.random = random
        self.situation = situation

    def some(self, count: int) -> list[bytes]:
        """At least `count` messages of all kinds."""
        kinds: tuple[Callable[[], list[bytes]], ...] = (
            self.upload,
            self.upload,
            self.stray_chunk,
            self.failure,
            self.lacking,
            self.hello,
            self.heartbeats,
            self.response,
            self.garbage,
        )
        weights = (6, 6, 3, 3, 1, 0.3, 0.5, 0.2, 0.3)  # few of those that end a stream
        out: list[bytes] = []
        while len(out) < count:
            (kind,) = self.random.choices(kinds, weights)
            out += kind()
        if self.random.random() < 0.2:
            index = self.random.randrange(len(out))
            out[index] = self.damaged(out[index])
        return out

    # Well-formed messages.

    def exchange_id(self) -> pb.ExchangeId:
        """The open exchange, one that is closed, or one that there never was."""
        past = self.random.choice([*self.situation.past, self.situation.exchange])
        found = pb.ExchangeId()
        found.CopyFrom(self.random.choice([self.situation.exchange, past]))
        if self.random.random() < 0.3:
            name = self.random.choice(["run_id", "name", "round", "attempt", "step"])
            texts = name in ("run_id", "name")
            setattr(found, name, self.random.choice(TEXTS if texts else UINT32))
        return found

    def upload(self, exchange: pb.ExchangeId | None = None) -> list[bytes]:
        """An answer and its chunks; one with tensors is wrong in one place at least."""
        exchange = exchange or self.exchange_id()
        schema = self.situation.reply_schema(exchange)
        upload = upload_of_zeros(exchange, schema, self.situation.chunk_bytes)
        spoil(self.random, upload)
        return upload.messages()

    def stray_chunk(self) -> list[bytes]:
        """A chunk that no answer announced."""
        data = self.random.randbytes(self.random.choice([0, 1, 7, 8, 64, 4096]))
        checksum = crc32c(data) if self.random.random() < 0.5 else self.random.choice(UINT32)
        offset = self.random.choice(UINT64)
        chunk = tensors_pb2.Chunk(offset=offset, crc32c=checksum, data=data)
        return [pb.ParticipateRequest(chunk=chunk).SerializeToString()]

    def failure(self) -> list[bytes]:
        failure = pb.Failure(id=self.exchange_id(), reason=self.random.choice(TEXTS))
        return [pb.ParticipateRequest(failure=failure).SerializeToString()]

    def lacking(self) -> list[bytes]:
        """A request for a whole model."""
        lacking = pb.Lacking(id=self.exchange_id())
        return [pb.ParticipateRequest(lacking=lacking).SerializeToString()]

    def hello(self) -> list[bytes]:
        """A greeting with a token that is none; sometimes with a broadcast in hand (field 2)."""
        token = self.random.choice([*TEXTS, "0" * 32, self.random.randbytes(16).hex()])
        message = pb.Hello(session_token=token).SerializeToString()
        if self.random.random() < 0.5:
            digest = _field(2, self.random.randbytes(self.random.choice([0, 31, 32])))
            holding = _field(1, self.exchange_id().SerializeToString()) + digest
            message += _field(2, holding + b"\x18" + _varint(self.random.choice(UINT64)))
        return [_field(1, message)]

    def heartbeats(self) -> list[bytes]:
        return [HEARTBEAT] * self.random.choice([1, 2, 20])

    # Messages that are none.

    def response(self) -> list[bytes]:
        """What only a server says."""
        payload = tensors_pb2.PayloadHeader(size_bytes=self.random.choice(UINT64))
        work = pb.Work(id=self.exchange_id(), payload=payload, deadline_s=NAN)
        receipt = pb.Receipt(id=self.exchange_id(), verdict=pb.VERDICT_OK)
        answers = [pb.ParticipateResponse(work=work), pb.ParticipateResponse(receipt=receipt)]
        return [self.random.choice(answers).SerializeToString()]

    def garbage(self) -> list[bytes]:
        """Bytes that begin like a message of each kind, or like none."""
        rest = self.random.randbytes(self.random.choice([0, 1, 3, 60, 2000]))
        number = self.random.choice([0, 1, 2, 3, 4, 5, 6, 7, 15])
        return [self.random.choice([rest, _field(number, rest), bytes([number << 3 | 2]) + rest])]

    def damaged(self, message: bytes) -> bytes:
        """A message cut off, with a bit flipped, twice in one, or with fields that nobody knows."""
        at = self.random.randrange(len(message) + 1)
        match self.random.randrange(4):
            case 0:
                return message[:at]
            case 1:
                flipped = bytearray(message + b"\x00")
                flipped[at] ^= 1 << self.random.randrange(8)
                return bytes(flipped)
            case 2:
                return message + message
            case _:
                return message + _field(1000, self.random.randbytes(40)) + b"\xf8\x3f\x01"


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, data: bytes) -> bytes:
    """A field of any number that holds bytes."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data
