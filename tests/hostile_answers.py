"""Makes answers that a server may not count, and changes what is in them."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from crc32c import crc32c

from feddkd.transport.pb import federation_pb2 as pb
from feddkd.transport.pb import tensors_pb2

NAN, INFINITY = float("nan"), float("inf")
FLOATS = (0.0, -0.0, 1.0, -1.0, NAN, INFINITY, -INFINITY, 1.7e308, -1.7e308, 1e300, 5e-324, 1e-310)
UINT32 = (0, 1, 2, 7, 2**31 - 1, 2**31, 2**32 - 1)
UINT64 = (0, 1, 8, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
INT64 = (0, 1, -1, 10, 2**31, 2**53, 2**53 + 1, 2**63 - 1, -(2**63))
TEXTS = (
    "",
    "x",
    "local_train",
    "dkd_step",
    "deliver",
    "disconnected",
    "../../etc/passwd",
    "%s%n{0}",
    "a\x00b",
    "two\nlines",
    "\x1b[2J\x1b[31mred",
    "\u202eabc",
    "ä€𝄞",
    "x" * 65,
    "x" * 257,
    "x" * 20_000,
)
ITEM_BYTES = {tensors_pb2.ELEMENT_TYPE_FLOAT64: 8, tensors_pb2.ELEMENT_TYPE_FLOAT32: 4}
Schema = tensors_pb2.Schema
Chunks = list[tensors_pb2.Chunk]


@dataclass
class Upload:
    """An answer with its chunks, before they are serialized."""

    answer: pb.Answer
    chunks: list[tensors_pb2.Chunk] = field(default_factory=list)

    def messages(self) -> list[bytes]:
        chunks = [pb.ParticipateRequest(chunk=chunk) for chunk in self.chunks]
        requests = [pb.ParticipateRequest(answer=self.answer), *chunks]
        return [request.SerializeToString() for request in requests]


def upload_of_zeros(exchange: pb.ExchangeId, schema: Schema | None, chunk_bytes: int) -> Upload:
    """An answer like an honest one; without tensors where `schema` is None."""
    answer = pb.Answer(id=exchange, loss=0.5, compute_s=0.1, gradient_evaluations=3)
    if schema is None:
        return Upload(answer)
    chunks, digest, size = _chunks(schema, chunk_bytes)
    answer.payload.schema.CopyFrom(schema)
    answer.payload.size_bytes, answer.payload.chunk_bytes = size, chunk_bytes
    answer.payload.digest = digest
    return Upload(answer, chunks)


def _chunks(schema: Schema, chunk_bytes: int) -> tuple[Chunks, bytes, int]:
    """Chunks of zeros, their digest, and the bytes of all of them."""
    chunks, digest, offset = [], hashlib.sha256(), 0
    for kind in sorted({spec.dtype for spec in schema.tensors}):
        shapes = [spec.shape for spec in schema.tensors if spec.dtype == kind]
        count = sum(math.prod(shape) for shape in shapes)
        data = bytes(count * ITEM_BYTES[kind])
        for at in range(0, len(data), chunk_bytes):
            piece = data[at : at + chunk_bytes]
            digest.update(crc32c(piece).to_bytes(4, "little"))
            chunks.append(tensors_pb2.Chunk(offset=offset + at, crc32c=crc32c(piece), data=piece))
        offset += len(data)
    return chunks, digest.digest(), offset


Change = Callable[[Random, Upload], None]


def _no_tensors(_: Random, upload: Upload) -> None:
    upload.answer.ClearField("payload")
    upload.chunks.clear()


def _other_digest(random: Random, upload: Upload) -> None:
    upload.answer.payload.digest = random.randbytes(32)


def _not_finite(random: Random, upload: Upload) -> None:
    """The last element is NaN or infinite; the digest is right."""
    last = upload.chunks[-1]
    value = random.choice([NAN, INFINITY, -INFINITY])
    last.data = last.data[:-4] + struct.pack("<f", value)
    last.crc32c = crc32c(last.data)
    checksums = b"".join(chunk.crc32c.to_bytes(4, "little") for chunk in upload.chunks)
    upload.answer.payload.digest = hashlib.sha256(checksums).digest()


def _cut_short(random: Random, upload: Upload) -> None:
    """The last chunks never come."""
    del upload.chunks[random.randrange(len(upload.chunks)) :]


def _other_checksum(random: Random, upload: Upload) -> None:
    chunk = random.choice(upload.chunks)
    chunk.crc32c ^= random.randrange(1, 2**32)


def _other_schema(random: Random, upload: Upload) -> None:
    name, kind = random.choice(TEXTS), tensors_pb2.ELEMENT_TYPE_FLOAT32
    spec = tensors_pb2.TensorSpec(name=name, dtype=kind, shape=[1])
    upload.answer.payload.schema.tensors.append(spec)


SPOILERS: tuple[Change, ...] = (
    _no_tensors,
    _other_digest,
    _not_finite,
    _cut_short,
    _other_checksum,
    _other_schema,
)
"""Each makes an answer with tensors one that cannot be counted."""


def _change_numbers(random: Random, upload: Upload) -> None:
    choose, answer = random.choice, upload.answer
    answer.loss, answer.compute_s = choose(FLOATS), choose(FLOATS)
    answer.gradient_evaluations = choose(UINT64)


def _change_evaluation(random: Random, upload: Upload) -> None:
    choose, evaluation = random.choice, upload.answer.evaluation
    evaluation.examples, evaluation.correct = choose(UINT64), choose(UINT64)
    evaluation.loss_sum = choose(FLOATS)


def _add_metrics(random: Random, upload: Upload) -> None:
    for index in range(random.choice([1, 2, 32, 33, 500])):
        name = random.choice(TEXTS) + str(index)
        upload.answer.metrics[name] = random.choice(FLOATS)


def _change_spec(random: Random, upload: Upload) -> None:
    tensors = upload.answer.payload.schema.tensors
    if not tensors:  # or to look at them would add an empty payload
        return
    choose, spec = random.choice, random.choice(tensors)
    match random.randrange(4):
        case 0:
            spec.name = choose(TEXTS)
        case 1:
            spec.shape[:] = [choose(UINT64) for _ in range(choose([0, 1, 2, 9]))]
        case 2:
            spec.dtype = choose([0, 1, 2, 3, 10, 11, 99])  # type: ignore[assignment]
        case _:
            tensors.append(spec)


def _many_tensors(random: Random, upload: Upload) -> None:
    count = random.choice([10, 100, 1000])
    specs = [tensors_pb2.TensorSpec(name=f"t{index}") for index in range(count)]
    upload.answer.payload.schema.tensors.extend(specs)


def _change_sizes(random: Random, upload: Upload) -> None:
    choose, payload = random.choice, upload.answer.payload
    payload.size_bytes, payload.chunk_bytes = choose(UINT64), choose(UINT32)


def _change_chunk(random: Random, upload: Upload) -> None:
    if not upload.chunks:
        return
    chunk = random.choice(upload.chunks)
    match random.randrange(4):
        case 0:
            chunk.offset = random.choice(UINT64)
        case 1:
            chunk.data = chunk.data[:-1]
        case 2:
            chunk.data += b"\x00" * random.choice([1, 8, 4096])
        case _:
            chunk.data = b""


def _reorder_chunks(random: Random, upload: Upload) -> None:
    random.shuffle(upload.chunks)


def _repeat_chunk(random: Random, upload: Upload) -> None:
    if upload.chunks:
        index = random.randrange(len(upload.chunks))
        upload.chunks.insert(index, upload.chunks[index])


def _fill_chunks(random: Random, upload: Upload) -> None:
    """Random bits are floats of every kind."""
    for chunk in upload.chunks:
        chunk.data = random.randbytes(len(chunk.data))
        chunk.crc32c = crc32c(chunk.data)


CHANGES: tuple[Change, ...] = (
    _change_numbers,
    _change_evaluation,
    _add_metrics,
    _change_spec,
    _many_tensors,
    _change_sizes,
    _change_chunk,
    _reorder_chunks,
    _repeat_chunk,
    _fill_chunks,
)


def spoil(random: Random, upload: Upload) -> None:
    """Make a server refuse an answer; one without tensors is only changed."""
    if upload.answer.HasField("payload"):
        random.choice(SPOILERS)(random, upload)
    for change in random.sample(CHANGES, random.choice([0, 0, 1, 1, 2, 4])):
        change(random, upload)
