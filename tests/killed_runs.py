"""Folders of runs that ended, and what a crash would have left of them; for tests that read journals."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from feddkd.config import Config
from feddkd.engines.resolve import resolve
from feddkd.engines.simulation import run_federation
from feddkd.observability.ledger import Ledger
from feddkd.scheduler.events import Event, ExchangeDone, RoundFinished, RoundStarted
from feddkd.scheduler.journal_lines import JOURNAL, read_journal

OVERRIDES = ("rounds=2", "partition.clients=3", "partition.labels=4", "training.epochs=1", "dkd.steps=2")


class KeepsBlobs(Ledger):
    """A ledger that copies all blobs aside after each event, for those that later events make superfluous."""

    def __init__(self, out: Path, config: Config, kept: Path) -> None:
        super().__init__(out, config)
        self._kept = kept

    def copy(self) -> None:
        shutil.copytree(self._out / "blobs", self._kept, dirs_exist_ok=True)

    def exchange_done(self, record) -> None:  # type: ignore[no-untyped-def]
        super().exchange_done(record)
        self.copy()

    def round_finished(self, round_number, model) -> None:  # type: ignore[no-untyped-def]
        super().round_finished(round_number, model)
        self.copy()


def finished_run(folder: Path, all_blobs: Path) -> Path:
    """Carry out a small run; `all_blobs` gets every blob that ever was in the folder."""
    config = resolve(Config.load(None, list(OVERRIDES)))
    ledger = KeepsBlobs(folder, config, all_blobs)
    run_federation(config, "in-process", folder, [ledger])
    ledger.close()
    return folder


def cut_after(folder: Path, is_last: Callable[[Event], bool], all_blobs: Path | None = None) -> None:
    """Leave the journal that a crash would have left right after the first event for which `is_last` holds."""
    _, entries = read_journal(folder)
    end = next(end for entry, end in entries if is_last(entry.event))
    content = (folder / JOURNAL).read_bytes()
    (folder / JOURNAL).write_bytes(content[:end])
    if all_blobs is not None:
        shutil.copytree(all_blobs, folder / "blobs", dirs_exist_ok=True)


def round_2_began(event: Event) -> bool:
    return isinstance(event, RoundStarted) and event.round == 2


def round_2_averaged(event: Event) -> bool:
    """The first of the three exchanges of round 2 is done."""
    return isinstance(event, ExchangeDone) and event.record.id.round == 2


def last_round_ended(event: Event) -> bool:
    return isinstance(event, RoundFinished) and event.round == 2


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of everything in a folder."""
    return {str(file): (file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(folder.rglob("*"))}
