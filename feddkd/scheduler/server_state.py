"""The server's state directory: one server at a time, and which run it last held."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, Self

from feddkd.errors import StateError
from feddkd.locking import DirectoryLock

RUN = "run.json"


class ServerState:
    """Holds a directory for one server process.

    A second server on the same directory would carry out the same run twice, so the directory is locked;
    the lock goes with the process, however it ends.
    """

    def __init__(self, path: Path) -> None:
        """Lock `path`, making it if it is not there.

        Raises:
            StateError: another server holds it, or it cannot be written.
        """
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = DirectoryLock(path)
        except BlockingIOError:
            raise StateError(f"another server holds the state directory {path}") from None
        except OSError as error:
            raise StateError(f"cannot use state directory {path}: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    @property
    def unfinished_run(self) -> str | None:
        """The run that was going on when the last server on this directory ended, if it did not finish."""
        try:
            last = json.loads((self.path / RUN).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StateError(f"{self.path / RUN} is unreadable: {error}") from error
        return str(last["run_id"]) if last["status"] == "running" else None

    def mark(self, run_id: str, status: Literal["running", "completed", "failed"]) -> None:
        """Write down which run this is and how it stands, in one step."""
        partial = self.path / f"{RUN}.partial"
        partial.write_text(json.dumps({"run_id": run_id, "status": status}) + "\n", encoding="utf-8")
        partial.replace(self.path / RUN)
