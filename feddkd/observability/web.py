"""Serves a few pages over HTTP, on threads beside the run: metrics, health, the live page.

A client that is slow, silent or hostile holds one of a bounded number of connections for a bounded time.
It never holds the run.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

from feddkd.errors import AddressInUseError

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 32
"""Connections that are open at a time. A further one takes the place of the oldest without a request, or is closed at once."""

MAX_ADDRESS_CONNECTIONS = 24
"""Connections of one address: some places are left for the probes and scrapes of others."""

FIRST_BYTE_TIMEOUT_S = 2.0
"""Seconds that a client has before it sends anything."""

REQUEST_TIMEOUT_S = 10.0
"""Seconds that a client has for its whole request."""

WRITE_TIMEOUT_S = 10.0
"""Seconds that a client has to take a part of a response: a streamed one has one part or many."""

POLL_S = 0.2

TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks for.

    Attributes:
        headers: by their names in lower case.
        query: values by name.
    """

    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Response:
    """What a client gets.

    Attributes:
        body: an iterator is streamed, one part after the other, until it ends or the client leaves; it is closed then.
        headers: besides `Content-Type`, `Content-Length` and `Connection`.
    """

    status: int
    content_type: str
    body: bytes | Iterator[bytes]
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Connection:
    """An open connection.

    Attributes:
        until: when it is cut off, on the monotonic clock.
        has_request: whether its request was read.
    """

    peer: str
    since: float
    until: float
    has_request: bool = False


Route = Callable[[Request], Response]
"""Answers GET for one path. Called on a thread of its own, from several at once."""


def text_response(text: str, status: int = HTTPStatus.OK) -> Response:
    """Return a response of plain text."""
    return Response(status, TEXT, text.encode())


class WebServer:
    """Answers GET and HEAD until it is closed.

    Attributes:
        port: where it listens.
    """

    def __init__(self, routes: Mapping[str, Route], port: int, address: str = "127.0.0.1", purpose: str = "pages") -> None:
        """Listen, and answer on threads of its own.

        Args:
            routes: by path. `/` lists them unless it is one.
            port: 0 takes a free one.
            address: of this machine: a name, or an IPv4 or IPv6 address.
            purpose: what is served, for the message of an error.

        Raises:
            AddressInUseError: the port is taken, or the address is not one of this machine's.
        """
        host = f"[{address}]" if ":" in address else address
        try:
            self._server = _Server(routes, port, address)
        except OSError as error:
            raise AddressInUseError(f"cannot serve {purpose} on {host}:{port}: {error.strerror}") from error
        self.port: int = self._server.server_address[1]
        self.address = f"{host}:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=[POLL_S], name="feddkd-web", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening, free the port and cut all connections off; closing again does nothing."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server.cut_off()


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """A thread for each connection, and a clock over all of them."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = MAX_CONNECTIONS

    def __init__(self, routes: Mapping[str, Route], port: int, address: str) -> None:
        family, *_, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        self.address_family = family
        self.routes = {"/": self._listing, **routes}
        self._paths = sorted(routes)
        self._lock = threading.Lock()
        self._open: dict[socket.socket, _Connection] = {}
        super().__init__((str(where[0]), port), _Handler)

    def _listing(self, _: Request) -> Response:
        return text_response("".join(f"{path}\n" for path in self._paths))

    def verify_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: Any) -> bool:
        """Take a connection in, unless there are too many that have sent a request."""
        assert isinstance(request, socket.socket)
        now, peer = time.monotonic(), str(client_address[0])
        with self._lock:
            of_peer = [each for each, state in self._open.items() if state.peer == peer]
            crowd = of_peer if len(of_peer) >= MAX_ADDRESS_CONNECTIONS else list(self._open)
            is_full = crowd is of_peer or len(crowd) >= MAX_CONNECTIONS
            silent = next((each for each in crowd if not self._open[each].has_request), None) if is_full else None
            if is_full and silent is None:
                return False
            if silent is not None:
                del self._open[silent]
            self._open[request] = _Connection(peer, now, now + FIRST_BYTE_TIMEOUT_S)
        if silent is not None:
            _end(silent)
        return True

    def request_begun(self, connection: socket.socket) -> None:
        """Take in that a client has sent something: it has the time for a whole request."""
        with self._lock:
            if (state := self._open.get(connection)) is not None:
                state.until = state.since + REQUEST_TIMEOUT_S

    def request_complete(self, connection: socket.socket) -> None:
        """Take in that a request was read: from now on only writing has a limit of time."""
        with self._lock:
            if (state := self._open.get(connection)) is not None:
                state.until, state.has_request = float("inf"), True

    def service_actions(self) -> None:
        """Cut off the clients whose request takes too long, however slowly they send it."""
        self.cut_off(time.monotonic())

    def cut_off(self, now: float = float("inf")) -> None:
        """End the connections that had to be done by `now`; by default all. Their threads then end."""
        with self._lock:
            late = [connection for connection, state in self._open.items() if state.until <= now]
        for connection in late:
            _end(connection)

    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        assert isinstance(request, socket.socket)
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Leave a broken connection alone: nothing of the run depends on it."""
        logger.debug("an HTTP connection broke", exc_info=True)


def _end(connection: socket.socket) -> None:
    """Let the thread of a connection read and write no more; it then closes it."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    """Answers one request of a connection."""

    server: _Server
    protocol_version = "HTTP/1.1"
    server_version = "feddkd"
    sys_version = ""
    timeout: ClassVar[float] = WRITE_TIMEOUT_S
    error_content_type = TEXT
    error_message_format = "%(code)d %(message)s\n"

    def handle(self) -> None:
        if self.rfile.peek(1):  # type: ignore[attr-defined]  # waits for the first byte
            self.server.request_begun(self.connection)
            super().handle()

    def parse_request(self) -> bool:
        parsed = super().parse_request()
        self.close_connection = True
        self.server.request_complete(self.connection)
        return parsed

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def __getattr__(self, name: str) -> Callable[[], None]:
        if not name.startswith("do_"):
            raise AttributeError(name)
        return self._refuse

    def _refuse(self) -> None:
        refusal = text_response("405 only GET and HEAD\n", HTTPStatus.METHOD_NOT_ALLOWED)
        self._write(Response(refusal.status, refusal.content_type, refusal.body, {"Allow": "GET, HEAD"}), with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        try:
            url = urlsplit(self.path)
            query = parse_qs(url.query)
        except ValueError:
            self._write(text_response("400 this is no path\n", HTTPStatus.BAD_REQUEST), with_body=with_body)
            return
        request = Request(url.path, {name.lower(): value for name, value in self.headers.items()}, query)
        route = self.server.routes.get(request.path)
        if route is None:
            self._write(text_response("404 no such page\n", HTTPStatus.NOT_FOUND), with_body=with_body)
            return
        try:
            response = route(request)
        except Exception:
            logger.exception("%s cannot be served", request.path)
            response = text_response("500 the page cannot be made; see the log\n", HTTPStatus.INTERNAL_SERVER_ERROR)
        self._write(response, with_body=with_body)

    def _write(self, response: Response, *, with_body: bool) -> None:
        """Send a response. Its body is closed in any case: a stream counts its readers."""
        body = response.body
        try:
            self._write_head(response)
            parts = (body,) if isinstance(body, bytes) else body
            for part in parts if with_body else ():
                self.wfile.write(part)
        finally:
            if not isinstance(body, bytes) and (close := getattr(body, "close", None)) is not None:
                close()

    def _write_head(self, response: Response) -> None:
        self.send_response(response.status)
        self.send_header("Content-Type", response.content_type)
        for name, value in response.headers.items():
            self.send_header(name, value)
        if isinstance(response.body, bytes):
            self.send_header("Content-Length", str(len(response.body)))
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        logger.debug("%s: " + format, self.address_string(), *args)
