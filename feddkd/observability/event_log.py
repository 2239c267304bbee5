"""Writes the events of a run to the log, for programs: the console tells them to people in its own words."""

from __future__ import annotations

import logging

from feddkd.exchange import ExchangeId
from feddkd.log_events import about_shown
from feddkd.scheduler.records import ExchangeRecord, Observer, RoundRecord, RunRecord

logger = logging.getLogger(__name__)


class EventLog(Observer):
    """One entry an event, each marked as shown: a handler for people leaves it out."""

    follows_history = False

    def __init__(self) -> None:
        self._run_id = ""

    def run_started(self, run_id: str, rounds: int) -> None:
        self._run_id = run_id
        self._log("run_started", f"run {run_id} begins: {rounds} rounds", rounds=rounds)

    def run_resumed(self, run_id: str, rounds: int, rounds_done: int, incarnation: int, last: ExchangeId | None) -> None:
        self._run_id = run_id
        text = f"run {run_id} goes on after round {rounds_done} of {rounds}"
        self._log("run_resumed", text, rounds=rounds, rounds_done=rounds_done, incarnation=incarnation)

    def round_started(self, round_number: int, attempt: int, clients: int) -> None:
        self._log(
            "round_started", f"round {round_number} begins with {clients} clients", round=round_number, attempt=attempt, clients=clients
        )

    def exchange_done(self, record: ExchangeRecord) -> None:
        self._log(
            "exchange_done",
            f"{record.id}: {record.clients_reported} of {record.clients_selected} clients replied",
            round=record.id.round,
            attempt=record.id.attempt,
            exchange=record.id.name,
            step=record.id.step,
            clients_reported=record.clients_reported,
            clients_missing=len(record.clients_missing),
            wire_bytes_down=record.traffic.wire_bytes_down,
            wire_bytes_up=record.traffic.wire_bytes_up,
            seconds=record.seconds,
            loss=record.loss,
        )

    def round_failed(self, round_number: int, attempt: int, reason: str) -> None:
        text = f"round {round_number} failed: {reason}"
        self._log("round_failed", text, logging.WARNING, round=round_number, attempt=attempt, reason=reason)

    def paused(self, reason: str) -> None:
        self._log("run_paused", f"the run is paused: {reason}", logging.WARNING, reason=reason)

    def waiting(self, reason: str) -> None:
        self._log("run_waiting", reason, reason=reason)

    def round_done(self, record: RoundRecord) -> None:
        evaluation = record.evaluation
        self._log(
            "round_done",
            f"round {record.round} is done",
            round=record.round,
            clients_reported=record.clients_reported,
            clients_missing=len(record.clients_missing),
            wire_bytes_down=record.traffic.wire_bytes_down,
            wire_bytes_up=record.traffic.wire_bytes_up,
            seconds=record.seconds,
            loss=evaluation.loss if evaluation is not None else None,
            accuracy=evaluation.accuracy if evaluation is not None else None,
        )

    def run_done(self, record: RunRecord) -> None:
        self._log("run_completed", f"run {record.run_id} is completed", rounds=record.rounds, seconds=record.seconds)

    def run_failed(self, reason: str) -> None:
        self._log("run_failed", f"the run failed: {reason}", logging.ERROR, reason=reason)

    def run_stopped(self, reason: str) -> None:
        self._log("run_stopped", f"the run stopped: {reason}", reason=reason)

    def _log(self, event: str, text: str, level: int = logging.INFO, **fields: str | float | None) -> None:
        logger.log(level, "%s", text, extra=about_shown(event, run_id=self._run_id or None, **fields))
