"""Names the values of keys in `[data]` that code outside the configuration needs by type."""

from __future__ import annotations

from typing import Literal

Scale = Literal["auto", "uint8", "none"]
"""Which inputs are divided by 255: images of bytes, all bytes, or nothing."""

ToldNames = Literal["clear", "hash", "none"]
"""How a site tells the names of its classes."""
