"""Checks the journal of a run and what it names, without a network and without changing anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from feddkd.errors import StateError
from feddkd.files import read_regular
from feddkd.scheduler import checkpoint
from feddkd.scheduler.blobs import Blob, read_blob
from feddkd.scheduler.journal import Entry
from feddkd.scheduler.journal_file import BLOBS
from feddkd.scheduler.journal_lines import JOURNAL, MAX_BYTES, Header, parse_journal
from feddkd.scheduler.recovery import good_entries
from feddkd.scheduler.state import RunState, fold
from feddkd.tensors import Tensors


@dataclass(frozen=True, slots=True)
class Inspection:
    """The result of a check.

    Attributes:
        entries: the events whose lines are whole.
        good: with how many of them the run would go on.
        state: the fold of these.
        model: of the newest round whose model and state can be read; None if there is none.
        blobs_checked: files whose SHA-256 was compared with their names.
        problems: what is damaged or missing, a line each.
        notes: what a crash may leave and costs nothing.
    """

    header: Header
    entries: Sequence[Entry]
    good: int
    state: RunState
    model: Tensors | None
    blobs_checked: int
    problems: list[str]
    notes: list[str]


class _Blobs:
    """The blobs of a run, each read at most once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.problems: dict[str, str] = {}
        self.checked: set[str] = set()

    def load(self, name: str) -> Blob | None:
        """Read a blob; None if it cannot be read."""
        self.checked.add(name)
        try:
            return read_blob(self._folder, name)
        except StateError as error:
            self.problems[name] = str(error)
            return None

    def is_there(self, name: str) -> bool:
        if name not in self.checked:
            self.load(name)
        return name not in self.problems


def inspect(folder: Path, quorum: int) -> Inspection:
    """Fold a journal, and check the checksum of each line and each blob that resuming needs.

    Args:
        quorum: `scheduler.quorum` of the run's configuration.

    Raises:
        StateError: there is no journal, or nothing of it can be read.
    """
    file = folder / JOURNAL
    try:
        content = read_regular(file, MAX_BYTES)
    except OSError as error:
        raise StateError(f"cannot read {file}: {error.strerror}") from error
    header, found = parse_journal(file, content)
    entries = [entry for entry, _ in found]
    end = found[-1][1] if found else content.index(b"\n") + 1
    problems, notes = _rest(file, len(entries), content[end:])
    blobs = _Blobs(folder / BLOBS)
    good = good_entries(entries, blobs.is_there, lacks_lines=bool(problems))
    for name in sorted(filter(None, fold(entries, header.run_id, quorum).blobs)):
        blobs.is_there(name)
    state = fold(entries[:good], header.run_id, quorum)
    try:
        model = _model(state, blobs)
    except StateError as error:
        model = None
        problems.append(str(error))
    problems += [blobs.problems[name] for name in sorted(blobs.problems)]
    notes += [f"{aside} was set aside as damaged before" for aside in sorted((folder / BLOBS).glob("*.corrupt"))]
    return Inspection(header, entries, good, state, model, len(blobs.checked), problems, notes)


def _rest(file: Path, lines: int, rest: bytes) -> tuple[list[str], list[str]]:
    """Say what follows the last line that is whole: problems and notes."""
    if not rest:
        return [], []
    number = lines + 2  # from 1, and the first line is no event
    if b"\n" not in rest:
        return [], [f"{file} ends with {len(rest)} bytes of a line that was not written to its end"]
    more = len(rest.splitlines()) - 1
    after = f", so that the {more} after it cannot be used" if more else ""
    return [f"{file} line {number} is damaged{after}"], []


def _model(state: RunState, blobs: _Blobs) -> Tensors | None:
    """Read what the run would go on from. Raises StateError: it does not hold what it should."""
    if not state.checkpoints:
        return None
    newest = state.checkpoints[-1]
    model, carried = blobs.load(state.final_model), blobs.load(newest.state)
    if model is None or carried is None:
        return None
    checkpoint.decode(carried)
    return checkpoint.decode_model(model)
