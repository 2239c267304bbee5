"""Turns what a data set yields into the inputs of a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from feddkd.config.data_keys import Scale
from feddkd.errors import DataError

IMAGE_DIMENSIONS = 2
"""Of one example, at least: bytes of fewer dimensions are taken for tokens, not for an image."""


def network_inputs(inputs: Tensor, scale: Scale) -> Tensor:
    """Convert a batch to what the network receives: float32, or int64 for integers.

    Floating-point inputs become float32 and integers int64; their values stay. Images of bytes are
    divided by 255, as torchvision's ToTensor does. `scale` says what an image of bytes is: "auto" is
    uint8 with two or more dimensions an example, "uint8" is every uint8 input, "none" is nothing.

    Args:
        inputs: floating-point or integer [B, ...].
        scale: `data.scale`.
    """
    if inputs.is_floating_point():
        return inputs.float()
    dimensions = inputs.ndim - 1
    is_image = scale == "uint8" or (scale == "auto" and dimensions >= IMAGE_DIMENSIONS)
    return inputs.float().div_(255) if inputs.dtype == torch.uint8 and is_image else inputs.long()


def as_tensor(values: Any) -> Tensor:
    """Convert a tensor, an array or a list to a tensor.

    Raises:
        DataError: `values` is not numbers in one shape.
    """
    if isinstance(values, Tensor):
        return values.detach().cpu()
    try:
        return torch.from_numpy(np.require(values, requirements=["C", "W"]))
    except (TypeError, ValueError):
        raise DataError(f"numbers of one shape are expected, not {type(values).__name__}") from None


def is_numbers(raw: Any) -> bool:
    """Tell whether a list or a tuple of raw data is one tensor of numbers, and no structure of tensors."""
    return isinstance(raw, list | tuple) and not any(isinstance(part, Tensor | np.ndarray | Mapping) for part in raw)


def check_input_dtype(inputs: Tensor) -> None:
    """Raises DataError for numbers that no network here takes: complex ones and truth values."""
    if inputs.is_complex() or inputs.dtype == torch.bool:
        raise DataError(f"inputs have dtype {inputs.dtype}; use a floating-point or an integer dtype, for instance float32")


def finite(inputs: Tensor) -> Tensor:
    """Find the inputs whose values are all finite: bool [B] for [B, ...]."""
    if not inputs.is_floating_point():
        return torch.ones(len(inputs), dtype=torch.bool)
    return inputs.isfinite().flatten(1).all(1) if inputs.ndim > 1 else inputs.isfinite()
