"""One client's part of an exchange: how far its reply has come, and the blocks of it that have arrived."""

from __future__ import annotations

import hashlib
from enum import Enum

import torch
from torch import Tensor

from feddkd.compression.encoding import UNCODED, Coding, Piece
from feddkd.engines.norm_limit import NormLimit
from feddkd.engines.spool import Block
from feddkd.errors import ProtocolError
from feddkd.exchange import Missing, Reply
from feddkd.tensors import Schema, Segment
from feddkd.transport.frames import Chunk, chunk_message_bytes
from feddkd.transport.messages import answer_message_bytes
from feddkd.transport.payload import ChunkSequence, check_values
from feddkd.transport.pb import federation_pb2 as pb
from feddkd.transport.pb import tensors_pb2

_WIDE = (torch.float32, torch.float64)
"""What a checked code decodes to fits into these; a narrower type may overflow."""


class Progress(Enum):
    """How far a client's reply has come."""

    AWAITED = "awaited"
    ARRIVING = "arriving"
    COMPLETE = "complete"
    MISSING = "missing"


class Contribution:
    """One client's reply to one exchange.

    Attributes:
        coding: how it is encoded.
        numbers: what came in the reply's header.
        missing: why there is no reply, once there will be none.
        notified: the client was told that it is left out, or said so itself.
        away_since: when its connection broke; None while it is connected.
        last_arrival: when the last chunk came, or the upload began.
        blocks: what has arrived, in order.
        upload: how many uploads have begun; an interrupted one that goes on is the same.
        writing: chunks on their way into blocks.
        message_bytes: size of the messages that the reply takes, each counted once, as far as it has come.
    """

    def __init__(
        self,
        client_id: str,
        norm_limit: NormLimit | None = None,
        coding: Coding = UNCODED,
        *,
        hashes_bytes: bool = False,
    ) -> None:
        self.client_id = client_id
        self.coding = coding
        self.numbers = Reply()
        self.missing: Missing | None = None
        self.notified = False
        self.away_since: float | None = None
        self.last_arrival = 0.0
        self.blocks: list[Block] = []
        self.upload = 0
        self.writing = 0
        self.message_bytes = 0
        self._norm_limit = norm_limit
        self._progress = Progress.AWAITED
        self._interrupted = False
        self._header: tensors_pb2.PayloadHeader | None = None
        self._sequence: ChunkSequence | None = None
        self._announced_content = b""
        self._content: bytes | None = None
        self._square_sum = 0.0
        self._hashes_bytes = hashes_bytes
        self._digest = hashlib.sha256()

    @property
    def progress(self) -> Progress:
        """How far the reply has come."""
        return self._progress

    @property
    def has_begun(self) -> bool:
        """Whether the header of an upload has come."""
        return self._header is not None

    @property
    def received_bytes(self) -> int:
        """How much of the payload has arrived: where an interrupted upload goes on."""
        return self._sequence.received_bytes if self._sequence is not None else 0

    def is_same_content(self, header: tensors_pb2.PayloadHeader) -> bool:
        """Return whether `header` announces the content that has arrived. Raises StateError."""
        if self._header is None or header.digest != self._header.digest:
            return False
        return not header.content_sha256 or header.content_sha256 == self._content_sha256()

    def _content_sha256(self) -> bytes:
        """SHA-256 of the bytes that have arrived."""
        assert self._header is not None
        if self._content is None:
            largest = max((piece.size_bytes for piece in self.pieces), default=0)
            content, memory = hashlib.sha256(), torch.empty(largest, dtype=torch.uint8)
            for block in self.blocks:
                content.update(block.read(memory).numpy().data)
            self._content = content.digest()
        return self._content

    @property
    def digest(self) -> str:
        """What names the bytes that have arrived: their SHA-256, or that of the chunks' CRC-32C in their order.

        The latter costs next to nothing. It tells contributions apart, but whoever makes one can make another of the
        same checksums.
        """
        return f"{'sha256' if self._hashes_bytes else 'sha256-of-crc32c'}:{self._digest.hexdigest()}"

    def begin(self, numbers: Reply, answer: pb.Answer, schema: Schema | None, now: float) -> None:
        """Take in a reply's first message. Raises SchemaError if it announces anything but `schema`."""
        header = answer.payload if schema is not None else None
        if header is not None and schema is not None:
            self._sequence = ChunkSequence(header, schema, self.coding)
            self._header = header
        self.numbers = numbers
        self.message_bytes = answer_message_bytes(answer)
        self.upload += 1
        self.last_arrival = now
        self._update_progress()

    def resume(self, header: tensors_pb2.PayloadHeader, now: float) -> None:
        """Go on with an upload whose connection broke.

        Raises:
            ProtocolError: the connection did not break, or the client now announces other content.
        """
        if not self._interrupted:
            raise ProtocolError("a reply began before the last one was complete")
        if self._header is None or header.digest != self._header.digest:
            raise ProtocolError("the rest of the reply has other content")
        self._interrupted = False
        self._announced_content = header.content_sha256
        self.last_arrival = now

    def interrupt(self, now: float) -> None:
        """Take in that the connection is lost."""
        self.away_since = now
        self._interrupted = self._progress is Progress.ARRIVING

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """What the blocks hold, once the reply has begun."""
        return self._sequence.pieces if self._sequence is not None else ()

    def accept(self, chunk: Chunk) -> tuple[Piece, memoryview]:
        """Check that a chunk is the next one and whole; returns what it holds, and its bytes.

        Raises ProtocolError if it is damaged or out of order. `check` has to follow.
        """
        assert self._sequence is not None
        accepted = self._sequence.accept(chunk)
        self._digest.update(chunk.data if self._hashes_bytes else chunk.crc32c.to_bytes(4, "little"))
        self.message_bytes += chunk_message_bytes(chunk.offset, chunk.crc32c, len(chunk.data))
        return accepted

    def check(self, piece: Piece, data: Tensor) -> None:
        """Check the bytes of a piece, uint8.

        Raises:
            ProtocolError: they hold values that no honest client sends, or make the contribution longer than
                is allowed.
        """
        if piece.codec is not None:
            piece.codec.check(data, piece.segment.numel)
        if piece.codec is None or self._norm_limit is not None or piece.segment.dtype not in _WIDE:
            elements = piece.decode(data)
            check_values(elements)
            self._check_norm(piece.segment, elements)

    def _check_norm(self, segment: Segment, elements: Tensor) -> None:
        if self._norm_limit is None:
            return
        self._square_sum += self._norm_limit.square_sum(segment, elements)
        if self._square_sum > self._norm_limit.largest**2:
            raise ProtocolError(f"its norm is above aggregation.max_norm = {self._norm_limit.largest:g}")

    def add(self, block: Block, now: float) -> None:
        """Append a block that was accepted and written.

        Raises:
            ProtocolError: the upload was interrupted, and the bytes are not the content that its second part announced.
            StateError: the blocks cannot be read for this.
        """
        self.blocks.append(block)
        self.last_arrival = now
        self._update_progress()
        complete = self._progress is Progress.COMPLETE
        if complete and self._announced_content and self._announced_content != self._content_sha256():
            raise ProtocolError("the rest of the reply has other content")

    def reset(self) -> list[Block]:
        """Expect the whole reply again; returns the blocks that are of no use now."""
        self._progress = Progress.AWAITED
        return self._clear()

    def lose(self, missing: Missing) -> list[Block]:
        """Leave the client out; returns the blocks that are of no use now."""
        self._progress = Progress.MISSING
        self.missing = missing
        return self._clear()

    def take_blocks(self) -> list[Block]:
        """Hand over all blocks: the reply has been used."""
        taken, self.blocks = self.blocks, []
        return taken

    def _clear(self) -> list[Block]:
        self._interrupted = False
        self._header = self._sequence = None
        self._announced_content, self._content = b"", None
        self._square_sum = 0.0
        self._digest = hashlib.sha256()
        return self.take_blocks()

    def _update_progress(self) -> None:
        complete = self._sequence is None or len(self.blocks) == len(self._sequence.pieces)
        self._progress = Progress.COMPLETE if complete else Progress.ARRIVING
