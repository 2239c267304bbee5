"""Tells a tracker of experiments what a run does, without ever making the run wait for it."""

from __future__ import annotations

import json
import logging
import queue
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from feddkd import __version__
from feddkd.config import Config, MainMetric
from feddkd.config.table import flatten
from feddkd.exchange import Evaluation
from feddkd.imports import one_line
from feddkd.observability.run_folder import MODEL
from feddkd.observability.trackers.tracker import TrackedRun, Tracker
from feddkd.scheduler.records import ExchangeRecord, Observer, RoundRecord, RunRecord
from feddkd.text import printable

logger = logging.getLogger(__name__)

PATIENCE_S = 30.0
"""How long the end of a run waits for a tracker."""

MOST_WAITING = 10_000
"""Calls that wait for a slow tracker; a round that comes on top is not tracked."""

MOST_LETTERS = 500
"""Of the value of a parameter."""


class Tracking(Observer):
    """Feeds one tracker. Its calls run on a thread of their own; a mark in the record says what it has already.

    The mark lets a run that is resumed go on in the tracker's own run, without a round that is there twice.
    """

    def __init__(self, name: str, tracker: Tracker, config: Config, folder: Path, patience_s: float = PATIENCE_S) -> None:
        """Prepare; the tracker hears nothing before the run begins.

        Args:
            name: of the tracker, for messages and the mark.
            folder: of the run's record.
        """
        self._name = name
        self._tracker = tracker
        self._config = config
        self._folder = folder
        self._patience_s = patience_s
        self._mark = Mark(folder / f"tracker-{_file_name(name)}.json")
        self._bytes_of_round: dict[int, dict[str, list[int]]] = {}
        self._bytes_so_far: dict[str, int] = {}
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._work, name=f"track-{name}", daemon=True)
        self._is_open = False
        self._has_ended = False
        self._is_late = False

    def run_started(self, run_id: str, rounds: int) -> None:
        config = self._config
        run = TrackedRun(
            run_id,
            self._folder.absolute(),
            {key: str(value)[:MOST_LETTERS] for key, value in flatten(config.model_dump(mode="json", exclude_none=True)).items()},
            {
                "feddkd.run_id": run_id,
                "feddkd.version": __version__,
                "algorithm": config.algorithm.name,
                "model": config.model.name,
                "data": config.data.name,
            },
            self._mark.known_as,
        )
        self._is_open = True
        self._thread.start()
        self._call(lambda: self._mark.write(known_as=self._tracker.begin(run)))

    def exchange_done(self, record: ExchangeRecord) -> None:
        kinds = self._bytes_of_round.setdefault(record.id.round, {})
        both = kinds.setdefault(_part(record.id.name), [0, 0])
        both[0] += record.traffic.wire_bytes_down
        both[1] += record.traffic.wire_bytes_up

    def round_done(self, record: RoundRecord) -> None:
        kinds = self._bytes_of_round.pop(record.round, {})
        for kind, both in kinds.items():
            self._bytes_so_far[kind] = self._bytes_so_far.get(kind, 0) + sum(both)
        if record.round <= self._mark.round:
            return  # an earlier process tracked it
        values = self._values(record, kinds)
        by_bytes = self._by_bytes(record.evaluation)
        number, wire_bytes = record.round, record.cumulative_wire_bytes
        self._call(lambda: self._log(number, wire_bytes, values, by_bytes))

    def run_failed(self, reason: str) -> None:
        self._end(completed=False)

    def run_done(self, record: RunRecord) -> None:
        self._end(completed=True)

    def _log(self, number: int, wire_bytes: int, values: Mapping[str, float], by_bytes: Mapping[str, float]) -> None:
        self._tracker.log(number, wire_bytes, values, by_bytes)
        self._mark.write(round_number=number)

    def _values(self, record: RoundRecord, kinds: Mapping[str, list[int]]) -> dict[str, float]:
        """Name the numbers of a round."""
        evaluated_by = "test" if self._config.data.test_set else "clients"
        values: dict[str, float] = {
            "round/seconds": record.seconds,
            "round/clients": record.clients_reported,
            "round/missing": len(record.clients_missing),
            "bytes/down": record.traffic.wire_bytes_down,
            "bytes/up": record.traffic.wire_bytes_up,
            "bytes/total": record.cumulative_wire_bytes,
        }
        values |= _scores(evaluated_by, record.evaluation) | _scores("clients", record.client_evaluation)
        values |= {f"metrics/{_part(name)}": value for name, value in record.metrics.items()}
        for kind, (down, up) in kinds.items():
            values |= {f"bytes/{kind}/down": down, f"bytes/{kind}/up": up}
        return values | {f"bytes_so_far/{kind}": total for kind, total in self._bytes_so_far.items()}

    def _by_bytes(self, evaluation: Evaluation | None) -> dict[str, float]:
        if evaluation is None:
            return {}
        metric = MainMetric.of(self._config)
        value = evaluation.score(metric.name)
        return {"loss": evaluation.loss} | ({} if value is None else {_part(metric.code): value})

    def _end(self, *, completed: bool) -> None:
        """Tell the tracker, and wait for it, but not for ever."""
        if not self._is_open or self._has_ended:
            return
        self._has_ended = True
        model = self._folder.absolute() / MODEL
        self._call(lambda: self._tracker.end(completed=completed, model=model if model.is_file() else None))
        self._call(None)
        self._thread.join(self._patience_s)
        if self._thread.is_alive():
            logger.warning("%s has not taken everything in after %g s, and is not waited for", self._name, self._patience_s)

    def _call(self, call: Callable[[], None] | None) -> None:
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            if not self._is_late:
                logger.warning("%s is too slow: rounds are left out there", self._name)
            self._is_late = True

    def _work(self) -> None:
        has_failed = False
        while (call := self._calls.get()) is not None:
            if has_failed:
                continue
            try:
                call()
            except Exception as error:  # whatever a tracker raises, the run goes on
                has_failed = True
                logger.warning("%s failed and is switched off for the rest of this run: %s", self._name, printable(one_line(error)))
                logger.info("where %s failed", self._name, exc_info=error)


class Mark:
    """A small file in the record: the tracker's own name of the run, and the last round that it has.

    Attributes:
        known_as: empty before the tracker has begun.
        round: 0 before the first.
    """

    def __init__(self, file: Path) -> None:
        """Read the file; one that is not there, or cannot be read, says nothing."""
        self._file = file
        self.known_as, self.round = "", 0
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            self.known_as, self.round = str(found["known_as"]), int(found["round"])
        except (OSError, ValueError, KeyError, TypeError):
            self.known_as, self.round = "", 0

    def write(self, *, known_as: str | None = None, round_number: int | None = None) -> None:
        """Replace the file. Raises OSError."""
        self.known_as = self.known_as if known_as is None else known_as
        self.round = self.round if round_number is None else round_number
        content: dict[str, Any] = {"known_as": self.known_as, "round": self.round}
        partial = self._file.with_name(f"{self._file.name}.partial")
        partial.write_text(json.dumps(content) + "\n", encoding="utf-8")
        partial.replace(self._file)


def _scores(group: str, evaluation: Evaluation | None) -> dict[str, float]:
    if evaluation is None:
        return {}
    return {f"{group}/{_part(name)}": value for name, value in evaluation.all_scores.items()}


def _part(name: str) -> str:
    """Return a name as a part of the name of a series: clients make some up, and trackers allow few characters."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:100] or "_"


def _file_name(name: str) -> str:
    return re.sub(r"\W+", "-", name)
