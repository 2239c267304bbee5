"""Answers /healthz and /readyz: whether the process lives, and whether clients can join the run."""

from __future__ import annotations

import dataclasses
import json
from http import HTTPStatus
from typing import Any

from feddkd.exchange import ExchangeId
from feddkd.observability.web import Request, Response, Route
from feddkd.scheduler.engine import Engine
from feddkd.scheduler.records import Observer, RunRecord

ANSWER_TIMEOUT_S = 5.0
"""Seconds that the loop which serves the clients has to react before the process counts as stuck."""


class Health(Observer):
    """Follows the state of a run.

    Attributes:
        state: starting, waiting, running, paused, completed, failed or stopped.
    """

    follows_history = False

    def __init__(self) -> None:
        self.state = "starting"
        self._engine: Engine | None = None
        self._run_id = ""
        self._round = self._rounds = 0

    @property
    def routes(self) -> dict[str, Route]:
        """The pages."""
        return {"/healthz": self.alive, "/readyz": self.ready}

    def alive(self, _: Request) -> Response:
        """200 where the process does its work, 503 where what serves the clients is stuck. A run that is over is no fault."""
        answers = self._engine is None or self._engine.answers(ANSWER_TIMEOUT_S)
        return _json(HTTPStatus.OK if answers else HTTPStatus.SERVICE_UNAVAILABLE, {"alive": answers})

    def ready(self, _: Request) -> Response:
        """200 while clients can join, 503 before and after; the body says how the run stands."""
        is_ready = self.state in ("waiting", "running", "paused")
        clients = dataclasses.asdict(self._engine.states()) if self._engine is not None else {}
        body = {
            "ready": is_ready,
            "state": self.state,
            "run_id": self._run_id,
            "round": self._round,
            "rounds": self._rounds,
            "clients": clients,
        }
        return _json(HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE, body)

    def engine_ready(self, engine: Engine) -> None:
        self._engine = engine
        if self.state == "starting":
            self.state = "waiting"

    def run_started(self, run_id: str, rounds: int) -> None:
        self._run_id, self._rounds = run_id, rounds
        self.state = "running"

    def run_resumed(self, run_id: str, rounds: int, rounds_done: int, incarnation: int, last: ExchangeId | None) -> None:
        self._run_id, self._rounds, self._round = run_id, rounds, rounds_done
        self.state = "running"

    def round_started(self, round_number: int, attempt: int, clients: int) -> None:
        self._round = round_number
        self.state = "running"

    def paused(self, reason: str) -> None:
        self.state = "paused"

    def run_done(self, record: RunRecord) -> None:
        self.state = "completed"

    def run_failed(self, reason: str) -> None:
        self.state = "failed"

    def run_stopped(self, reason: str) -> None:
        self.state = "stopped"


def _json(status: HTTPStatus, body: dict[str, Any]) -> Response:
    return Response(status, "application/json", json.dumps(body).encode() + b"\n", {"Cache-Control": "no-store"})
