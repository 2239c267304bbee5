"""Locks a directory for one process.

The package filelock does not serve here: where a file system has no locks, it changes over to a
file that outlives a crash, and it tells locks apart by path, not by the directory that is there.
"""

from __future__ import annotations

import fcntl
import os
import threading
import weakref
from collections.abc import MutableMapping
from pathlib import Path
from typing import ClassVar

from feddkd.errors import StateError

LOCK = "lock"


class DirectoryLock:
    """Holds a directory as long as this object lives, at most until the process ends.

    The kernel releases the lock with its process, however that ends: a crash leaves nothing to clean
    up. The file `lock` stays, and means nothing by itself. A child made by fork shares the lock.

    On a network file system the lock holds between machines only where that provides it. Linux
    passes it on to an NFS server unless the mount has `nolock` or `local_lock`; with those, two
    machines can use one directory, and neither is told.
    """

    _held: ClassVar[MutableMapping[tuple[int, int], DirectoryLock]] = weakref.WeakValueDictionary()
    _guard: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, directory: Path) -> None:
        """Lock `directory`, which must exist.

        Raises:
            BlockingIOError: it is locked already.
            StateError: the lock file cannot be opened, or the file system has no locks.
        """
        file = directory / LOCK
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StateError(f"cannot open {file}: {error.strerror}") from error
        self.release = weakref.finalize(self, os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.release()
            if isinstance(error, BlockingIOError):
                raise
            raise StateError(f"cannot lock {file}: {error.strerror}") from error
        self._held[_identity(os.fstat(descriptor))] = self

    @classmethod
    def of_this_process(cls, directory: Path) -> DirectoryLock:
        """Return this process's lock on `directory`, a new one if need be. Raises as the constructor."""
        with cls._guard:
            held = cls._held_on(directory)
            return held if held is not None and held.release.alive else cls(directory)

    @classmethod
    def release_of_this_process(cls, directory: Path) -> None:
        """Release this process's lock on `directory`, if it has one, also where something still refers to it."""
        with cls._guard:
            held = cls._held_on(directory)
            if held is not None:
                held.release()

    @classmethod
    def _held_on(cls, directory: Path) -> DirectoryLock | None:
        try:
            return cls._held.get(_identity((directory / LOCK).stat()))
        except OSError:
            return None


def _identity(file: os.stat_result) -> tuple[int, int]:
    """Which file it is: unlike its path, the same as long as somebody has it open."""
    return file.st_dev, file.st_ino
