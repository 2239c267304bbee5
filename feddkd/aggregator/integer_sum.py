"""Adds up weighted integers exactly, where float64 would round them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

EXACT_SUMS = 2**52
"""Sums of integers below this are exact in float64, and a quotient of such a sum is rounded to a
half only where it is one: the distance from a half, at least 1 / (2 n) for a divisor n, is larger
than the rounding error."""


def _largest_element(dtype: torch.dtype) -> int:
    if dtype == torch.bool:
        return 1
    info = torch.iinfo(dtype)
    return max(-info.min, info.max)


class IntegerSum:
    """The exact sums sum_k n_k x_k of one block: in float64 where it is exact, else in integers.

    Weights that are no integers are multiples of a power of two: then all sums are compared in this unit.
    """

    def __init__(self, dtype: torch.dtype, length: int) -> None:
        self._largest_element = _largest_element(dtype)
        self._largest_sum = 0.0  # that the weights so far allow
        self._sums = torch.zeros(length, dtype=torch.float64)
        self._is_large = torch.zeros(length, dtype=torch.bool)  # which are in `_large_sums` instead
        self._large_sums: npt.NDArray[np.object_] = np.zeros(0, dtype=object)
        self._weights = 0
        self._units_in_one = 1

    def add(self, elements: Tensor, weight: float) -> None:
        """Add one client's elements, which are left alone."""
        numerator, denominator = weight.as_integer_ratio()
        if denominator > self._units_in_one:
            self._refine_unit(denominator)
        units = numerator * (self._units_in_one // denominator)
        weighted = elements.to(torch.float64, copy=True).mul_(weight)
        self._largest_sum += weight * self._largest_element
        if self._largest_sum >= EXACT_SUMS:
            sums = self._sums + weighted
            self._move(torch.maximum(weighted.abs_(), sums.abs()) >= EXACT_SUMS)
            self._sums = sums
        else:
            self._sums.add_(weighted)
        if len(self._large_sums):
            large = elements[self._is_large].numpy().astype(object)
            self._large_sums += large * units
        self._weights += units

    def write_mean(self, out: Tensor) -> None:
        """Write the means, rounded half to even."""
        out.copy_((self._sums / self._divisor).round_())
        if len(self._large_sums):
            floor, rest = self._large_sums // self._weights, self._large_sums % self._weights
            round_up = (2 * rest > self._weights) | ((2 * rest == self._weights) & (floor % 2 == 1))
            mean = torch.from_numpy((floor + round_up).astype(np.int64))
            out[self._is_large] = mean.to(out.dtype)

    def write_majority(self, out: Tensor) -> None:
        """Write where the sum is at least half of the weight."""
        torch.ge(self._sums / self._divisor, 0.5, out=out)
        if len(self._large_sums):
            majority = 2 * self._large_sums >= self._weights
            out[self._is_large] = torch.from_numpy(majority.astype(np.bool_))

    @property
    def _divisor(self) -> float:
        """The sum of the weights, for the sums that are exact in float64."""
        return self._weights / self._units_in_one

    def _move(self, large: Tensor) -> None:
        """Count these sums, as they are before the next row, in Python's integers from now on."""
        moved = large & ~self._is_large
        if not moved.any():
            return
        sums = np.zeros(len(moved), dtype=object)
        sums[self._is_large.numpy()] = self._large_sums
        exact = self._sums[moved].to(torch.int64).numpy().astype(object)
        sums[moved.numpy()] = exact * self._units_in_one
        self._is_large |= moved
        self._large_sums = sums[self._is_large.numpy()]

    def _refine_unit(self, denominator: int) -> None:
        """Count in smaller units, and everything in Python's integers."""
        self._move(torch.ones_like(self._is_large))
        factor = denominator // self._units_in_one
        self._large_sums = self._large_sums * factor
        self._weights *= factor
        self._units_in_one = denominator
