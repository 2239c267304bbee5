"""Folds the events of a run into what a live page shows."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Collection
from typing import Any

from feddkd import __version__
from feddkd.config import Config, MainMetric
from feddkd.exchange import Evaluation, ExchangeId
from feddkd.observability.live.history import RoundHistory, shown_number
from feddkd.observability.live.sites import ClientTable, Seen, some_names
from feddkd.observability.round_length import exchanges_a_round
from feddkd.scheduler.records import ExchangeRecord, RoundRecord, RunRecord
from feddkd.text import printable
from feddkd.traffic import Traffic

MOST_LINES = 200
"""Lines of the log that are kept."""

SECTIONS = ("run", "clients", "history", "log")
"""Parts of the state that are sent apart, each as a whole."""


class LiveState:
    """What a live page shows, in four sections. Each has a number that grows when it changes.

    Attributes:
        versions: of the sections, by name.
        phase: "waiting", "running", "paused", "completed", "failed" or "stopped".
    """

    def __init__(self, config: Config, *, resumed: bool = False) -> None:
        """Begin before the first event.

        Args:
            resumed: what happens before `run_resumed` is history.
        """
        self._config = config
        self._metric = MainMetric.of(config)
        self._rounds = config.rounds
        self._in_history = resumed
        self._history = RoundHistory(self._metric.name)
        self._table = ClientTable()
        self._seen = Seen()
        self._lines: deque[dict[str, Any]] = deque(maxlen=MOST_LINES)
        self._run_id = ""
        self.phase = "waiting"
        self._reason = ""
        self._round = self._attempt = 0
        self._exchange: dict[str, Any] | None = None
        self._done: set[ExchangeId] = set()
        self._best: tuple[int, float] | None = None
        self._started_s: float | None = None
        self._ended_s: float | None = None
        self._other = Traffic()
        self.versions = dict.fromkeys(SECTIONS, 1)

    def section(self, name: str) -> dict[str, Any]:
        """Return a section as it stands."""
        made: dict[str, Any] = getattr(self, f"_{name}_section")()
        return made

    def see(self, seen: Seen, other: Traffic) -> None:
        """Take in what the engine says of its clients and of the bytes outside exchanges."""
        before, self._seen = self._seen, seen
        come, gone = seen.here - before.here, before.here - seen.here
        if come:
            back = "back" if come <= before.heard_s.keys() else "there"
            self.log("join", f"{some_names(come)} {'is' if len(come) == 1 else 'are'} {back}")
        if gone:
            self.log("lost", f"{some_names(gone)} {'is' if len(gone) == 1 else 'are'} not connected any more")
        if (before.here, before.awaited) != (seen.here, seen.awaited) or seen.lost:
            self._touch("clients")
        if other.wire_bytes != self._other.wire_bytes:
            self._other = other
            self._touch("run")

    def log(self, kind: str, text: str, at_s: float = 0.0) -> None:
        """Add a line to the log.

        Args:
            kind: chooses its look: "info", "join", "lost", "round", "warning" or "failure".
            at_s: seconds since 1970; 0 for now.
        """
        self._lines.append({"at_s": round(at_s or time.time(), 1), "kind": kind, "text": printable(text)})
        self._touch("log")

    def started(self, run_id: str, rounds: int) -> None:
        self._run_id, self._rounds = run_id, rounds
        if not self._in_history:
            self._started_s = time.time()
            self.log("info", f"run {run_id} begins, {rounds} rounds are planned")
        self._enter("running")

    def resumed(self, run_id: str, rounds: int, rounds_done: int, incarnation: int) -> None:
        self._run_id, self._rounds, self._in_history = run_id, rounds, False
        self._started_s = self._started_s or time.time()
        self.log("info", f"run {run_id} goes on after round {rounds_done} of {rounds} (process {incarnation})")
        self._enter("waiting", "waiting for clients to come back")

    def round_started(self, round_number: int, attempt: int) -> None:
        self._round, self._attempt, self._done, self._exchange = round_number, attempt, set(), None
        self._enter("running")

    def exchange_begun(self, exchange: ExchangeId, clients: Collection[str]) -> None:
        self._round = max(self._round, exchange.round)
        self._exchange = {"label": exchange.label, "since_s": time.time(), "asked": len(clients)}
        self._enter("running")

    def exchange_done(self, record: ExchangeRecord, *, recalled: bool = False) -> None:
        """Take in an exchange.

        Args:
            recalled: it was told before, as history.
        """
        self._exchange = None
        self._done.add(record.id)
        if not recalled:
            self._history.add_exchange(record)
            self._table.add(record)
            for client, reason in record.clients_missing.items() if not self._in_history else ():
                self.log("lost", f"{record.id}: {client} is missing: {reason}")
            if record.loss is not None and isinstance(shown_number(record.loss), str):
                self.log("warning", f"{record.id}: the loss is {record.loss}")
        if self._started_s is None and record.done_s:
            self._started_s = record.done_s - record.seconds
        self._touch("run", "clients")

    def evaluated(self, round_number: int, evaluation: Evaluation) -> None:
        self._history.evaluated(round_number, evaluation)
        self._raise_best(round_number, evaluation)
        self._touch("run", "history")

    def round_failed(self, round_number: int, attempt: int, reason: str) -> None:
        self._exchange = None
        self.log("warning", f"round {round_number} attempt {attempt + 1} failed: {reason}")
        self._touch("run")

    def round_done(self, record: RoundRecord) -> None:
        self._history.finished(record)
        if record.evaluation is not None:
            self._raise_best(record.round, record.evaluation)
        self.log("round", self._round_line(record), record.done_s)
        self._touch("run", "history")

    def wait(self, phase: str, reason: str) -> None:
        """Take in that the run pauses or waits, and why."""
        self._exchange = None
        self.log("warning" if phase == "paused" else "info", f"paused: {reason}" if phase == "paused" else reason)
        self._enter(phase, reason)

    def failed(self, reason: str) -> None:
        """Take in that the run ended with an error."""
        if not self.is_over:
            self._end("failed", reason)
            self.log("failure", f"the run failed: {reason}")

    def stopped(self, reason: str) -> None:
        """Take in that somebody stopped the run."""
        if not self.is_over:
            self._end("stopped", reason)
            self.log("failure", reason)

    @property
    def is_over(self) -> bool:
        """Whether the run has ended, in whichever way."""
        return self.phase in ("completed", "failed", "stopped")

    def finished(self, record: RunRecord) -> None:
        self._other = record.other_traffic
        self._end("completed", record.stopped)
        self.log("round", record.stopped or "all rounds are done, and the final model was delivered")
        for client, reason in record.not_delivered.items():
            self.log("lost", f"{client} did not get the final model: {reason}")

    def _end(self, phase: str, reason: str) -> None:
        self._exchange, self._ended_s = None, time.time()
        self._seen = dataclasses.replace(self._seen, awaited=frozenset())
        self._enter(phase, reason)
        self._touch("clients", "history")

    def _enter(self, phase: str, reason: str = "") -> None:
        self.phase, self._reason = phase, printable(reason)
        self._touch("run")

    def _touch(self, *sections: str) -> None:
        for name in sections:
            self.versions[name] += 1

    def _raise_best(self, round_number: int, evaluation: Evaluation) -> None:
        value = evaluation.score(self._metric.name)
        if value is not None and value == value and (self._best is None or self._metric.is_better(value, self._best[1])):
            self._best = (round_number, value)

    def _round_line(self, record: RoundRecord) -> str:
        value = None if record.evaluation is None else record.evaluation.score(self._metric.name)
        reached = "" if value is None else f", {self._metric.title} {self._metric.text(value)}"
        missing = f" without {some_names(record.clients_missing)}" if record.clients_missing else ""
        return f"round {record.round} is done{missing}{reached}"

    def _run_section(self) -> dict[str, Any]:
        config = self._config
        return {
            "version": __version__,
            "run_id": self._run_id,
            "what": f"{config.algorithm.name}, {config.model.name} on {config.data.name}",
            "phase": self.phase,
            "reason": self._reason,
            "round": self._round,
            "rounds": self._rounds,
            "rounds_done": max((row["round"] for row in self._history if "seconds" in row), default=0),
            "attempt": self._attempt,
            "exchange": self._exchange,
            "exchanges_done": len(self._done),
            "exchanges": exchanges_a_round(config),
            "expected": config.scheduler.starting_clients,
            "started_s": self._started_s,
            "ended_s": self._ended_s,
            "metric": {"title": self._metric.title, "is_share": self._metric.is_share, "minimised": self._metric.minimised},
            "has_test_set": config.data.test_set,
            "best": self._best,
            "bytes": {**self._history.bytes_by_kind, "joins and farewells": [self._other.wire_bytes_down, self._other.wire_bytes_up]},
            "in_round": self._history.of_round(self._round).get("bytes", {}),
        }

    def _clients_section(self) -> dict[str, Any]:
        return self._table.shown(self._seen)

    def _history_section(self) -> dict[str, Any]:
        return {"rounds": list(self._history)}

    def _log_section(self) -> dict[str, Any]:
        return {"lines": list(self._lines)}
