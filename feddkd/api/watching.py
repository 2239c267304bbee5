"""What watches a run that a Python program started: the record, the status file, progress, and callbacks."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Console

from feddkd.cli.output import WIDTH, SafeConsole, error_console
from feddkd.cli.progress import ConsoleProgress
from feddkd.config import Config
from feddkd.errors import ConfigError
from feddkd.observability.ledger import Ledger
from feddkd.observability.status_file import StatusFile
from feddkd.scheduler.observers import Observers
from feddkd.scheduler.records import Observer, RoundRecord

Callback: TypeAlias = "Observer | Callable[[RoundRecord], Any]"


class EachRound(Observer):
    """Calls a function at the end of each round."""

    def __init__(self, function: Callable[[RoundRecord], Any]) -> None:
        self._function = function

    def round_done(self, record: RoundRecord) -> None:
        self._function(record)


def observers_of(callbacks: Callback | Iterable[Callback]) -> list[Observer]:
    """Make an observer of each callback, or of the only one.

    Raises:
        ConfigError: one is neither an observer nor a function.
    """
    if isinstance(callbacks, Observer) or not isinstance(callbacks, Iterable):
        return [_observer_of(callbacks, "callbacks")]
    return [_observer_of(callback, f"callbacks[{position}]") for position, callback in enumerate(callbacks)]


def _observer_of(callback: Callback, argument: str) -> Observer:
    if isinstance(callback, Observer):
        return callback
    # A class is callable too, and would be called with every round.
    if callable(callback) and not isinstance(callback, type):
        return EachRound(callback)
    what = f"the class {callback.__name__}" if isinstance(callback, type) else f"an object of type {type(callback).__name__}"
    raise ConfigError(f"{argument}: a feddkd.Observer or a function of a round's record is expected, not {what}")


@contextlib.contextmanager
def watched(config: Config, folder: Path, callbacks: Sequence[Observer], progress: bool | None) -> Iterator[Observers]:
    """Keep the record of a run in a folder, show its progress, and call back.

    Args:
        config: resolved.
        progress: None shows it on a terminal and in a notebook.

    Raises:
        StateError: the folder cannot be written, or holds another run's record.
    """
    with contextlib.ExitStack() as stack:
        ledger = Ledger(folder, config)
        stack.callback(ledger.close)
        found: list[Observer] = [ledger]
        if config.scheduler.durability != "none":
            found.append(stack.enter_context(StatusFile(folder)))
        if (console := _console(progress)) is not None:
            found.append(stack.enter_context(ConsoleProgress(config, console)))
        observers = Observers([*found, *callbacks])
        with observers.told_of_failure():
            yield observers


def _console(progress: bool | None) -> Console | None:
    """Choose where progress is shown; None if it is not."""
    if progress is False:
        return None
    console = error_console()
    if console.is_jupyter:
        # As text on standard output: rich would make an output of its own of each line, and needs ipywidgets for a bar.
        return SafeConsole(file=sys.stdout, force_jupyter=False, force_terminal=False, width=WIDTH)
    return console if progress or console.is_terminal else None
