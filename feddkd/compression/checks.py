"""Refuse vectors that cannot be encoded, and codes that no encoder makes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from feddkd.errors import SchemaError

LARGEST_NORM = 1e18
SMALLEST_NORMAL = 2.0**-126


def check_size(code: Tensor, size_bytes: int) -> None:
    """Refuse a code of another size. Raises SchemaError."""
    if code.dtype != torch.uint8 or code.shape != (size_bytes,):
        raise SchemaError(f"a code of {code.numel()} bytes of {code.dtype}, not of {size_bytes} bytes")


def check_code_norm(norm: float) -> None:
    """Refuse a code by the largest norm that it can decode to. Raises SchemaError."""
    if not math.isfinite(norm):
        raise SchemaError("a code holds a number that is NaN or infinite")
    if norm > LARGEST_NORM:
        raise SchemaError(f"a code is too large: its norm is above {LARGEST_NORM:g}")


def check_own_norm(norm: float) -> None:
    """Refuse to encode by the largest norm that the code can decode to. Raises ValueError."""
    if not math.isfinite(norm):
        raise ValueError("cannot encode a vector with an element that is NaN or infinite")
    if norm > LARGEST_NORM:
        raise ValueError(f"cannot encode a vector whose norm can decode to more than {LARGEST_NORM:g}")


def check_scales(scales: Tensor, smallest: float) -> None:
    """Refuse scales that are not zero but below `smallest`; passes NaN. Raises SchemaError."""
    if ((scales < smallest) & (scales != 0)).any():
        raise SchemaError(f"a code has a scale that is negative or below {smallest:g}")


def wide_norm(numbers: Tensor, factor: float = 1.0) -> float:
    """Compute factor x norm in float64: NaN or infinite if one of the numbers is."""
    return factor * float(torch.linalg.vector_norm(numbers, dtype=torch.float64))
