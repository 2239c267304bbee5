"""The weighted mean, computed in client order so that its bits never depend on who answered first.

A rule reduces one run of elements: `add` once for each client, in the order of their ids, then
`result`. A federation calls it chunk by chunk, so nobody ever holds all clients' models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class Reduction(Protocol):
    """The reduction of one run of elements over all clients."""

    def add(self, elements: Tensor, weight: float) -> None:
        """Take in one client's elements; `elements` may be reused by the caller afterwards."""

    def result(self, out: Tensor) -> None:
        """Write the reduced elements, in their own dtype, into `out`."""


Rule = Callable[[torch.dtype, int], Reduction]
"""Starts the reduction of a run of so many elements of one dtype."""


class WeightedMean:
    """sum_k n_k x_k / sum_k n_k over the clients that answered.

    Accumulates in float64, so that rounding does not grow with the number of clients. Integers are
    rounded half to even and stay integers; a bool is true where clients of half the weight say so.
    """

    def __init__(self, dtype: torch.dtype, numel: int) -> None:
        self._dtype = dtype
        self._sum = torch.zeros(numel, dtype=torch.float64)
        self._weight = 0.0

    def add(self, elements: Tensor, weight: float) -> None:
        # Two operations, not add_(alpha=...): a fused multiply-add in the vectorised part of a loop and none in
        # its tail would make the bits depend on where chunks begin.
        self._sum.add_(elements.to(torch.float64, copy=True).mul_(weight))
        self._weight += weight

    def result(self, out: Tensor) -> None:
        mean = self._sum.div_(self._weight)
        if self._dtype == torch.bool:
            torch.ge(mean, 0.5, out=out)
        elif self._dtype.is_floating_point:
            out.copy_(mean)
        else:
            out.copy_(mean.round_())
