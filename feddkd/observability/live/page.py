"""Serves a page that shows a run as it goes on: an observer of the run, and three files and one stream over HTTP.

The stream (server-sent events) sends a section of the state whenever it has changed, always as a whole. So a browser
that comes late, reloads or reconnects has everything at once, and one that is slow is sent less often, and nothing
is queued for it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from http import HTTPStatus
from importlib import resources
from types import TracebackType
from typing import Self

from feddkd.config import Config
from feddkd.exchange import Evaluation, ExampleCounts, ExchangeId
from feddkd.observability.host_names import checked
from feddkd.observability.live.sites import look
from feddkd.observability.live.state import SECTIONS, LiveState
from feddkd.observability.web import Request, Response, Route, text_response
from feddkd.scheduler.engine import Engine
from feddkd.scheduler.records import ExchangeRecord, Observer, RoundRecord, RunRecord

MOST_BROWSERS = 16
"""Streams that are open at a time."""

EVERY_S = 1.0
"""How often the engine is asked for its clients."""

LEAST_S = 0.25
"""Time between two messages to the same browser."""

QUIET_S = 5.0
"""After so long without a change a browser is sent the time, and knows that the server lives."""

PATIENCE_S = 2.0
"""How long the end of a run waits until the browsers have been told of it."""

FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/live.css": ("page.css", "text/css; charset=utf-8"),
    "/live.js": ("page.js", "text/javascript; charset=utf-8"),
}

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class LivePage(Observer):
    """Keeps the state of a run for its live page while it is entered.

    The run's thread only ever changes a small object: it waits for no browser.
    """

    def __init__(self, config: Config, *, resumed: bool = False, every_s: float = EVERY_S) -> None:
        """Prepare the page; the engine is asked for its clients from when this object is entered.

        Args:
            resumed: the run was begun by another process.
            every_s: seconds between two looks at the clients.
        """
        self._state = LiveState(config, resumed=resumed)
        self._changed = threading.Condition()
        self._engine: Engine | None = None
        self._written: dict[str, tuple[int, bytes]] = {}
        self._browsers = 0
        self._every_s = every_s
        self._stopping = threading.Event()
        self._look_now = threading.Event()
        self._thread = threading.Thread(target=self._look_often, name="live", daemon=True)
        self._warnings = _Warnings(self)

    def __enter__(self) -> Self:
        logging.getLogger("feddkd").addHandler(self._warnings)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        logging.getLogger("feddkd").removeHandler(self._warnings)
        self._stopping.set()
        self._look_now.set()
        with self._changed:
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._browsers, PATIENCE_S)
        self._thread.join()

    def routes(self, host: str) -> Mapping[str, Route]:
        """Return what to serve, by path.

        Args:
            host: address or name under which the page is opened, besides "localhost" and addresses in figures.
        """
        found: dict[str, Route] = {path: _file(*what) for path, what in FILES.items()}
        return checked(found | {"/events": self._events}, host)

    def engine_ready(self, engine: Engine) -> None:
        self._engine = engine

    def clients_available(self, examples: Mapping[str, ExampleCounts]) -> None:
        self._look_now.set()

    def run_started(self, run_id: str, rounds: int) -> None:
        with self._changing() as state:
            state.started(run_id, rounds)

    def run_resumed(self, run_id: str, rounds: int, rounds_done: int, incarnation: int, last: ExchangeId | None) -> None:
        with self._changing() as state:
            state.resumed(run_id, rounds, rounds_done, incarnation)

    def round_started(self, round_number: int, attempt: int, clients: int) -> None:
        with self._changing() as state:
            state.round_started(round_number, attempt)

    def exchange_begun(self, exchange: ExchangeId, clients: Collection[str]) -> None:
        with self._changing() as state:
            state.exchange_begun(exchange, clients)

    def exchange_done(self, record: ExchangeRecord) -> None:
        with self._changing() as state:
            state.exchange_done(record)

    def exchange_recalled(self, record: ExchangeRecord) -> None:
        with self._changing() as state:
            state.exchange_done(record, recalled=True)

    def round_evaluated(self, round_number: int, evaluation: Evaluation) -> None:
        with self._changing() as state:
            state.evaluated(round_number, evaluation)

    def round_failed(self, round_number: int, attempt: int, reason: str) -> None:
        with self._changing() as state:
            state.round_failed(round_number, attempt, reason)

    def paused(self, reason: str) -> None:
        with self._changing() as state:
            state.wait("paused", reason)

    def waiting(self, reason: str) -> None:
        with self._changing() as state:
            state.wait("waiting", reason)

    def round_done(self, record: RoundRecord) -> None:
        with self._changing() as state:
            state.round_done(record)

    def run_failed(self, reason: str) -> None:
        with self._changing() as state:
            state.failed(reason)

    def run_stopped(self, reason: str) -> None:
        with self._changing() as state:
            state.stopped(reason)

    def run_done(self, record: RunRecord) -> None:
        with self._changing() as state:
            state.finished(record)

    def warn(self, text: str) -> None:
        """Show a warning of the log."""
        with self._changing() as state:
            state.log("warning", text)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[LiveState]:
        with self._changed:
            yield self._state
            self._changed.notify_all()

    def _look_often(self) -> None:
        while not self._stopping.is_set():
            self._look_now.wait(self._every_s)
            self._look_now.clear()
            self._look()

    def _look(self) -> None:
        """Ask the engine for its clients; after the end of the run, when all were let go, no more."""
        engine = self._engine
        seen = look(engine) if engine is not None else None
        if engine is None or seen is None:
            return
        other = engine.other_traffic()
        with self._changing() as state:
            if not state.is_over:
                state.see(seen, other)

    def _events(self, request: Request) -> Response:
        with self._changed:
            if self._browsers >= MOST_BROWSERS:
                return text_response(f"{MOST_BROWSERS} browsers are connected already\n", HTTPStatus.SERVICE_UNAVAILABLE)
            self._browsers += 1
        return Response(HTTPStatus.OK, "text/event-stream; charset=utf-8", _Stream(self._messages(), self._leave), HEADERS)

    def _leave(self) -> None:
        with self._changed:
            self._browsers -= 1
            self._changed.notify_all()

    def _messages(self) -> Iterator[bytes]:
        sent: dict[str, int] = {}
        yield b"retry: 2000\n\n"
        is_last = False
        while not is_last:
            with self._changed:
                self._wait_beyond(sent)
                is_last = self._stopping.is_set()  # and is sent how the run ended
                found = [self._message(name) for name in SECTIONS if sent.get(name) != self._state.versions[name]]
                sent = dict(self._state.versions)
            yield _message("clock", {"now_s": time.time()}) + b"".join(found)
            self._stopping.wait(LEAST_S)

    def _wait_beyond(self, sent: Mapping[str, int]) -> None:
        """Return once there is something that was not sent yet, or nothing for a while."""
        self._changed.wait_for(lambda: sent != self._state.versions or self._stopping.is_set(), QUIET_S)

    def _message(self, name: str) -> bytes:
        """Write a section as it stands, once for all browsers."""
        version, message = self._written.get(name, (0, b""))
        if version != self._state.versions[name]:
            version, message = self._state.versions[name], _message(name, self._state.section(name))
            self._written[name] = version, message
        return message


class _Stream(Iterator[bytes]):
    """Messages for one browser; says once when it has left, even before the first message."""

    def __init__(self, messages: Iterator[bytes], leave: Callable[[], None]) -> None:
        self._messages = messages
        self._leave = leave

    def __next__(self) -> bytes:
        return next(self._messages)

    def close(self) -> None:
        leave, self._leave = self._leave, lambda: None
        leave()


class _Warnings(logging.Handler):
    """Passes what feddkd warns of to the page: who was refused, what went wrong."""

    def __init__(self, page: LivePage) -> None:
        super().__init__(logging.WARNING)
        self._page = page

    def emit(self, record: logging.LogRecord) -> None:
        self._page.warn(record.getMessage())


def _message(name: str, section: Mapping[str, object]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(section, allow_nan=False, separators=(',', ':'))}\n\n".encode()


def _file(name: str, content_type: str) -> Route:
    body = resources.files("feddkd.observability.live").joinpath(name).read_bytes()
    return lambda _: Response(HTTPStatus.OK, content_type, body, HEADERS)
