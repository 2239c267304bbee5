"""Lay tensors out as bytes, chunk by chunk: encoded by the codec where it applies, unchanged otherwise."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from feddkd.compression.codec import Codec
from feddkd.tensors import Schema, Segment, Tensors

_ODD = 0x9E3779B97F4A7C15
"""2**64 over the golden ratio: its multiples spread over all seeds."""

_PIECE_ELEMENTS = 1 << 16


@dataclass(frozen=True, slots=True)
class Coding:
    """How one payload is encoded.

    Attributes:
        codec: encodes tensors that are `lossy`; None sends all as they are.
        seed: of this payload; 0 <= seed < 2**63.
        zstd: compress the bytes of each chunk without loss, where that pays.
    """

    codec: Codec | None = None
    seed: int = 0
    zstd: bool = False

    @property
    def name(self) -> str:
        """The codec's name; empty if there is none."""
        return self.codec.name if self.codec is not None else ""


UNCODED = Coding()


def derive_seed(*key: object) -> int:
    """Derive the seed of a payload from what names it: the same on every machine, at any retry."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@dataclass(frozen=True, slots=True)
class Piece:
    """One chunk: where its elements are among the tensors, and where its bytes are in what is sent.

    Attributes:
        codec: None where the bytes are those of the elements.
        start: first byte in what is sent.
        stop: after the last one.
        seed: of this chunk.
    """

    segment: Segment
    codec: Codec | None
    start: int
    stop: int
    seed: int

    @property
    def size_bytes(self) -> int:
        return self.stop - self.start

    def encode(self, elements: Tensor) -> Tensor:
        """Encode elements [n] of the segment's dtype; returns uint8 [size_bytes]. Raises ValueError if one is not finite."""
        if self.codec is None:
            return elements.view(torch.uint8)
        return self.codec.encode(elements.to(torch.float32), self.seed)

    def decode(self, code: Tensor) -> Tensor:
        """Decode uint8 [size_bytes]; returns elements [n] of the segment's dtype. Raises SchemaError."""
        if self.codec is None:
            return code.view(self.segment.dtype)
        return self.codec.decode(code, self.segment.numel, self.seed).to(self.segment.dtype)


class Encoding:
    """The layout of one payload.

    Attributes:
        pieces: in the order in which they are sent.
        size_bytes: of all pieces.
    """

    def __init__(self, schema: Schema, chunk_bytes: int, coding: Coding = UNCODED) -> None:
        """Lay out tensors.

        Args:
            schema: names, dtypes and shapes of the tensors.
            chunk_bytes: most bytes of elements in one piece.
        """
        self.schema = schema
        self.chunk_bytes = chunk_bytes
        self.coding = coding
        self.pieces = tuple(self._lay_out())
        self.size_bytes = self.pieces[-1].stop if self.pieces else 0

    def _lay_out(self) -> list[Piece]:
        if self.coding.codec is None:
            chunks = self.schema.chunks(self.chunk_bytes)
            return [Piece(chunk, None, chunk.start, chunk.stop, 0) for chunk in chunks]
        pieces: list[Piece] = []
        start = 0
        for segment, lossy in self.schema.coded_segments:
            for chunk in segment.cut(self.chunk_bytes):
                codec = self.coding.codec if lossy else None
                size = codec.size_bytes(chunk.numel) if codec is not None else chunk.stop - chunk.start
                seed = (self.coding.seed + len(pieces) * _ODD) % (1 << 63)
                pieces.append(Piece(chunk, codec, start, start + size, seed))
                start += size
        return pieces

    def encode(self, tensors: Tensors) -> Encoded:
        """Encode tensors of this layout's schema. Raises ValueError if an element is not finite."""
        if self.coding.codec is None:
            return Encoded(self, tensors.block)
        out = torch.empty(self.size_bytes, dtype=torch.uint8)
        for piece in self.pieces:
            out[piece.start : piece.stop] = piece.encode(tensors.elements(piece.segment))
        return Encoded(self, out)


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """Tensors as they are sent.

    Attributes:
        block: uint8 [encoding.size_bytes].
    """

    encoding: Encoding
    block: Tensor

    @property
    def size_bytes(self) -> int:
        return self.encoding.size_bytes

    def decode(self) -> Tensors:
        """Decode all pieces, as a receiver does. Raises SchemaError."""
        if self.encoding.coding.codec is None:
            return Tensors(self.encoding.schema, self.block)
        out = Tensors.empty(self.encoding.schema)
        for piece in self.encoding.pieces:
            # Copied: the bytes of exact elements may begin anywhere, their memory may not.
            out.elements(piece.segment).copy_(piece.decode(self.block[piece.start : piece.stop].clone()))
        return out


def relative_error(tensors: Tensors, decoded: Tensors) -> float:
    """Compute ||decoded - tensors|| / ||tensors|| over the lossy tensors; 0 where all of them are zero."""
    lost = whole = 0.0
    for spec in tensors.schema.specs:
        if spec.lossy and spec.numel:
            # A piece at a time: to square a model in float64 takes several times its memory.
            wanted, found = (torch.split(each[spec.name].view(-1), _PIECE_ELEMENTS) for each in (tensors, decoded))
            lost += sum(_square_sum(one - other) for one, other in zip(found, wanted, strict=True))
            whole += sum(map(_square_sum, wanted))
    return (lost / whole) ** 0.5 if whole > 0 else 0.0


def _square_sum(elements: Tensor) -> float:
    return float(elements.double().square().sum())
