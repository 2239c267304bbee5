"""Puts the same elements of all contributions side by side, a slice of columns at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from feddkd.aggregator.rule import Rows

SLICE_BYTES = 32 << 20
"""Most memory of one slice."""


class Columns(NamedTuple):
    """The elements [start, stop) of a block: `matrix` [clients, stop - start] in the block's dtype."""

    start: int
    stop: int
    matrix: Tensor


def slices(rows: Rows, start: int, stop: int, dtype: torch.dtype, most_bytes: int = SLICE_BYTES) -> Iterator[Columns]:
    """Read the elements [start, stop) of all rows in slices of at most `most_bytes`, one column at least.

    The rows are fetched once for every slice. A matrix is used again for the next slice.
    """
    width = max(1, most_bytes // (dtype.itemsize * max(1, len(rows))))
    memory = torch.empty(0, dtype=dtype)
    for first in range(start, stop, width):
        last = min(first + width, stop)
        if memory.numel() != len(rows) * (last - first):
            memory = torch.empty(len(rows), last - first, dtype=dtype)
        for number, (elements, _) in enumerate(rows):
            memory[number].copy_(elements[first:last])
        yield Columns(first, last, memory)
