"""Measures how far contributions are from a result, and from each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from feddkd.aggregator.columns import slices
from feddkd.aggregator.compared import ComparedElements
from feddkd.aggregator.lengths import allowed_ratios
from feddkd.aggregator.rule import Rows
from feddkd.tensors import Segment

_PIECE_ELEMENTS = 1 << 14
"""Differences of so many elements are computed at a time: they stay in the cache."""


class ResultDistances:
    """Adds up the squared distances of contributions from what they are reduced to.

    Args:
        allowed: by what factor each contribution may be further away (`lengths.allowances`).
    """

    def __init__(self, allowed: Sequence[float]) -> None:
        self._allowed = allowed
        self._squares = torch.zeros(len(allowed), dtype=torch.float64)

    def add(self, matrix: Tensor, found: Tensor) -> None:
        """Take in some elements of all contributions [clients, elements], and the result of these."""
        for start in range(0, len(found), _PIECE_ELEMENTS):
            piece = slice(start, start + _PIECE_ELEMENTS)
            self._squares += (matrix[:, piece].to(torch.float64) - found[piece]).square_().sum(1)

    def ratios(self) -> Sequence[float]:
        """Return the distances divided by their median and by what is allowed."""
        return allowed_ratios(self._squares.sqrt().tolist(), self._allowed)


class PairDistances:
    """The squared distances of all pairs of contributions, found block by block.

    Takes clients² / 2 differences for each element; the differences are exact where norms and inner
    products would cancel. A sum over a row is computed in one thread, so its bits do not depend on
    their number.

    Attributes:
        squares: float64 [clients, clients], symmetric.
    """

    def __init__(self, compared: ComparedElements, clients: int) -> None:
        self._compared = compared
        self.squares = torch.zeros(clients, clients, dtype=torch.float64)

    def survey(self, block: Segment, rows: Rows) -> None:
        """Take in one block."""
        for start, stop, counts in self._compared.parts(block):
            if counts:
                for _, _, matrix in slices(rows, start, stop, block.dtype):
                    self._add(matrix)

    def _add(self, matrix: Tensor) -> None:
        for start in range(0, matrix.shape[1], _PIECE_ELEMENTS):
            piece = matrix[:, start : start + _PIECE_ELEMENTS].to(torch.float64)
            for number in range(1, len(piece)):
                sums = (piece[:number] - piece[number]).square_().sum(1)
                self.squares[number, :number] += sums
                self.squares[:number, number] += sums

    def from_mean(self, weights: Tensor) -> Tensor:
        """Return the squared distance of each contribution from a weighted mean of them all.

        With z = sum_k a_k x_k and sum_k a_k = 1: ||x_i - z||² = (D a)_i - a' D a / 2, where D are the squares.

        Args:
            weights: float64 [clients], that add up to 1.
        """
        means = (self.squares * weights).sum(1)
        return (means - (means * weights).sum() / 2).clamp_(min=0)


def roots(squares: Tensor) -> list[float]:
    """Return the square roots of float64 numbers."""
    return [math.sqrt(square) for square in squares.tolist()]
