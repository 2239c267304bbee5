"""Writes sizes, counts and lists of names as people read them."""

from __future__ import annotations

from collections.abc import Sequence

MOST_LISTED = 10
"""Clients that a line names."""


def megabytes(size_bytes: int) -> str:
    """Millions of bytes."""
    return f"{size_bytes / 1e6:.2f} MB"


def short_size(size_bytes: float) -> str:
    """Write a number of bytes in seven characters at most: `1.69 MB`."""
    units = iter(("B", "kB", "MB", "GB"))
    unit = next(units)
    while size_bytes >= 999.5 and (larger := next(units, "")):
        size_bytes, unit = size_bytes / 1000, larger
    digits = 0 if unit == "B" or size_bytes >= 99.95 else 1 if size_bytes >= 9.995 else 2
    return f"{size_bytes:.{digits}f} {unit}"


def size(size_bytes: int) -> str:
    """A number of bytes with the unit that fits it."""
    return f"{size_bytes / 1e3:.2f} kB" if size_bytes < 1e6 else megabytes(size_bytes)


def counted_examples(labelled: int, unlabelled: int) -> str:
    """How many examples have a label, and how many have none."""
    return f"{labelled:,} labelled, {unlabelled:,} unlabelled"


def listed(items: Sequence[str]) -> str:
    """The first items, and how many more there are."""
    shown = ", ".join(items[:MOST_LISTED])
    return shown if len(items) <= MOST_LISTED else f"{shown} and {len(items) - MOST_LISTED} more"
