"""Expands `~` in paths that no shell has expanded."""

from __future__ import annotations

from pathlib import Path


def expanded(path: Path) -> Path:
    """Replace a leading `~` or `~user` by that home directory.

    Raises:
        ValueError: there is no such home directory.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"{path}: its home directory is not known") from None
