"""Tensors to payloads and back: a header that says what follows, then chunks of raw bytes.

Sending copies each byte once, into its message. Receiving checks the header against the schema that
the receiver expects before it takes memory, and every chunk before its bytes are used.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from crc32c import crc32c

from feddkd.errors import CorruptionError, ProtocolError, SchemaError
from feddkd.tensors import DTYPES, Schema, Segment, Tensors, TensorSpec
from feddkd.transport.frames import Chunk, chunk_message_bytes, encode_chunk
from feddkd.transport.pb import tensors_pb2 as pb

MAX_TENSORS = 10_000
MAX_DIMENSIONS = 8
MAX_NAME_BYTES = 256
LARGEST_NORM = 1e18
"""No honest chunk of elements is longer than this: a model that moved so far is of no use to anybody."""
SHARED_FRAMES = 4
"""Encoded chunks of a broadcast kept for clients that are about to need the same ones."""

_ELEMENT_TYPES = {dtype: pb.ElementType.Value(f"ELEMENT_TYPE_{name.upper()}") for name, dtype in DTYPES.items()}
_DTYPE_OF = {element_type: dtype for dtype, element_type in _ELEMENT_TYPES.items()}


def schema_to_message(schema: Schema) -> pb.Schema:
    return pb.Schema(
        tensors=[
            pb.TensorSpec(name=spec.name, dtype=_ELEMENT_TYPES[spec.dtype], shape=spec.shape, trainable=spec.trainable)
            for spec in schema.specs
        ]
    )


def schema_from_message(message: pb.Schema) -> Schema:
    """Read a schema from the wire.

    Raises:
        SchemaError: too many tensors or dimensions, an unknown element type, a bad name, or two of one name.
    """
    if len(message.tensors) > MAX_TENSORS:
        raise SchemaError(f"{len(message.tensors)} tensors; at most {MAX_TENSORS} are allowed")
    specs = []
    for spec in message.tensors:
        if not 0 < len(spec.name.encode()) <= MAX_NAME_BYTES:
            raise SchemaError(f"tensor name {spec.name[:40]!r} is empty or longer than {MAX_NAME_BYTES} bytes")
        if len(spec.shape) > MAX_DIMENSIONS:
            raise SchemaError(f"tensor {spec.name!r} has {len(spec.shape)} dimensions; at most {MAX_DIMENSIONS} are allowed")
        if spec.dtype not in _DTYPE_OF:
            raise SchemaError(f"tensor {spec.name!r} has unknown element type {spec.dtype}")
        specs.append(TensorSpec(spec.name, _DTYPE_OF[spec.dtype], tuple(spec.shape), spec.trainable))
    return Schema(specs)


def check_header(header: pb.PayloadHeader, expected: Schema) -> None:
    """Compare what a peer announces with what it may send; takes no memory for it.

    Raises:
        SchemaError: names, dtypes, shapes, order or the declared size differ from `expected`.
    """
    if header.size_bytes != expected.size_bytes:
        detail = f"{header.size_bytes} bytes declared where the schema has {expected.size_bytes}"
    else:
        detail = ""
    if len(header.schema.tensors) != len(expected) and detail:
        detail += f", {len(header.schema.tensors)} tensors where it has {len(expected)}"
    announced = schema_from_message(header.schema)
    expected.check_same(announced)
    if detail:
        raise SchemaError(detail)
    if not 8 <= header.chunk_bytes < 4 << 20:
        raise SchemaError(f"chunks of {header.chunk_bytes} bytes; between 8 bytes and 4 MiB are allowed")
    if len(header.digest) != hashlib.sha256().digest_size:
        raise SchemaError(f"a digest of {len(header.digest)} bytes where 32 are expected")
    if len(header.content_sha256) not in (0, hashlib.sha256().digest_size):
        raise SchemaError(f"a content hash of {len(header.content_sha256)} bytes where 32 are expected")


class Payload:
    """Tensors ready to be sent, to one receiver or to many."""

    def __init__(self, tensors: Tensors, chunk_bytes: int, *, shared: bool = False) -> None:
        """Checksum the chunks.

        Args:
            shared: keep a few encoded chunks for other receivers that are about to need the same ones.
        """
        self._shared = shared
        self.tensors = tensors
        self.chunk_bytes = chunk_bytes
        self._data = tensors.block.numpy().data
        self._segments = tensors.schema.chunks(chunk_bytes)
        self._checksums = [crc32c(self._data[segment.start : segment.stop]) for segment in self._segments]
        self._recent_frames: dict[int, bytes] = {}

    @property
    def size_bytes(self) -> int:
        return self.tensors.schema.size_bytes

    @cached_property
    def header(self) -> pb.PayloadHeader:
        digest = hashlib.sha256(b"".join(checksum.to_bytes(4, "little") for checksum in self._checksums))
        return pb.PayloadHeader(
            schema=schema_to_message(self.tensors.schema),
            size_bytes=self.size_bytes,
            chunk_bytes=self.chunk_bytes,
            digest=digest.digest(),
        )

    @cached_property
    def content_sha256(self) -> bytes:
        """SHA-256 of the payload's bytes: names the content."""
        return hashlib.sha256(self._data).digest()

    @property
    def num_frames(self) -> int:
        return len(self._segments)

    def frames(self, offset: int = 0) -> Iterator[bytes]:
        """The stream messages that carry the bytes from the chunk that begins at byte `offset` on, in order.

        Raises:
            ProtocolError: no chunk begins there, nor does the payload end there.
        """
        return map(self._frame, range(self._index_of(offset), len(self._segments)))

    def _index_of(self, offset: int) -> int:
        index = bisect.bisect_left(self._segments, offset, key=lambda segment: segment.start)
        start = self._segments[index].start if index < len(self._segments) else self.size_bytes
        if start != offset:
            raise ProtocolError(f"no chunk of this payload begins at byte {offset}")
        return index

    @cached_property
    def frames_bytes(self) -> int:
        """Size of all messages of `frames` together, in bytes, without building them."""
        return sum(
            chunk_message_bytes(segment.start, checksum, segment.stop - segment.start)
            for segment, checksum in zip(self._segments, self._checksums, strict=True)
        )

    def _frame(self, index: int) -> bytes:
        """One encoded chunk, shared with the other receivers that are at about the same place."""
        frame = self._recent_frames.get(index)
        if frame is None:
            segment = self._segments[index]
            frame = encode_chunk(Chunk(segment.start, self._checksums[index], self._data[segment.start : segment.stop]))
            if not self._shared:
                return frame
            self._recent_frames[index] = frame
            if len(self._recent_frames) > SHARED_FRAMES:
                del self._recent_frames[next(iter(self._recent_frames))]
        return frame


class ChunkSequence:
    """Checks the chunks of one payload as they arrive: order, boundaries, checksums, and the digest at the end."""

    def __init__(self, header: pb.PayloadHeader, expected: Schema) -> None:
        """Raises SchemaError if the header does not announce exactly `expected`."""
        check_header(header, expected)
        self.segments = expected.chunks(header.chunk_bytes)
        self._expected_digest = header.digest
        self._digest = hashlib.sha256()
        self._next = 0
        self._check_digest()

    @property
    def complete(self) -> bool:
        return self._next == len(self.segments)

    def accept(self, chunk: Chunk) -> Segment:
        """Check the next chunk and return where its bytes belong.

        Raises:
            CorruptionError: the chunk is not the next one, has another length, or its checksum does not match.
        """
        if self.complete:
            raise CorruptionError(f"a chunk at byte {chunk.offset} after the payload was complete")
        segment = self.segments[self._next]
        if chunk.offset != segment.start:
            raise CorruptionError(f"a chunk at byte {chunk.offset} where byte {segment.start} comes next")
        if len(chunk.data) != segment.stop - segment.start:
            raise CorruptionError(f"a chunk of {len(chunk.data)} bytes at byte {chunk.offset} where {segment.stop - segment.start} are due")
        if crc32c(chunk.data) != chunk.crc32c:
            raise CorruptionError(f"the checksum of the chunk at byte {chunk.offset} does not match its data")
        self._digest.update(chunk.crc32c.to_bytes(4, "little"))
        self._next += 1
        self._check_digest()
        return segment

    @property
    def received_bytes(self) -> int:
        """How many bytes have been accepted: where the next chunk begins."""
        return self.segments[self._next - 1].stop if self._next else 0

    def _check_digest(self) -> None:
        if self._next < len(self.segments):
            return
        if self._digest.digest() != self._expected_digest:
            raise CorruptionError("the digest of the payload does not match its chunks")


class Assembly:
    """Puts a payload back together in memory that is taken once its header has been checked."""

    def __init__(self, header: pb.PayloadHeader, expected: Schema) -> None:
        self._sequence = ChunkSequence(header, expected)
        self.tensors = Tensors.empty(expected)
        self._data = self.tensors.block.numpy()

    @property
    def complete(self) -> bool:
        return self._sequence.complete

    @property
    def received_bytes(self) -> int:
        """How many bytes have been put in place."""
        return self._sequence.received_bytes

    def add(self, chunk: Chunk) -> None:
        """Raises CorruptionError if the chunk is not the next one or is damaged."""
        segment = self._sequence.accept(chunk)
        self._data[segment.start : segment.stop] = np.frombuffer(chunk.data, dtype=np.uint8)


def check_values(elements: torch.Tensor) -> None:
    """Refuse values that no honest contribution holds.

    Raises:
        SchemaError: among floating-point elements a NaN or an infinity; a norm above LARGEST_NORM; or a bool that
            is neither 0 nor 1.
    """
    if len(elements) == 0:
        return
    if elements.dtype == torch.bool:
        if elements.view(torch.uint8).max() > 1:
            raise SchemaError("a bool element is neither 0 nor 1")
        return
    if not elements.dtype.is_floating_point:
        return
    # One pass over memory answers all: a norm is not finite if any element is not, and overflows if one is enormous.
    wide = torch.float64 if elements.dtype == torch.float64 else torch.float32
    norm = float(torch.linalg.vector_norm(elements, dtype=wide))
    if norm <= LARGEST_NORM:
        return
    if not torch.isfinite(elements).all():
        raise SchemaError("an element is NaN or infinite")
    raise SchemaError(f"its elements are enormous: their norm is above {LARGEST_NORM:g}")
