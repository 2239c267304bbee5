"""Copy many tensors between the CPU and a CUDA device as one block of bytes in pinned memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from feddkd.devices.device import Pairs
from feddkd.devices.runtime import Runtime

MOST_BYTES = 256 << 20
"""Of one block; more tensors take several."""

ALIGNED_BYTES = 8
"""Tensors in a block begin at multiples of the largest item."""


class Staging:
    """Pinned memory that tensors pass through, as large as the largest block so far."""

    def __init__(self, device: torch.device, runtime: Runtime) -> None:
        self._device = device
        self._runtime = runtime
        self._turn = threading.Lock()
        self._pinned = torch.empty(0, dtype=torch.uint8)

    def transfer(self, pairs: Pairs) -> None:
        """Copy each source to its destination; all sources are on one side, the CPU or the device.

        The copies are complete once this returns: the pinned memory is free for the next ones.
        """
        for block in _blocks(pairs):
            with self._turn:
                self._copy(block)

    def _copy(self, pairs: Pairs) -> None:
        size_bytes = sum(_aligned(source.nbytes) for _, source in pairs)
        if len(self._pinned) < size_bytes:
            self._pinned = self._runtime.pinned(size_bytes)
        pinned = self._pinned[:size_bytes]
        there = torch.empty(size_bytes, dtype=torch.uint8, device=self._device)
        sources = [source for _, source in pairs]
        first, second = (there, pinned) if sources[0].is_cuda else (pinned, there)
        for part, source in zip(_parts(first, sources), sources, strict=True):
            part.copy_(source)
        second.copy_(first, non_blocking=True)
        if second is pinned:
            self._wait()
        for part, (destination, _) in zip(_parts(second, sources), pairs, strict=True):
            destination.copy_(part)
        if second is there:
            self._wait()

    def _wait(self) -> None:
        """Wait for the copies: the host is about to read the pinned memory, or to write to it."""
        done = self._runtime.event()
        done.record(self._runtime.current())
        done.synchronize()


def _blocks(pairs: Pairs) -> Iterator[Pairs]:
    """Divide pairs into blocks of at most `MOST_BYTES`, but for a larger tensor alone."""
    block: list[tuple[Tensor, Tensor]] = []
    size_bytes = 0
    for pair in pairs:
        size_bytes += _aligned(pair[1].nbytes)
        if block and size_bytes > MOST_BYTES:
            yield block
            block, size_bytes = [], _aligned(pair[1].nbytes)
        block.append(pair)
    if block:
        yield block


def _parts(block: Tensor, like: list[Tensor]) -> Iterator[Tensor]:
    """View parts of a block, uint8 [n], in order, as tensors of these dtypes and shapes."""
    start = 0
    for tensor in like:
        yield block[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        start += _aligned(tensor.nbytes)


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNED_BYTES) * ALIGNED_BYTES
