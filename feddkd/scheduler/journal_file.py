"""Keeps the events of a run in a file, and tensors in a folder beside it.

`append` and `store` are durable when they return. A crash leaves a journal that ends with an event, or
with a piece of one, which is cut off when the journal is opened.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from feddkd.durable import free_bytes, network_file_system, sync_folder, write_durably
from feddkd.errors import StateError
from feddkd.failpoints import failpoint
from feddkd.scheduler.blobs import Blob, BlobStore
from feddkd.scheduler.events import Event, ExchangeDone
from feddkd.scheduler.journal import Durability, Entry, Stopwatch
from feddkd.scheduler.journal_lines import JOURNAL, Header, first_line, line_of, read_journal

logger = logging.getLogger(__name__)

BLOBS = "blobs"

FINISHED = b'"kind":"run_finished"'
"""Stands in the line of a run's last event."""

LOCK_TRIES = 3
LOCK_PAUSE_S = 0.05

MODELS_A_ROUND = 8
"""Models' worth of bytes that a round is taken to write before one was measured: its outcomes, its model, its state."""


class FileJournal:
    """A file of one JSON object a line, and a folder of blobs.

    Each line but the first holds the checksum of its event. The file is locked for as long as this object
    has it open.

    Attributes:
        lacks_lines: whole lines were damaged when it was opened, so events that clients were told of are gone.
    """

    def __init__(self, folder: Path, descriptor: int, header: Header, entries: Sequence[tuple[Entry, int]], durability: Durability) -> None:
        """Go on with a file that is open and locked; see `create` and `open`.

        Args:
            entries: with the byte after each.
        """
        self.folder = folder
        self.header = header
        self.durability = durability
        self.entries = [entry for entry, _ in entries]
        self.blobs = BlobStore(folder / BLOBS)
        self._descriptor = descriptor
        self._ends = [end for _, end in entries]
        self._count = len(entries)
        self._collects = True
        self._size_bytes = os.lseek(descriptor, 0, os.SEEK_END)
        self.lacks_lines = False
        self._broken = False
        self._is_new = False
        self._stored_bytes = self._most_stored_bytes = 0
        self._stopwatch = Stopwatch(self.entries[-1].at_s if self.entries else 0.0)
        if (kind := network_file_system(folder)) is not None:
            logger.warning("%s is on a network file system (%s): locks and fsync may not be reliable there", folder, kind)

    @classmethod
    def create(cls, folder: Path, header: Header, durability: Durability) -> FileJournal:
        """Begin the journal of a run.

        Raises:
            StateError: there is one, or it cannot be written.
        """
        file = folder / JOURNAL
        line = first_line(header)
        if file.exists():
            raise StateError(f"{folder} already holds the journal of a run")
        partial = folder / f"{JOURNAL}.partial"  # a journal without its first line is none
        try:
            folder.mkdir(parents=True, exist_ok=True)
            partial.unlink(missing_ok=True)
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StateError(f"cannot write {file}: {error.strerror}") from error
        with _closed_if_raised(descriptor):
            _lock(descriptor, file)
            try:
                _write_all(descriptor, line)
                os.fsync(descriptor)
                partial.rename(file)
                sync_folder(folder)
            except OSError as error:
                raise StateError(f"cannot write {file}: {error.strerror}") from error
            journal = cls(folder, descriptor, header, [], durability)
            journal._is_new = True
            return journal

    @classmethod
    def open(cls, folder: Path, durability: Durability = "exchange") -> FileJournal:
        """Open the journal of a run to go on with it; what cannot be read at its end is cut off.

        Raises:
            StateError: there is none, another process has it open, or it is of another version.
        """
        file = folder / JOURNAL
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except OSError as error:
            raise StateError(f"cannot open {file}: {error.strerror}") from error
        with _closed_if_raised(descriptor):
            _lock(descriptor, file)
            header, entries = read_journal(folder)
            journal = cls(folder, descriptor, header, entries, durability)
            journal.look_at_rest()
            journal.cut(len(journal.entries))
            return journal

    def look_at_rest(self) -> None:
        """Say what follows the last line that is whole, before it is cut off.

        Raises:
            StateError: the run was finished by then: its model must not be thrown away for a line.
        """
        file, end = self.folder / JOURNAL, self._ends[-1] if self._ends else self._first_end
        rest = os.pread(self._descriptor, self._size_bytes - end, end)
        number, lines = len(self._ends) + 2, rest.count(b"\n")
        self.lacks_lines = lines > 0 and (b'"event"' in rest or b'"kind"' in rest)  # else nothing of ours was there
        if FINISHED in rest:
            raise StateError(
                f"{file} line {number} is damaged, but its run is finished. Nothing was changed: the model and the record "
                "are beside the journal, and `feddkd replay` checks them"
            )
        if lines:
            logger.warning("%s line %d is damaged: it and the %d lines after it are set aside", file, number, lines - 1)

    @property
    def run_id(self) -> str:
        return self.header.run_id

    def append(self, event: Event) -> Entry:
        """Keep an event; it survives a crash once this returns.

        With durability "round", the end of an exchange is on the disk with the next event that is not one.

        Raises:
            StateError: it cannot be written. Nothing of it stays, and no other event can follow.
        """
        if self._broken:
            raise StateError(f"{self.folder / JOURNAL} failed to be written before")
        # As the line has them: what is folded now is what is folded from the file.
        entry = Entry(event, round(self._stopwatch.now_s, 6), round(time.time(), 3))
        line = line_of(self._count, entry)
        try:
            failpoint("journal.append.before_write")
            _write_all(self._descriptor, line)
            failpoint("journal.append.before_fsync")
            if self._is_durable(event):
                os.fsync(self._descriptor)
        except OSError as error:
            # What is on the disk after a failed write or fsync is not known: only opening it again tells.
            self._broken = True
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size_bytes)
            raise StateError(f"cannot write {self.folder / JOURNAL}: {error.strerror}") from error
        self._size_bytes += len(line)
        self._count += 1
        if self._collects:
            self.entries.append(entry)
            self._ends.append(self._size_bytes)
        failpoint("journal.append.after_fsync")
        return entry

    def release(self) -> None:
        """Forget the events: memory must not grow with the length of a run."""
        self._collects = False
        self.entries.clear()
        self._ends.clear()

    def _is_durable(self, event: Event) -> bool:
        return self.durability == "exchange" or not isinstance(event, ExchangeDone)

    def store(self, tensors: Mapping[str, Tensor], text: str = "", *, checkpoint: bool = False) -> str:
        if self.durability == "round" and not checkpoint:
            return ""
        self._stored_bytes += len(text) + sum(value.numel() * value.element_size() for value in tensors.values())
        return self.blobs.write(tensors, text)

    def load(self, name: str) -> Blob:
        return self.blobs.read(name)

    def prune(self, names: Collection[str]) -> None:
        self.blobs.keep_only(names)
        self._most_stored_bytes = max(self._most_stored_bytes, self._stored_bytes)
        self._stored_bytes = 0

    def check_space(self, model_bytes: int) -> None:
        needed = max(self._most_stored_bytes, MODELS_A_ROUND * model_bytes)
        try:
            free = free_bytes(self.folder)
        except OSError as error:
            raise StateError(f"cannot look at {self.folder}: {error.strerror}") from error
        if free < needed:
            raise StateError(f"{self.folder}: a round writes up to {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free")

    def cut(self, count: int) -> list[Event]:
        """Keep the first `count` events; what follows is moved to a file beside the journal.

        Returns the events that were cut off. Raises StateError.
        """
        end = self._ends[count - 1] if count else self._first_end
        cut = [entry.event for entry in self.entries[count:]]
        if end < self._size_bytes:
            try:
                write_durably(_aside(self.folder / JOURNAL), os.pread(self._descriptor, self._size_bytes - end, end))
                os.ftruncate(self._descriptor, end)
                os.fsync(self._descriptor)
            except OSError as error:
                raise StateError(f"cannot write {self.folder / JOURNAL}: {error.strerror}") from error
        del self.entries[count:], self._ends[count:]
        self._count = count
        self._size_bytes = end
        return cut

    @property
    def _first_end(self) -> int:
        return os.pread(self._descriptor, 1 << 24, 0).index(b"\n") + 1

    def close(self) -> None:
        """Let another process have it. One that was begun here without an event is deleted: its folder is free for another run."""
        if self._descriptor < 0:
            return
        if self._is_new and not self._count:
            with contextlib.suppress(OSError):
                (self.folder / JOURNAL).unlink()
                self.blobs.folder.rmdir()
        os.close(self._descriptor)
        self._descriptor = -1


def is_open(folder: Path) -> bool:
    """Return whether a process has the journal in a folder open. Raises StateError."""
    try:
        descriptor = os.open(folder / JOURNAL, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # also where it is a pipe
    except OSError as error:
        raise StateError(f"cannot open {folder / JOURNAL}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextlib.contextmanager
def _closed_if_raised(descriptor: int) -> Iterator[None]:
    """Let another process have a file that cannot be gone on with."""
    try:
        yield
    except BaseException:
        os.close(descriptor)
        raise


def _lock(descriptor: int, file: Path) -> None:
    """Lock a journal for this process; `is_open` of another one may hold it for an instant."""
    for tries_left in reversed(range(LOCK_TRIES)):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if tries_left:
                time.sleep(LOCK_PAUSE_S)
        except OSError as error:
            raise StateError(f"cannot lock {file}: {error.strerror}") from error
    raise StateError(f"another process has {file} open and is running this run")


def _aside(file: Path) -> Path:
    """A name for what is cut off a file: the first that is free."""
    number = 1
    while (aside := file.with_name(f"{file.stem}.cut-{number}{file.suffix}")).exists():
        number += 1
    return aside


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
