"""The server's state directory: one server at a time, and which run it last held."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from feddkd.durable import write_durably
from feddkd.errors import StateError
from feddkd.files import open_regular
from feddkd.locking import DirectoryLock
from feddkd.text import printable

RUN = "run.json"
MAX_SIZE = 1 << 16

Status = Literal["running", "paused", "completed", "failed"]


class RunMark(BaseModel):
    """The content of `run.json`."""

    model_config = ConfigDict(strict=True, extra="ignore")

    run_id: Annotated[str, Field(pattern=r"^\w[\w.-]{0,99}$")]
    status: Status


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
    def last_run(self) -> RunMark | None:
        """The run that the last server on this directory served, and how it stood; as `read_run`."""
        return read_run(self.path)

    def mark(self, run_id: str, status: Status) -> None:
        """Write down which run this is and how it stands, in one step.

        Raises:
            StateError: the file cannot be written.
        """
        try:
            write_durably(self.path / RUN, (RunMark(run_id=run_id, status=status).model_dump_json() + "\n").encode())
        except OSError as error:
            raise StateError(f"cannot write {self.path / RUN}: {error.strerror}") from error


def read_run(folder: Path) -> RunMark | None:
    """Return which run the last server on a state directory served, and how it stood; None if there was none.

    Raises:
        StateError: the file is damaged.
    """
    file = folder / RUN
    try:
        with open_regular(file) as stream:
            return RunMark.model_validate_json(stream.read(MAX_SIZE))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"cannot read {file}: {error.strerror}") from error
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(map(str, problem["loc"])) or "it"
        raise StateError(f"{file} is damaged: {printable(key)}: {printable(problem['msg'])}") from None
