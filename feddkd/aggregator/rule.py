"""Defines what a reduction rule is: it reads contributions block by block, always in client order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor

from feddkd.tensors import Segment

Rows = Iterable[tuple[Tensor, float]]
"""One block of every contribution with the client's weight, in client order. Read it once, row by row: a row is fetched
when it is asked for, and may be reused once the next is, so that memory does not grow with the number of clients."""


class Reduction(Protocol):
    """The reduction of the contributions to one exchange."""

    def survey(self, block: Segment, rows: Rows) -> None:
        """Look at one block of every contribution; called for each block, in order, in every pass but the last."""

    def reduce(self, block: Segment, rows: Rows, out: Tensor) -> None:
        """Write the reduction of one block, in the block's dtype, into `out`; called for each block in the last pass."""


class Rule(Protocol):
    """A way to reduce contributions: a value that an `Exchange` holds and compares by.

    Attributes:
        passes: how often the contributions are read. One pass reduces while uploads are under way; further passes
            come before it and read what was kept of them.
    """

    @property
    def passes(self) -> int: ...

    def start(self) -> Reduction:
        """Begin the reduction of one exchange."""
