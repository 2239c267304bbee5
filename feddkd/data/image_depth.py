"""Brings images with more than 8 bits a channel into [0, 1].

Pillow's own conversion to 8 bits cuts values off at 255: nearly all of a 16-bit image would be white.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

SIXTEEN_BITS = 65535.0


def is_deep(image: Any) -> bool:
    """Tell whether a PIL image has more than 8 bits a channel: the modes I;16 and its kin, I and F."""
    mode: str = image.mode
    return mode == "F" or mode.startswith("I")


def unit_pixels(image: Any, white_level: float | None) -> npt.NDArray[np.float32]:
    """Return the pixels of a deep image in [0, 1], [height, width].

    Args:
        image: a PIL image.
        white_level: `data.white_level`, the value of white; by default that of 16 bits, where the file has
            16 bits or is a PNG, which has no more.

    Raises:
        ValueError: the white level is not known, or a value lies outside of [0, white_level].
    """
    white = white_level
    if white is None and (image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")):
        white = SIXTEEN_BITS
    if white is None:
        raise ValueError(f"it has mode {image.mode}, which does not say what white is; set data.white_level")
    pixels = np.asarray(image).astype(np.float64)
    low, high = float(pixels.min()), float(pixels.max())
    if not 0 <= low <= high <= white:  # not a number is not, either
        raise ValueError(f"it has values from {low:g} to {high:g}, outside of [0, {white:g}]; set data.white_level")
    return (pixels / white).astype(np.float32)
