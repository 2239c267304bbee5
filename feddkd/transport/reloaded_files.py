"""Keeps what was read from files current while the process runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from feddkd.errors import ConfigError

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
Stamp = tuple[int, int, int] | None


class ReloadedFiles(Generic[_T]):
    """A value made from files, and made again when they change. While they are broken, the last good one stays.

    Attributes:
        value: what was made last.
    """

    def __init__(self, files: Sequence[Path], make: Callable[[], _T]) -> None:
        """Read for the first time.

        Args:
            make: reads the files; called again, from any thread, when one has changed.

        Raises:
            ConfigError: what `make` raises.
        """
        self._files = files
        self._make = make
        self._lock = threading.Lock()
        self._stamps = self._look()
        self._warned = ""
        self.value = make()

    def refresh(self) -> bool:
        """Look at the files; return whether there is another value now. From any thread."""
        with self._lock:
            stamps = self._look()  # before they are read: what changes meanwhile is read the next time
            if stamps == self._stamps:
                return False
            self._stamps = stamps
            try:
                self.value = self._make()
            except ConfigError as error:
                self._warn(str(error))
                return False
            except Exception as error:  # noqa: BLE001  # whatever a library raises for a broken file, this goes on
                self._warn(f"cannot read {', '.join(map(str, self._files))}: {type(error).__name__}: {error}")
                return False
            self._warned = ""
        logger.info("read again: %s", ", ".join(map(str, self._files)))
        return True

    def _warn(self, problem: str) -> None:
        if problem != self._warned:
            self._warned = problem
            logger.warning("%s; what was read before stays in use", problem)

    def _look(self) -> list[Stamp]:
        return [stamp_of(file) for file in self._files]


def stamp_of(file: Path) -> Stamp:
    """What changes with a file's content: its time, its size, and which file it is."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
