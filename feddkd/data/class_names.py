"""Finds the names of a data set's classes, and compares those of two sites.

Classes are numbers to a network. Two sites that number the same classes in another order train
each other's labels wrong, and nothing else shows it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import Any

from torch.utils.data import Subset

from feddkd.config.data_keys import ToldNames
from feddkd.text import printable

logger = logging.getLogger(__name__)

HASHED = "sha256:"
"""Begins a name that is told as a hash; 64 hexadecimal digits follow."""

DIGITS_SHOWN = 8
MOST_BYTES = 512 << 10
"""Of all names together: what a Join holds is bounded."""

MOST_SHOWN = 20
SHOWN_LETTERS = 40
MOST_LETTERS = 256
"""Of one name."""


def names_of_dataset(dataset: Any) -> tuple[str, ...]:
    """Return the `.classes` of a data set, as torchvision's have it; empty if there are none.

    Where a `target_transform` numbers the classes in another way they say nothing, so it is empty too.
    """
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    classes = getattr(dataset, "classes", None)
    if getattr(dataset, "target_transform", None) is not None or not isinstance(classes, list | tuple):
        return ()
    return tuple(classes) if all(isinstance(name, str) for name in classes) else ()


def told_names(names: Sequence[str], how: ToldNames) -> tuple[str, ...]:
    """Return what a site tells of its classes' names: in the clear, as SHA-256 each, or nothing."""
    if how == "none":
        return ()
    told = tuple(_hashed(name) if how == "hash" else name for name in names)
    size_bytes = sum(len(name.encode(errors="surrogateescape")) for name in told)
    if size_bytes > MOST_BYTES or any(not name or len(name) > MOST_LETTERS or not name.isprintable() for name in told):
        logger.warning("the names of the %d classes are not told to the server: they are too long or cannot be printed", len(told))
        return ()
    return told


def names_differ(first: Sequence[str], second: Sequence[str]) -> bool:
    """Tell whether two sites number different classes; names in the clear and hashed ones can be compared."""
    if len(first) != len(second):
        return True
    return any(mine != other and _hashed(mine) != _hashed(other) for mine, other in zip(first, second, strict=True))


def shown_names(names: Sequence[str]) -> str:
    """List names for a message, the first of many; of hashed ones, their first digits."""
    short = (name[: len(HASHED) + DIGITS_SHOWN] if name.startswith(HASHED) else name for name in names[:MOST_SHOWN])
    shown = [printable(name, SHOWN_LETTERS) for name in short]
    return f"[{', '.join(shown)}{', ...' if len(names) > MOST_SHOWN else ''}]"


def _hashed(name: str) -> str:
    """Hash a name, unless that has been done."""
    is_hashed = name.startswith(HASHED) and len(name) == len(HASHED) + 64
    return name if is_hashed else f"{HASHED}{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()}"
