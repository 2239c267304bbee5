"""Defines the journal: it keeps the events of a run, so that another process can resume it."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from feddkd.errors import StateError
from feddkd.scheduler.blobs import Blob
from feddkd.scheduler.events import Event

Durability = Literal["exchange", "round", "none"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One event of a journal.

    Attributes:
        at_s: seconds that processes had worked on the run by then.
        time: seconds since 1970, by the clock on the wall.
    """

    event: Event
    at_s: float
    time: float


class Journal(Protocol):
    """Where a run's events go."""

    @property
    def run_id(self) -> str:
        """Names the run."""

    @property
    def entries(self) -> Sequence[Entry]:
        """The events so far; those of earlier processes first."""

    def release(self) -> None:
        """Forget the events that were read: they have been taken in."""

    def append(self, event: Event) -> Entry:
        """Keep an event. Raises StateError."""

    def store(self, tensors: Mapping[str, Tensor], text: str = "", *, checkpoint: bool = False) -> str:
        """Keep tensors; returns the name to load them by, empty if they are not kept. Raises StateError.

        Args:
            checkpoint: a round ends with them.
        """

    def load(self, name: str) -> Blob:
        """Return what was stored. Raises DamagedError."""

    def prune(self, names: Collection[str]) -> None:
        """Delete all that was stored but these."""

    def check_space(self, model_bytes: int) -> None:
        """Check that a round fits on the disk.

        Args:
            model_bytes: size of the model.

        Raises:
            StateError: it probably does not.
        """

    def close(self) -> None:
        """Let another process have it."""


class Stopwatch:
    """Counts the seconds that processes have worked on a run."""

    def __init__(self, before_s: float = 0.0) -> None:
        self._since = time.monotonic() - before_s

    @property
    def now_s(self) -> float:
        return time.monotonic() - self._since


class NoJournal:
    """Keeps nothing: a crash of the server ends the run."""

    def __init__(self, run_id: str = "") -> None:
        self.run_id = run_id
        self._stopwatch = Stopwatch()

    @property
    def entries(self) -> Sequence[Entry]:
        return ()

    def release(self) -> None:
        """Do nothing: nothing was read."""

    def append(self, event: Event) -> Entry:
        return Entry(event, self._stopwatch.now_s, time.time())

    def store(self, tensors: Mapping[str, Tensor], text: str = "", *, checkpoint: bool = False) -> str:
        return ""

    def load(self, name: str) -> Blob:
        raise StateError("this run has no journal")

    def prune(self, names: Collection[str]) -> None:
        """Do nothing: nothing is stored."""

    def check_space(self, model_bytes: int) -> None:
        """Do nothing: nothing is written."""

    def close(self) -> None:
        """Do nothing: nothing is open."""
