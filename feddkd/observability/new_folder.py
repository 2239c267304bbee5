"""Makes the folder of a new run, which no other run can have, and removes it if the run never starts."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from feddkd.errors import CommandInterruptedError, StateError, StoppedError
from feddkd.imports import GIVEN, MAIN
from feddkd.observability.run_folder import EXCHANGES

RUNS = Path("runs")

LONGEST_NAME = 100
"""Letters of an algorithm's name in that of a folder."""


@contextlib.contextmanager
def new_folder(out: Path | None, algorithm: str) -> Iterator[Path]:
    """Make the folder of a run, and keep it if the run has started when the block is left.

    Args:
        out: where the user wants it; it may be there already, and is left as it is then. None makes
            `runs/ALGORITHM-TIME`, with -2, -3, ... where another run has that name.
        algorithm: the name that the configuration has for it.

    Raises:
        StateError: it cannot be made.
    """
    missing = [parent for parent in (out or RUNS / "new").parents if not parent.exists()]
    try:
        folder, is_new = (_made(RUNS / _name(algorithm)), True) if out is None else (out, _make(out))
    except OSError as error:
        raise StateError(f"cannot write the record of the run to {out or RUNS}: {error.strerror}") from error
    try:
        yield folder
    except BaseException as error:
        goes_on = isinstance(error, StoppedError | CommandInterruptedError) and error.go_on  # its message says how
        if is_new and not goes_on and not _has_started(folder):
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # another run is there by now
                for parent in missing:
                    parent.rmdir()
        raise


def _name(algorithm: str) -> str:
    """The default name of a folder. An import path keeps what tells algorithms apart."""
    name = algorithm
    for module in (MAIN, GIVEN):
        name = name.removeprefix(f"{module}:")
    name = re.sub(r"[^\w.+-]", ".", name)[:LONGEST_NAME].lstrip(".-")
    return f"{name or 'run'}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def _made(folder: Path) -> Path:
    """Make a folder that was not there. Raises OSError."""
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    return next(found for found in itertools.chain([folder], numbered) if _make(found))


def _make(folder: Path) -> bool:
    """Make a folder; returns False where there is something of that name. Raises OSError."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def _has_started(folder: Path) -> bool:
    """Whether a folder holds more of a run than its preparations, or another process is about to write there."""
    if (folder / EXCHANGES).exists():
        return True
    # This imports torch, which takes seconds: a command names its folder before that.
    from feddkd.scheduler.journal_lines import has_journal, read_journal

    try:
        return has_journal(folder) and bool(read_journal(folder)[1])
    except StateError:
        return True
