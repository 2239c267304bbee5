"""Finds targets that become equal, or nearly so, when they are rounded to float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from feddkd.errors import DataError
from feddkd.structures import Structure
from feddkd.tasks.targets import as_numbers

EXACT = frozenset({torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.int8, torch.int16, torch.bool})
"""Dtypes whose values float32 has, all of them."""

WORST_ROUNDING = 0.01
"""Share of the targets' spread by which one may be rounded."""

NOISE = 64 * torch.finfo(torch.float64).eps
"""A spread below this share of the values comes from rounding in float64: the targets are meant to be equal."""

ROWS_STACKED = 1024
NUMBERS_STACKED = 1 << 20
"""Single targets wait until there are so many of them, or so many numbers in them."""


class TargetRounding:
    """Measures how far targets that become float32 are rounded, each of their numbers over all examples.

    Targets that a task makes something else of are left out.
    """

    def __init__(self) -> None:
        self._waiting: list[Tensor] = []
        self._first: Tensor | None = None
        self._lowest = self._highest = self._rounded = self._largest = torch.empty(0, dtype=torch.float64)
        self._is_float = False

    def add(self, raw: Any, target: Structure) -> None:
        """Take in one target as the data have it, and what the task made of it."""
        numbers = _wide(raw, target)
        if numbers is None or (self._first is not None and numbers.shape != self._first.shape):
            return
        if self._first is None:
            self._first = numbers.clone()
        if self._waiting and self._waiting[0].dtype != numbers.dtype:
            self._fold_waiting()
        self._waiting.append(numbers.clone())  # a data set may fill one buffer again and again
        if len(self._waiting) == ROWS_STACKED or len(self._waiting) * numbers.numel() >= NUMBERS_STACKED:
            self._fold_waiting()

    def add_all(self, raw: Any, targets: Structure) -> None:
        """Take in the targets [n, ...] of all examples, as `add` does those of one."""
        numbers = _wide(raw, targets)
        if numbers is not None and numbers.ndim and len(numbers):
            self._first = numbers[0]
            for part in torch.split(numbers, ROWS_STACKED):
                self._fold(part)

    def check(self) -> None:
        """Raises DataError if rounding takes away what tells the targets apart; the message says the way out."""
        self._fold_waiting()
        spread = self._highest - self._lowest
        noise = NOISE * self._largest if self._is_float else 0
        lost = ((self._rounded > WORST_ROUNDING * spread) & (spread > noise)).flatten()
        if lost.any():
            assert self._first is not None
            at = int(lost.nonzero()[0])
            first, low, high = (float(part.flatten()[at]) for part in (self._first, self._lowest, self._highest))
            raise DataError(
                f"targets from {first + low:.16g} to {first + high:.16g} cannot be told apart in float32, which rounds them "
                f"by up to {float(self._rounded.flatten()[at]):g}; subtract their mean, and divide by their standard deviation"
            )

    def _fold_waiting(self) -> None:
        if self._waiting:
            self._fold(torch.stack(self._waiting))
            self._waiting = []

    def _fold(self, numbers: Tensor) -> None:
        """Take in numbers [m, ...], float64 or int64."""
        assert self._first is not None
        offsets = (numbers - self._first).double()  # exact where they are close to each other
        exact = numbers.double()
        found = offsets.amin(0), offsets.amax(0), (numbers.float().double() - exact).abs().amax(0), exact.abs().amax(0)
        if self._lowest.numel():
            lowest, highest, rounded, largest = found
            found = (
                torch.minimum(lowest, self._lowest),
                torch.maximum(highest, self._highest),
                torch.maximum(rounded, self._rounded),
                torch.maximum(largest, self._largest),
            )
        self._lowest, self._highest, self._rounded, self._largest = found
        self._is_float |= numbers.is_floating_point()


def _wide(raw: Any, target: Structure) -> Tensor | None:
    """Return raw targets as float64 or int64; None where float32 has them all, or `target` is not what they are rounded to."""
    if not isinstance(target, Tensor) or target.dtype != torch.float32 or getattr(raw, "dtype", None) in EXACT:
        return None
    try:
        numbers = as_numbers(raw)
    except DataError:
        return None  # the task knows how to read it
    if numbers.dtype in EXACT or numbers.is_complex() or numbers.shape != target.shape:
        return None
    wide = numbers.double() if numbers.is_floating_point() else numbers.long()
    return wide if torch.equal(wide.float(), target.cpu()) else None
