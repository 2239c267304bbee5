"""Compare what torch computes with different numbers of threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

THREADS = (1, 2, 3, 4, 8)

_T = TypeVar("_T")


def with_every_number_of_threads(compute: Callable[[], _T]) -> list[_T]:
    """The results of `compute`, once for each of THREADS."""
    before = torch.get_num_threads()
    try:
        results = []
        for threads in THREADS:
            torch.set_num_threads(threads)
            results.append(compute())
    finally:
        torch.set_num_threads(before)
    return results
