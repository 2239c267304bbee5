"""Finds the journal of a run from what a person names: the run's folder, or a server's state directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from feddkd.errors import StateError

RunFolderOrState = Annotated[
    Path,
    typer.Argument(metavar="DIR", help="A run's folder, or the `--state` of a server.", show_default=False),
]


@dataclass(frozen=True, slots=True)
class RunPlace:
    """Where a run is.

    Attributes:
        folder: of its journal.
        state: the server's state directory, or None for a simulation, or where the server went on to another run.
        status: how the server says that the run stands; empty for a simulation.
    """

    folder: Path
    state: Path | None = None
    status: str = ""

    @classmethod
    def find(cls, folder: Path) -> RunPlace:
        """Look for a journal, changing nothing. Raises StateError."""
        if not folder.is_dir():
            raise StateError(f"{folder} is not a folder")
        # These import torch, which takes seconds: a typing error should not.
        from feddkd.observability.status_file import read_status
        from feddkd.scheduler.journal_lines import JOURNAL, has_journal
        from feddkd.scheduler.server_state import RUN, read_run

        if has_journal(folder):
            return cls._of_journal(folder)
        mark = read_run(folder)
        if mark is None:
            raise StateError(f"{folder} holds no run: neither {JOURNAL} nor {RUN} is there (scheduler.durability = none keeps no journal)")
        if not has_journal(folder / mark.run_id):
            live = read_status(folder / mark.run_id)
            if live is not None and live.ended:
                raise StateError(f"run {mark.run_id} ended before its first round ({live.ended}); to begin again: {live.command}")
            raise StateError(
                f"run {mark.run_id} is {mark.status}, and has no journal in {folder}: it had not begun, or scheduler.durability = none"
            )
        return cls(folder / mark.run_id, folder, mark.status)

    @classmethod
    def _of_journal(cls, folder: Path) -> RunPlace:
        """Look whether the folder above is a server's."""
        from feddkd.scheduler.server_state import read_run

        state = folder.resolve().parent
        try:
            mark = read_run(state)
        except StateError:
            return cls(folder)
        if mark is None:
            return cls(folder)
        is_newest = mark.run_id == folder.resolve().name
        return cls(folder, state if is_newest else None, mark.status if is_newest else f"no longer what {state} serves")


def record_of(folder: Path) -> Path:
    """Return the folder of the newest run where `folder` is a server's state directory; else `folder` itself.

    Raises:
        StateError: the state directory cannot be read, or its run's record is elsewhere.
    """
    from feddkd.observability.run_folder import CONFIG
    from feddkd.scheduler.server_state import read_run

    mark = read_run(folder) if folder.is_dir() else None
    if mark is None:
        return folder
    record = folder / mark.run_id
    if not (record / CONFIG).is_file():
        raise StateError(f"{folder} is a server's state directory without a record: name what --out of run {mark.run_id} named")
    return record
