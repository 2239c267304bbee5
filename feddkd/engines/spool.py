"""Keeps blocks of contributions until their exchange is over: in memory up to a budget, then in a file."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from feddkd.errors import StateError
from feddkd.transport.payload import copied

CODE_MARGIN_BYTES = 64
"""How much longer than its elements the code of a chunk can be: a scale, or a short chunk that is padded."""


class Block(Protocol):
    """A place for some bytes; they are taken and written once, and read as often as needed.

    Attributes:
        in_memory: whether `write` and `read` are quick, or may wait for a disk.
    """

    @property
    def in_memory(self) -> bool: ...

    def take(self, data: memoryview) -> Tensor:
        """Hold `data` until it is written. From the spool's thread only.

        Returns:
            The bytes, uint8, aligned for every dtype; until the next block of the spool takes its own.
        """

    def write(self) -> None:
        """Put what was taken in its place. From any thread; raises StateError if the disk is full."""

    def read(self, memory: Tensor) -> Tensor:
        """Read the bytes, uint8. From any thread.

        Args:
            memory: uint8, at least as long as the block; used where the bytes come from a file.

        Raises:
            StateError: they cannot be read.
        """

    def free(self) -> None:
        """Give the place back; the block is not used any more."""


class Spool:
    """Memory for blocks, up to a budget that all exchanges share, and a temporary file beyond it.

    The file has no name, so nothing of it is left however the process ends. Its slots are used again and
    again: a slot that was written before costs a copy in memory, not a transfer to the disk.
    """

    def __init__(self, budget_bytes: int, slot_bytes: int, folder: Path | None = None) -> None:
        """Take no memory and no file yet.

        Args:
            budget_bytes: most memory for blocks.
            slot_bytes: largest block.
            folder: where the file goes; None for the system's folder for temporary files.
        """
        self._budget_bytes = budget_bytes
        self._slot_bytes = slot_bytes
        self._folder = folder
        self._used_bytes = 0
        self._descriptor: int | None = None
        self._close: Callable[[], object] = lambda: None
        self._num_slots = 0
        self._free_slots: list[int] = []
        self._aligned = torch.empty(0, dtype=torch.uint8)

    def reserve(self, size_bytes: int) -> Block:
        """Find a place for `size_bytes` bytes. From one thread only. Raises StateError if there can be no file."""
        if size_bytes > self._slot_bytes:
            raise ValueError(f"a block of {size_bytes} bytes where slots have {self._slot_bytes}")
        if self._used_bytes + size_bytes <= self._budget_bytes:
            self._used_bytes += size_bytes
            return _MemoryBlock(self, size_bytes)
        if self._descriptor is None:
            self._descriptor = self._open_file()
        if not self._free_slots:
            self._free_slots.append(self._num_slots)
            self._num_slots += 1
        return _FileBlock(self, self._descriptor, self._free_slots.pop(), size_bytes)

    @property
    def where(self) -> Path:
        """The folder of the file."""
        return self._folder or Path(tempfile.gettempdir())

    @property
    def used_bytes(self) -> int:
        """Memory that blocks take now."""
        return self._used_bytes

    @property
    def file_bytes(self) -> int:
        """Size that the file has reached."""
        return self._num_slots * self._slot_bytes

    def close(self) -> None:
        """Remove the file. Blocks must not be used any more."""
        self._close()
        self._descriptor = None

    def _open_file(self) -> int:
        """Open a file that has no name any more."""
        try:
            descriptor, name = tempfile.mkstemp(prefix="feddkd-spool-", dir=self._folder)
            Path(name).unlink()
        except OSError as error:
            raise StateError(f"cannot create a temporary file for contributions in {self.where}: {error.strerror}") from error
        self._close = weakref.finalize(self, os.close, descriptor)
        return descriptor

    def give_back_memory(self, size_bytes: int) -> None:
        self._used_bytes -= size_bytes

    def give_back_slot(self, slot: int) -> None:
        self._free_slots.append(slot)

    def align(self, data: memoryview) -> Tensor:
        """Copy bytes to where they are aligned; the next call overwrites them."""
        if not len(self._aligned):
            self._aligned = torch.empty(self._slot_bytes, dtype=torch.uint8)
        aligned = self._aligned[: len(data)]
        aligned.numpy()[:] = np.frombuffer(data, dtype=np.uint8)
        return aligned

    def offset_of(self, slot: int) -> int:
        return slot * self._slot_bytes


class _MemoryBlock:
    def __init__(self, spool: Spool, size_bytes: int) -> None:
        self._spool = spool
        self._size_bytes = size_bytes
        self._data: Tensor | None = None

    @property
    def in_memory(self) -> bool:
        return True

    def take(self, data: memoryview) -> Tensor:
        self._data = copied(data)
        return self._data

    def write(self) -> None:
        """Do nothing: what was taken is where it stays."""

    def read(self, memory: Tensor) -> Tensor:
        assert self._data is not None
        return self._data

    def free(self) -> None:
        self._data = None
        self._spool.give_back_memory(self._size_bytes)


class _FileBlock:
    def __init__(self, spool: Spool, descriptor: int, slot: int, size_bytes: int) -> None:
        self._spool = spool
        self._descriptor = descriptor
        self._slot = slot
        self._size_bytes = size_bytes
        self._taken = memoryview(b"")

    @property
    def in_memory(self) -> bool:
        return False

    def take(self, data: memoryview) -> Tensor:
        # Not copied to be kept: many clients wait for the disk at a time.
        self._taken = data
        return self._spool.align(data)

    def write(self) -> None:
        rest, offset = self._taken, self._spool.offset_of(self._slot)
        self._taken = memoryview(b"")
        try:
            while rest:
                written = os.pwrite(self._descriptor, rest, offset)
                rest, offset = rest[written:], offset + written
        except OSError as error:
            raise StateError(f"cannot write contributions to a temporary file in {self._spool.where}: {error.strerror}") from error

    def read(self, memory: Tensor) -> Tensor:
        data = memory[: self._size_bytes]
        try:
            count = os.preadv(self._descriptor, [data.numpy().data], self._spool.offset_of(self._slot))
        except OSError as error:
            raise StateError(f"cannot read contributions from a temporary file in {self._spool.where}: {error.strerror}") from error
        if count != self._size_bytes:
            raise StateError(f"the temporary file for contributions in {self._spool.where} is truncated")
        return data

    def free(self) -> None:
        self._spool.give_back_slot(self._slot)
