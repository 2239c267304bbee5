"""Writes down what only the living process of a run knows: who is there, whom it waits for, and why it ended."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from feddkd.exchange import ExchangeId
from feddkd.files import open_regular
from feddkd.scheduler.engine import Engine
from feddkd.scheduler.records import ExchangeRecord, Observer, RunRecord
from feddkd.text import printable

logger = logging.getLogger(__name__)

STATUS = "status.json"

EVERY_S = 1.0

PATIENCE_S = 5.0
"""How long the end of a run waits for a disk that does not answer."""

MOST_CLIENTS = 1000
"""Clients in the file; of more, those that were heard last."""

MAX_FILE = 1 << 20
"""Bytes that are read of it."""

REPLIES = "replies"
JOINING = "clients to join"
RETURNING = "clients of the open round to come back"

Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(allow_inf_nan=False)]


class LiveStatus(BaseModel):
    """The content of `status.json`.

    Attributes:
        pid: of the process.
        command: that started it; empty if it is not to be started again as it was.
        time: seconds since 1970 when this was written.
        waits_for: what must come before the run goes on; empty where the process itself is at work.
        paused: whether the run has too few clients to go on.
        waiting_for: clients whose reply is expected.
        num_waiting: how many these are, those that are left out counted.
        connected: clients that are there.
        here: which clients these are.
        known: clients that have joined.
        last_heard_s: how many seconds before `time` a client was heard, by id.
        ended: why the process has ended; empty as long as it has not.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    pid: Count
    command: str = ""
    time: Seconds
    waits_for: str = ""
    paused: bool = False
    waiting_for: list[str] = []
    num_waiting: Count = 0
    connected: Count = 0
    here: list[str] = []
    known: Count = 0
    last_heard_s: dict[str, Seconds] = {}
    ended: str = ""


def read_status(folder: Path) -> LiveStatus | None:
    """Return what the last process of the run in a folder wrote; None if there is nothing that can be read."""
    try:
        with open_regular(folder / STATUS) as stream:
            return LiveStatus.model_validate_json(stream.read(MAX_FILE))
    except (OSError, ValidationError):
        return None


class StatusFile(Observer):
    """Writes `status.json` about once a second while it is entered. A failed write is skipped."""

    follows_history = False

    def __init__(self, folder: Path, command: str = "", every_s: float = EVERY_S) -> None:
        """Prepare the file; nothing is written before this object is entered.

        Args:
            folder: of the run's journal.
            command: that started this process.
            every_s: seconds between two versions of the file.
        """
        self._file = folder / STATUS
        self._command = command
        self._every_s = every_s
        self._engine: Engine | None = None
        self._phase = JOINING
        self._pause = ""
        self._is_paused = False
        self._ended = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._write_often, name="status", daemon=True)

    def __enter__(self) -> Self:
        if not self.write():
            with contextlib.suppress(OSError):
                self._file.unlink(missing_ok=True)  # an earlier process's, which says nothing about this one
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stopping.set()
        self._thread.join(PATIENCE_S)
        self.write()

    def engine_ready(self, engine: Engine) -> None:
        self._engine = engine

    def run_started(self, run_id: str, rounds: int) -> None:
        self._phase = ""

    def run_resumed(self, run_id: str, rounds: int, rounds_done: int, incarnation: int, last: ExchangeId | None) -> None:
        self._phase = RETURNING

    def round_started(self, round_number: int, attempt: int, clients: int) -> None:
        self._phase, self._pause, self._is_paused = "", "", False

    def exchange_done(self, record: ExchangeRecord) -> None:
        self._phase, self._pause, self._is_paused = "", "", False

    def paused(self, reason: str) -> None:
        self._pause, self._is_paused = printable(reason), True

    def waiting(self, reason: str) -> None:
        self._pause, self._is_paused = printable(reason), False

    def run_failed(self, reason: str) -> None:
        self._ended = printable(reason)

    def run_done(self, record: RunRecord) -> None:
        self._ended = "all rounds are done"

    def write(self) -> bool:
        """Replace the file in one step; returns whether that succeeded."""
        partial = self._file.with_name(f"{STATUS}.partial")
        try:
            partial.write_text(self._look().model_dump_json() + "\n", encoding="utf-8")
            partial.replace(self._file)
        except OSError as error:
            logger.info("cannot write %s: %s", self._file, error.strerror)
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            return False
        return True

    def _write_often(self) -> None:
        while not self._stopping.wait(self._every_s):
            self.write()

    def _look(self) -> LiveStatus:
        """Ask the engine, if there is one that still answers."""
        waiting, heard, here = list[str](), dict[str, float](), list[str]()
        if self._engine is not None:
            with contextlib.suppress(Exception):  # it has just been aborted or closed; whatever it is, the run goes on
                waiting, heard = self._engine.waiting_for(), dict(self._engine.last_heard())
                here = self._engine.here()
        return LiveStatus(
            pid=os.getpid(),
            command=self._command,
            time=round(time.time(), 3),
            waits_for=self._pause or (REPLIES if waiting else self._phase),
            paused=self._is_paused,
            waiting_for=waiting[:MOST_CLIENTS],
            num_waiting=len(waiting),
            connected=len(here),
            here=here[:MOST_CLIENTS],
            known=len(heard),
            last_heard_s=_latest(heard),
            ended=self._ended,
        )


def _latest(heard: Mapping[str, float]) -> dict[str, float]:
    """The clients that were heard last, in client order."""
    chosen = sorted(heard, key=heard.__getitem__)[:MOST_CLIENTS]
    return {client: round(max(heard[client], 0.0), 1) for client in sorted(chosen)}
