"""Seeds the reads of examples that are augmented at random.

A data set may draw from torch's, NumPy's and Python's global generators whenever an example is read.
Each read gets a seed of its own, so that a run can be repeated whatever else draws, in whatever
process, and the generators are as before afterwards.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass
class _Reads:
    """What is being read for.

    Attributes:
        key: names it.
        passes: that have begun.
    """

    key: str
    passes: int = 0


_reads: ContextVar[_Reads | None] = ContextVar("reads", default=None)


@contextlib.contextmanager
def reads_for(key: str) -> Iterator[None]:
    """Seed all reads in this thread by `key`, until the context ends; equal keys give equal reads."""
    token = _reads.set(_Reads(key))
    try:
        yield
    finally:
        _reads.reset(token)


def seed_of_pass() -> int:
    """Return the seed of the next pass over examples: another one for each pass, so that epochs see other views."""
    reads = _reads.get()
    if reads is None:
        return _hashed("outside of a task")
    reads.passes += 1
    return _hashed(f"{reads.key}/{reads.passes}")


def seed_of_read(seed_of_its_pass: int, position: int) -> int:
    """Return the seed of one example's read, in [0, 2^63)."""
    return _hashed(f"{seed_of_its_pass}/{position}")


def seed_generators(seed: int) -> None:
    """Seed the global generators of torch (on the CPU), NumPy and Python."""
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)  # a user's transform draws from it
    random.seed(seed)


def generator_states() -> tuple[Any, ...]:
    """Return the states of these generators, which can be compared."""
    return torch.get_rng_state().numpy().tobytes(), _numpy_state(), random.getstate()


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """Restore the states of these generators when the context ends."""
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def _hashed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def _numpy_state() -> tuple[Any, ...]:
    state: Any = np.random.get_state(legacy=True)
    name, keys, *rest = state
    return (name, keys.tobytes(), *rest)
