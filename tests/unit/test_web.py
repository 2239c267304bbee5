"""The web server: what it answers, and that nobody can hold it."""

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from feddkd.errors import AddressInUseError
from feddkd.observability import web
from feddkd.observability.web import Request, Response, WebServer, text_response


def greet(request: Request) -> Response:
    return text_response(f"hello {request.query.get('name', ['you'])[0]}, {request.headers.get('x-title', '')}")


def broken(_: Request) -> Response:
    raise ValueError("no page today")


@pytest.fixture
def server() -> Iterator[WebServer]:
    with closing(WebServer({"/hello": greet, "/broken": broken}, 0)) as serving:
        yield serving


def ask(server: WebServer, method: str, path: str, headers: dict[str, str] | None = None) -> tuple[http.client.HTTPResponse, bytes]:
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)) as connection:
        connection.request(method, path, headers=headers or {})
        response = connection.getresponse()
        return response, response.read()


def test_a_route_gets_query_and_headers(server: WebServer) -> None:
    response, body = ask(server, "GET", "/hello?name=Ada", {"X-Title": "Lady"})
    assert (response.status, body) == (200, b"hello Ada, Lady")
    assert response.headers["Connection"] == "close"


def test_head_has_the_length_and_no_body(server: WebServer) -> None:
    response, body = ask(server, "HEAD", "/hello")
    assert (response.status, response.headers["Content-Length"], body) == (200, "11", b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "FETCH"])
def test_other_methods_are_refused(server: WebServer, method: str) -> None:
    response, _ = ask(server, method, "/hello")
    assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", ["/metrics", "/hello/", "/../hello", "/%2e%2e/", "*"])
def test_only_what_is_there_is_served(server: WebServer, path: str) -> None:
    assert ask(server, "GET", path)[0].status == 404


def test_the_root_lists_the_pages(server: WebServer) -> None:
    assert ask(server, "GET", "/")[1] == b"/broken\n/hello\n"


def test_a_page_that_raises_is_an_error_of_the_page_alone(server: WebServer, caplog: pytest.LogCaptureFixture) -> None:
    assert ask(server, "GET", "/broken")[0].status == 500
    assert "/broken cannot be served" in caplog.text
    assert ask(server, "GET", "/hello")[0].status == 200


@pytest.mark.parametrize(
    "nonsense",
    [b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\r\n" * 9, b"GET " + b"a" * 70_000 + b" HTTP/1.1\r\n"],
)
def test_nonsense_ends_its_connection_and_no_other(server: WebServer, nonsense: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as hostile:
        hostile.sendall(nonsense)
        hostile.shutdown(socket.SHUT_WR)
        while hostile.recv(65536):
            pass
    assert ask(server, "GET", "/hello")[0].status == 200


def test_a_stream_is_closed_when_its_client_leaves() -> None:
    closed = threading.Event()

    def numbers() -> Iterator[bytes]:
        try:
            while True:
                yield b"x" * 65536
        finally:
            closed.set()

    with closing(WebServer({"/numbers": lambda _: Response(200, web.TEXT, numbers())}, 0)) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
            client.sendall(b"GET /numbers HTTP/1.1\r\n\r\n")
            assert client.recv(15) == b"HTTP/1.1 200 OK"
        assert closed.wait(30)


def test_a_request_that_never_ends_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "REQUEST_TIMEOUT_S", 0.0)  # the next look at the clock is too late for every request
    with closing(WebServer({"/hello": greet}, 0)) as server, socket.create_connection(("127.0.0.1", server.port), timeout=30) as slow:
        slow.sendall(b"GET /hello HTTP/1.1\r\nX-Slow: ")
        assert slow.recv(100) == b"", "closed, though the socket's own timeout has not come"


def test_the_number_of_connections_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "MAX_CONNECTIONS", 2)
    release, reached = threading.Event(), threading.Semaphore(0)

    def held(_: Request) -> Response:
        reached.release()
        release.wait(30)
        return text_response("late")

    with closing(WebServer({"/held": held}, 0)) as server:
        held_open = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(2)]
        for connection in held_open:
            connection.sendall(b"GET /held HTTP/1.1\r\n\r\n")
            assert reached.acquire(timeout=30)
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as third:
            assert third.recv(100) == b"", "closed at once"
        release.set()
        for connection in held_open:
            with connection:
                assert connection.recv(12) == b"HTTP/1.1 200"


def test_a_probe_takes_the_place_of_the_oldest_that_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "FIRST_BYTE_TIMEOUT_S", 3600.0)
    with closing(WebServer({"/hello": greet}, 0)) as server, ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30)) for _ in range(web.MAX_CONNECTIONS + 8)
        ]
        assert ask(server, "GET", "/hello")[0].status == 200
        assert silent[0].recv(1) == b"", "the oldest was cut off"


def test_a_request_that_is_not_complete_holds_no_place_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "REQUEST_TIMEOUT_S", 3600.0)
    with closing(WebServer({"/hello": greet}, 0)) as server, ExitStack() as stack:
        for _ in range(web.MAX_CONNECTIONS + 8):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30)).sendall(b"GET /hello HTTP/1.1\r\n")
        assert ask(server, "GET", "/hello")[0].status == 200


def test_one_address_leaves_places_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "MAX_ADDRESS_CONNECTIONS", 2)
    release, reached = threading.Event(), threading.Semaphore(0)

    def held(_: Request) -> Response:
        reached.release()
        release.wait(30)
        return text_response("late")

    with closing(WebServer({"/held": held, "/hello": greet}, 0)) as server, ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30)).sendall(b"GET /held HTTP/1.1\r\n\r\n")
            assert reached.acquire(timeout=30)
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as third:
            assert third.recv(100) == b"", "closed at once"
        other = ("127.0.0.2", 0)
        with socket.create_connection(("127.0.0.1", server.port), timeout=30, source_address=other) as probe:
            probe.sendall(b"GET /hello HTTP/1.1\r\n\r\n")
            assert probe.recv(12) == b"HTTP/1.1 200"
        release.set()


def test_a_client_that_sends_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "FIRST_BYTE_TIMEOUT_S", 0.0)
    with closing(WebServer({"/hello": greet}, 0)) as server, socket.create_connection(("127.0.0.1", server.port), timeout=30) as silent:
        assert silent.recv(100) == b""


@pytest.mark.parametrize("failing", ["end_headers", "send_response", "send_header"])
def test_a_body_is_closed_where_its_client_left_before_the_headers(monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    closed = threading.Event()

    class Body(Iterator[bytes]):
        def __next__(self) -> bytes:
            raise StopIteration

        def close(self) -> None:
            closed.set()

    def reset(*_: object) -> None:
        raise ConnectionResetError

    monkeypatch.setattr(web._Handler, failing, reset)
    with closing(WebServer({"/stream": lambda _: Response(200, web.TEXT, Body())}, 0)) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
            client.sendall(b"GET /stream HTTP/1.1\r\n\r\n")
            assert client.recv(100) == b""
        assert closed.wait(30)


@pytest.mark.parametrize("target", [b"http://[", b"ftp://[::1", b"http://[zz]/hello", b"x://a]/hello"])
def test_what_is_no_path_is_a_bad_request(server: WebServer, target: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(b"GET " + target + b" HTTP/1.1\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 400"


def test_closing_cuts_off_who_still_reads() -> None:
    pause = threading.Event()

    def endless() -> Iterator[bytes]:
        yield b"first"
        pause.wait(30)
        yield b"second"

    server = WebServer({"/endless": lambda _: Response(200, web.TEXT, endless())}, 0)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(b"GET /endless HTTP/1.1\r\n\r\n")
        received = b""
        while b"first" not in received:
            received += client.recv(1000)
        server.close()
        assert client.recv(1000) == b""
    pause.set()


def test_a_taken_port_is_refused_in_one_line(server: WebServer) -> None:
    with pytest.raises(AddressInUseError, match=f"^cannot serve a page on 127.0.0.1:{server.port}: Address already in use$"):
        WebServer({}, server.port, purpose="a page")


def test_a_closed_server_frees_its_port() -> None:
    first = WebServer({}, 0)
    first.close()
    first.close()
    with closing(WebServer({}, first.port)) as second:
        assert second.port == first.port


def test_an_ipv6_address_is_written_in_brackets() -> None:
    try:
        server = WebServer({"/hello": greet}, 0, "::1")
    except AddressInUseError:
        pytest.skip("this machine has no IPv6")
    with closing(server), closing(http.client.HTTPConnection("::1", server.port, timeout=30)) as connection:
        connection.request("GET", "/hello")
        assert connection.getresponse().status == 200
        assert server.address == f"[::1]:{server.port}"


@pytest.mark.parametrize("address", ["203.0.113.7", "no-such-host.invalid", "2001:db8::1"])
def test_an_address_of_another_machine_is_refused_in_one_line(address: str) -> None:
    with pytest.raises(AddressInUseError, match=r"^cannot serve pages on .*:0: ."):
        WebServer({}, 0, address)
