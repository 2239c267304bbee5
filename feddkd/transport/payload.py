"""Converts tensors to payloads and back: a header, then chunks of raw bytes.

Sending copies each byte once, into its message. Receiving checks the header against the schema that
the receiver expects before it takes memory, and every chunk before its bytes are used.
"""

from __future__ import annotations

import bisect
import hashlib
import time
from collections.abc import Iterator
from functools import cached_property, lru_cache
from typing import Self

import numpy as np
import torch
from crc32c import crc32c

from feddkd.compression import lossless
from feddkd.compression.encoding import UNCODED, Coding, Encoded, Encoding, Piece
from feddkd.errors import CorruptionError, ProtocolError, SchemaError
from feddkd.tensors import DTYPES, Schema, Tensors, TensorSpec
from feddkd.transport.frames import Chunk, chunk_message_bytes, encode_chunk
from feddkd.transport.pb import tensors_pb2 as pb

MAX_TENSORS = 10_000
MAX_DIMENSIONS = 8
MAX_NAME_BYTES = 256
LARGEST_NORM = 1e18
"""No honest chunk of elements is longer than this: a model that moved so far is useless."""
SHARED_FRAMES = 4
"""Encoded chunks of a broadcast kept for clients that are about to need the same ones."""

_ELEMENT_TYPES = {dtype: pb.ElementType.Value(f"ELEMENT_TYPE_{name.upper()}") for name, dtype in DTYPES.items()}
_DTYPE_OF = {element_type: dtype for dtype, element_type in _ELEMENT_TYPES.items()}


def schema_to_message(schema: Schema) -> pb.Schema:
    return pb.Schema(
        tensors=[
            pb.TensorSpec(
                name=spec.name,
                dtype=_ELEMENT_TYPES[spec.dtype],
                shape=spec.shape,
                trainable=spec.trainable and not spec.extra,
            )
            for spec in schema.specs
        ]
    )


@lru_cache(maxsize=16)
def _message_of(schema: Schema) -> pb.Schema:
    """The message of a schema, to compare with; not to be changed."""
    return schema_to_message(schema)


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


def check_header(header: pb.PayloadHeader, expected: Schema, coding: Coding = UNCODED) -> Encoding:
    """Compare what a peer announces with what it may send; takes no memory for it.

    Args:
        header: as it came.
        expected: the tensors that may follow.
        coding: how they have to be encoded.

    Returns:
        The layout of what follows.

    Raises:
        SchemaError: names, dtypes, shapes, order, the codec or the declared size differ from what is expected.
    """
    if not 8 <= header.chunk_bytes < 4 << 20:
        raise SchemaError(f"chunks of {header.chunk_bytes} bytes; between 8 bytes and 4 MiB are allowed")
    if header.zstd != coding.zstd:
        raise SchemaError(f"zstandard is {'not ' * coding.zstd}used where it is {'not ' * (not coding.zstd)}expected")
    if (header.codec, header.seed) != (coding.name, coding.seed):
        raise SchemaError(f"codec {header.codec[:40]!r} with seed {header.seed} where {coding.name!r} with seed {coding.seed} is expected")
    encoding = Encoding(expected, header.chunk_bytes, coding)
    detail = ""
    if header.size_bytes != encoding.size_bytes:
        detail = f"{header.size_bytes} bytes declared where the schema has {encoding.size_bytes}"
    # An encoded payload need not list its tensors: both ends know them, and the list can be longer than the code.
    if coding.codec is None or header.schema.tensors:
        if len(header.schema.tensors) != len(expected) and detail:
            detail += f", {len(header.schema.tensors)} tensors where it has {len(expected)}"
        _check_listed(header.schema, expected)
    if detail:
        raise SchemaError(detail)
    if len(header.digest) != hashlib.sha256().digest_size:
        raise SchemaError(f"a digest of {len(header.digest)} bytes where 32 are expected")
    if len(header.content_sha256) not in (0, hashlib.sha256().digest_size):
        raise SchemaError(f"a content hash of {len(header.content_sha256)} bytes where 32 are expected")
    return encoding


def _check_listed(listed: pb.Schema, expected: Schema) -> None:
    """Compare a list of tensors with what is expected. Raises SchemaError."""
    if listed != _message_of(expected):  # tensor by tensor only where they differ: many clients send the same
        expected.check_same(schema_from_message(listed))


class Payload:
    """Tensors ready to be sent, to one receiver or to many.

    Attributes:
        encoding: the layout of the bytes.
        block: the bytes, uint8 [size_bytes].
    """

    def __init__(self, tensors: Tensors, chunk_bytes: int, *, shared: bool = False) -> None:
        """Prepare tensors to be sent as they are; `Payload.of` takes encoded ones."""
        self._prepare(Encoding(tensors.schema, chunk_bytes).encode(tensors), shared=shared, listed=True)

    @classmethod
    def of(cls, encoded: Encoded, *, shared: bool = False, listed: bool = False) -> Self:
        """Prepare encoded tensors.

        Args:
            encoded: what is to be sent.
            shared: keep a few chunks for other receivers that are about to need the same ones.
            listed: list the tensors in the header, for a receiver that does not know which ones follow.
        """
        payload = cls.__new__(cls)
        payload._prepare(encoded, shared=shared, listed=listed or encoded.encoding.coding.codec is None)
        return payload

    def _prepare(self, encoded: Encoded, *, shared: bool, listed: bool) -> None:
        """Checksum the chunks."""
        self.encoding = encoded.encoding
        self._shared = shared
        self._listed = listed
        self.block = encoded.block
        self._data = encoded.block.numpy().data
        self._pieces = encoded.encoding.pieces
        self._checksums = [crc32c(self._data[piece.start : piece.stop]) for piece in self._pieces]
        self._packed = self._pack() if encoded.encoding.coding.zstd else {}
        self._recent_frames: dict[int, bytes] = {}

    def _pack(self) -> dict[int, bytes]:
        """Compress the chunks that get smaller."""
        packed = ((index, lossless.compress(self._data[piece.start : piece.stop])) for index, piece in enumerate(self._pieces))
        return {index: data for index, data in packed if data is not None}

    @property
    def size_bytes(self) -> int:
        return self.encoding.size_bytes

    @cached_property
    def header(self) -> pb.PayloadHeader:
        digest = hashlib.sha256(b"".join(checksum.to_bytes(4, "little") for checksum in self._checksums))
        return pb.PayloadHeader(
            schema=schema_to_message(self.encoding.schema) if self._listed else None,
            size_bytes=self.size_bytes,
            chunk_bytes=self.encoding.chunk_bytes,
            digest=digest.digest(),
            codec=self.encoding.coding.name,
            seed=self.encoding.coding.seed,
            zstd=self.encoding.coding.zstd,
        )

    @cached_property
    def content_sha256(self) -> bytes:
        """SHA-256 of the payload's bytes: names the content."""
        return hashlib.sha256(self._data).digest()

    @property
    def num_frames(self) -> int:
        return len(self._pieces)

    def frames(self, offset: int = 0) -> Iterator[bytes]:
        """Yield the stream messages of the chunks from byte `offset` on, in order.

        Raises:
            ProtocolError: no chunk begins there, nor does the payload end there.
        """
        return map(self._frame, range(self._index_of(offset), len(self._pieces)))

    def _index_of(self, offset: int) -> int:
        index = bisect.bisect_left(self._pieces, offset, key=lambda piece: piece.start)
        start = self._pieces[index].start if index < len(self._pieces) else self.size_bytes
        if start != offset:
            raise ProtocolError(f"no chunk of this payload begins at byte {offset}")
        return index

    @cached_property
    def frames_bytes(self) -> int:
        """Size of all messages of `frames` together, in bytes, without building them."""
        return sum(
            chunk_message_bytes(piece.start, checksum, len(self._packed.get(index, b"")) or piece.size_bytes)
            for index, (piece, checksum) in enumerate(zip(self._pieces, self._checksums, strict=True))
        )

    def _frame(self, index: int) -> bytes:
        """One encoded chunk, shared with the other receivers that are at about the same place."""
        frame = self._recent_frames.get(index)
        if frame is None:
            piece = self._pieces[index]
            data = memoryview(self._packed[index]) if index in self._packed else self._data[piece.start : piece.stop]
            frame = encode_chunk(Chunk(piece.start, self._checksums[index], data))
            if not self._shared:
                return frame
            self._recent_frames[index] = frame
            if len(self._recent_frames) > SHARED_FRAMES:
                del self._recent_frames[next(iter(self._recent_frames))]
        return frame


class ChunkSequence:
    """Checks the chunks of one payload as they arrive: order, boundaries, checksums, and the digest at the end.

    Attributes:
        pieces: what is to come, in order.
    """

    def __init__(self, header: pb.PayloadHeader, expected: Schema, coding: Coding = UNCODED) -> None:
        """Raises SchemaError if the header does not announce exactly `expected`, encoded as `coding` says."""
        self.encoding = check_header(header, expected, coding)
        self.pieces = self.encoding.pieces
        self._expected_digest = header.digest
        self._digest = hashlib.sha256()
        self._next = 0
        self._check_digest()

    @property
    def complete(self) -> bool:
        return self._next == len(self.pieces)

    def accept(self, chunk: Chunk) -> tuple[Piece, memoryview]:
        """Check the next chunk and return where its bytes belong, and the bytes.

        Raises:
            CorruptionError: the chunk is not the next one, has another length, or its checksum does not match.
        """
        if self.complete:
            raise CorruptionError(f"a chunk at byte {chunk.offset} after the payload was complete")
        piece = self.pieces[self._next]
        if chunk.offset != piece.start:
            raise CorruptionError(f"a chunk at byte {chunk.offset} where byte {piece.start} comes next")
        data = chunk.data
        if self.encoding.coding.zstd and len(data) < piece.size_bytes:
            data = memoryview(lossless.decompress(data, piece.size_bytes))
        if len(data) != piece.size_bytes:
            raise CorruptionError(f"a chunk of {len(data)} bytes at byte {chunk.offset} where {piece.size_bytes} are due")
        if crc32c(data) != chunk.crc32c:
            raise CorruptionError(f"the checksum of the chunk at byte {chunk.offset} does not match its data")
        self._digest.update(chunk.crc32c.to_bytes(4, "little"))
        self._next += 1
        self._check_digest()
        return piece, data

    @property
    def received_bytes(self) -> int:
        """How many bytes have been accepted: where the next chunk begins."""
        return self.pieces[self._next - 1].stop if self._next else 0

    def _check_digest(self) -> None:
        if self._next < len(self.pieces):
            return
        if self._digest.digest() != self._expected_digest:
            raise CorruptionError("the digest of the payload does not match its chunks")


class Assembly:
    """Assembles a payload in memory that is allocated after its header has been checked.

    Attributes:
        tensors: what has been put together so far.
        decode_s: seconds spent on decoding.
    """

    def __init__(self, header: pb.PayloadHeader, expected: Schema, coding: Coding = UNCODED) -> None:
        self._sequence = ChunkSequence(header, expected, coding)
        self.tensors = Tensors.empty(expected)
        self.decode_s = 0.0

    @property
    def complete(self) -> bool:
        return self._sequence.complete

    @property
    def received_bytes(self) -> int:
        """How many bytes have been put in place."""
        return self._sequence.received_bytes

    def add(self, chunk: Chunk) -> None:
        """Raises CorruptionError if the chunk is not the next one or is damaged, SchemaError if no encoder makes it."""
        piece, data = self._sequence.accept(chunk)
        segment = piece.segment
        if piece.codec is None:
            self.tensors.block.numpy()[segment.start : segment.stop] = np.frombuffer(data, dtype=np.uint8)
        else:
            started = time.perf_counter()
            self.tensors.elements(segment).copy_(piece.decode(copied(data)))
            self.decode_s += time.perf_counter() - started


def copied(data: memoryview) -> torch.Tensor:
    """Copy bytes; uint8, aligned for every dtype."""
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())


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
    raise SchemaError(f"its elements are too large: their norm is above {LARGEST_NORM:g}")
