"""Lets memory of large tensors go back to the system as soon as it is free, and that of a process at its end."""

from __future__ import annotations

import atexit
import ctypes
import gc
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""From glibc's malloc.h."""

LARGE_BYTES = 4 << 20
"""Above the size of a chunk: chunks come and go too often to be worth a system call each."""

FREE_BYTES = 32 << 20
"""Free memory that the heap may keep: room for the chunks that are under way."""


def return_large_blocks() -> None:
    """Let malloc map blocks of 4 MiB and more one by one, and unmap them when they are freed.

    glibc raises this limit by itself with the first large block that is freed. Models then share the heap with
    small blocks that live longer, and a server grows by a model with each exchange. Smaller blocks stay in the
    heap: glibc's own limits would return most chunks to the system, which takes longer to provide them again
    than to fill them. Does nothing where malloc has no such setting, or where the environment sets it already.
    """
    if "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
        mallopt(M_TRIM_THRESHOLD, FREE_BYTES)


def end_without_search() -> None:
    """Let Python end without a search for cycles in what is in memory: with torch that takes half a second."""
    atexit.register(gc.freeze)
