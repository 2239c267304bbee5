"""Convert targets as a data set yields them to tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from feddkd.errors import DataError


def as_numbers(raw: Any) -> Tensor:
    """Convert a number, a list, an array, a tensor or a PIL image to a tensor on the CPU. Raises DataError."""
    if isinstance(raw, Tensor):
        return raw.detach().cpu()
    try:
        array = np.asarray(raw)
        if array.dtype.kind in "OUS":
            raise TypeError
        return torch.from_numpy(np.require(array, requirements=["C", "W"]).copy() if array.ndim else array.copy())
    except (TypeError, ValueError):
        raise DataError(f"its target is of type {type(raw).__name__}; numbers are expected") from None


def as_integers(raw: Any, what: str) -> Tensor:
    """Convert a target to int64; `what` says what the integers are. Raises DataError for other numbers."""
    numbers = as_numbers(raw)
    if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
        raise DataError(f"its target has dtype {numbers.dtype}; integers are expected, {what}")
    return numbers.long()


def as_floats(raw: Any) -> Tensor:
    """Convert a target to float32. Raises DataError for what is not finite, no number, or a truth value."""
    numbers = as_numbers(raw)
    if numbers.is_complex() or numbers.dtype == torch.bool:
        raise DataError(f"its target has dtype {numbers.dtype}; real numbers are expected")
    floats = numbers.float()
    if not bool(floats.isfinite().all()):
        raise DataError("its target is not finite; None says that an example has no target")
    return floats
