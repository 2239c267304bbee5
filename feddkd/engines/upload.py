"""One client's answer to an exchange: a short queue of checked chunks, filled as they come and emptied in step with the others'.

Lives on the server's loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from enum import Enum

import numpy as np
import torch
from torch import Tensor

from feddkd.exchange import Reply
from feddkd.tensors import Schema
from feddkd.transport.frames import Chunk
from feddkd.transport.payload import ChunkSequence, check_values
from feddkd.transport.pb import tensors_pb2


class Progress(Enum):
    """How far a client's answer has come."""

    AWAITED = "awaited"
    ARRIVING = "arriving"
    COMPLETE = "complete"
    LOST = "lost"


class Upload:
    """One client's answer.

    Attributes:
        knows: the client has been told, or has said itself, that it is left out.
        consumed: chunks that have gone into the reduction.
    """

    def __init__(self, client_id: str, weight: float, window_bytes: int) -> None:
        self.client_id = client_id
        self.weight = weight
        self.progress = Progress.AWAITED
        self.numbers = Reply()
        self.reason = ""
        self.knows = False
        self.digest: bytes | None = None
        self.consumed = 0
        self._window_bytes = window_bytes
        self._sequence: ChunkSequence | None = None
        self._staged: deque[Tensor] = deque()
        self._staged_bytes = 0
        self._arrival = asyncio.Event()
        self._room = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether its reduction may begin: everything is here, or as much as is allowed."""
        return self.progress is Progress.COMPLETE or self._full

    @property
    def _full(self) -> bool:
        return self.progress is Progress.ARRIVING and self._staged_bytes >= self._window_bytes

    def begin(self, numbers: Reply, header: tensors_pb2.PayloadHeader | None, schema: Schema | None) -> None:
        """Take in an answer's header. Raises SchemaError if it announces anything but `schema`."""
        if header is not None and schema is not None:
            self._sequence = ChunkSequence(header, schema)
            self.digest = header.digest
        self.numbers = numbers
        self.progress = Progress.ARRIVING if self._sequence is not None and not self._sequence.complete else Progress.COMPLETE

    def stage(self, chunk: Chunk) -> None:
        """Check a chunk and keep it until it is reduced.

        Raises:
            ProtocolError: the chunk is damaged, out of order, or holds values that no honest client sends.
        """
        assert self._sequence is not None
        segment = self._sequence.accept(chunk)
        elements = torch.from_numpy(np.frombuffer(chunk.data, dtype=np.uint8).copy()).view(segment.dtype)
        check_values(elements)
        self._staged.append(elements)
        self._staged_bytes += len(chunk.data)
        if self._sequence.complete:
            self.progress = Progress.COMPLETE
        self._arrival.set()

    async def wait_for_room(self) -> None:
        """Return once the window has room for another chunk, or the answer is no longer wanted."""
        while self._full:
            self._room.clear()
            await self._room.wait()

    async def take(self, stall_timeout_s: float) -> Tensor:
        """The next chunk's elements, in order.

        Raises:
            TimeoutError: none came for so many seconds.
            LookupError: the client was lost.
        """
        while not self._staged:
            if self.progress is Progress.LOST:
                raise LookupError(self.client_id)
            self._arrival.clear()
            async with asyncio.timeout(stall_timeout_s):
                await self._arrival.wait()
        elements = self._staged.popleft()
        self._staged_bytes -= elements.numel() * elements.element_size()
        self.consumed += 1
        self._room.set()
        return elements

    def reset(self) -> None:
        """Forget what has arrived; the client is to send it again."""
        self._clear(Progress.AWAITED)
        self.consumed = 0

    def lose(self, reason: str) -> None:
        """Leave the client out."""
        self._clear(Progress.LOST)
        self.reason = reason

    def _clear(self, progress: Progress) -> None:
        self.progress = progress
        self._sequence = None
        self._staged.clear()
        self._staged_bytes = 0
        self._room.set()
        self._arrival.set()
