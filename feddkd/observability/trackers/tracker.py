"""What a tracker of experiments is asked to do, and which one a name stands for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from feddkd.errors import ConfigError
from feddkd.extras import install_command
from feddkd.imports import load_object
from feddkd.registry import TRACKERS

OPTION = "--track"


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """What a tracker is told before the first round.

    Attributes:
        folder: of the run's record.
        parameters: the configuration, by dotted key.
        tags: names of the algorithm, the model and the data, the run id, the version of feddkd.
        known_as: what `Tracker.begin` returned in an earlier process of the run; empty if there was none.
    """

    run_id: str
    folder: Path
    parameters: Mapping[str, str]
    tags: Mapping[str, str]
    known_as: str = ""


class Tracker(ABC):
    """Writes to a tracker of experiments.

    Its methods are called on a thread of their own, in order. What one raises is logged, and the tracker is not called
    any more.

    Attributes:
        extra: of feddkd that installs what it needs; empty for none.
        modules: that it imports.
    """

    extra: ClassVar[str] = ""
    modules: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def begin(self, run: TrackedRun) -> str:
        """Begin a run, or go on with it; returns the tracker's own name of it."""

    @abstractmethod
    def log(self, round_number: int, wire_bytes: int, values: Mapping[str, float], by_bytes: Mapping[str, float]) -> None:
        """Write the numbers of a round.

        Args:
            round_number: from 1, growing.
            wire_bytes: sent so far, both directions.
            values: by name, with groups before a slash; may be NaN or infinite.
            by_bytes: metric and loss, to be shown over `wire_bytes`.
        """

    @abstractmethod
    def end(self, *, completed: bool, model: Path | None) -> None:
        """End the run.

        Args:
            completed: whether all rounds are done; a run that failed or was stopped may go on later.
            model: file of the final model; None if there is none.
        """


def tracker_of(name: str) -> Tracker:
    """Make the tracker that a name of `feddkd.observability.trackers`, or an import path, stands for.

    Raises:
        ConfigError: there is no such tracker, or what it needs is not installed.
    """
    if ":" in name:
        found = load_object(name, OPTION)
        if not (isinstance(found, type) and issubclass(found, Tracker)):
            raise ConfigError(f"{OPTION} {name}: a subclass of feddkd.Tracker is expected")
    elif name in TRACKERS:
        found = TRACKERS[name]
    else:
        raise ConfigError(f"{OPTION} {name!r}: {', '.join(TRACKERS)} or package.module:Class is expected")
    missing = [module for module in found.modules if find_spec(module) is None]
    if missing:
        how = f"; install what is missing with\n  {install_command(found.extra)}" if found.extra else ""
        raise ConfigError(f"{OPTION} {name}: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed{how}")
    made: Tracker = found()
    return made


def check_trackers(names: Iterable[str]) -> None:
    """Check that trackers can be used. Raises ConfigError."""
    for name in names:
        tracker_of(name)
