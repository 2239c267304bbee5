"""A proxy in the environment: never on the way to this machine, and named where a connection through it fails."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
from collections.abc import Iterator, Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from feddkd.client.own_site import fetch_server_config
from feddkd.config import Config
from feddkd.engines.grpc import GrpcEngine
from feddkd.errors import RefusedError, TransportError, UnreachableError
from feddkd.tensors import Schema, TensorSpec
from feddkd.transport.options import client_options
from feddkd.transport.proxy import EXCEPTION_VARIABLES, PROXY_VARIABLES, is_loopback, proxy_for

VARIABLES = [spelt for name in (*PROXY_VARIABLES, "all_proxy", "grpc_http_proxy") for spelt in (name, name.upper())]
NOBODY = "http://127.0.0.1:9"
HERE = ["localhost", "LOCALHOST", "localhost.", "api.localhost", "127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1"]
AWAY = ["10.0.0.1", "server.example", "localhost.example", "notlocalhost", "1.127.0.0", "::2", "2001:db8::1", "128.0.0.1"]


@pytest.fixture(autouse=True)
def no_proxy_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, *EXCEPTION_VARIABLES):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("host", [*HERE, "0.0.0.0", "::"])
def test_no_variable_puts_a_proxy_between_this_machine_and_itself(variable: str, host: str) -> None:
    assert proxy_for(host, {variable: NOBODY}) is None
    assert ("grpc.enable_http_proxy", 0) in client_options(host)


@pytest.mark.parametrize("host", AWAY)
def test_the_way_to_another_machine_leads_through_the_proxy(host: str) -> None:
    assert not is_loopback(host)
    assert ("grpc.enable_http_proxy", 1) in client_options(host)
    assert str(proxy_for(host, {"http_proxy": NOBODY})) == "the proxy 127.0.0.1:9 of the environment variable http_proxy"


@given(st.ip_addresses(v=4, network="127.0.0.0/8"))
def test_every_address_of_the_loopback_network_is_loopback(address: object) -> None:
    assert is_loopback(str(address))


def test_a_server_on_this_machine_is_reached_with_every_variable_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.setenv(variable, NOBODY)
    engine = GrpcEngine(Config(), "run", Schema([TensorSpec("w", torch.float32, (3,))]))
    port = engine.start("127.0.0.1", 0)
    try:
        for host in ("127.0.0.1", "localhost"):
            assert fetch_server_config(f"{host}:{port}", None, 0.0).config == Config()
    finally:
        engine.finish(completed=True, reason="enough")


@contextlib.contextmanager
def proxy_that_says(answer: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """A proxy with one answer for everybody, and the first line of everything that it was asked."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer_all() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        asked.append(connection.recv(4096).split(b"\r\n")[0])
                        connection.sendall(answer)

        thread = threading.Thread(target=answer_all)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}", asked
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


FORBIDDEN = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"


def problem_with(address: str) -> TransportError:
    with pytest.raises(TransportError) as raised:
        fetch_server_config(address, None, 0.0)
    return raised.value


@pytest.mark.parametrize("variable", PROXY_VARIABLES)
def test_a_connection_that_fails_names_the_proxy_without_its_password(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with proxy_that_says(FORBIDDEN) as (address, asked):
        monkeypatch.setenv(variable, f"http://user:secret@{address}")
        error = problem_with("server.invalid:5000")
    through = f"(through the proxy {address} of the environment variable {variable}; no_proxy=server.invalid connects directly)"
    assert str(error).startswith(f"server server.invalid:5000: HTTP proxy returned response code 403 {through}")
    assert "secret" not in str(error)
    assert asked[0] == b"CONNECT server.invalid:5000 HTTP/1.1"


SETTINGS: list[Mapping[str, str]] = [
    *({name: "PROXY"} for name in VARIABLES),
    *({first: "PROXY", second: ""} for first, second in itertools.permutations(PROXY_VARIABLES, 2)),
    *(
        {"http_proxy": "PROXY", name: value}
        for name in EXCEPTION_VARIABLES
        for value in ("x.invalid", ".invalid", "other, .INVALID", "y.invalid")
    ),
    {"http_proxy": "PROXY", "no_proxy": "x.invalid", "no_grpc_proxy": "other"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_grpc_asks_the_proxy_where_we_say_so(settings: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours is a copy of the rules of gRPC's C core: this test notices if they change."""
    with proxy_that_says(FORBIDDEN) as (address, asked):
        for name, value in settings.items():
            monkeypatch.setenv(name, value.replace("PROXY", f"http://{address}"))
        said = str(problem_with("x.invalid:5000"))
        expected = proxy_for("x.invalid", os.environ) is not None
    assert bool(asked) == expected
    assert ("through the proxy" in said) == expected


def test_a_host_name_that_does_not_exist_is_said_in_plain_words_and_may_exist_later() -> None:
    error = problem_with("nowhere.invalid:5000")
    assert type(error) is UnreachableError
    assert str(error) == "server nowhere.invalid:5000: there is no host 'nowhere.invalid' (gave up after 0 s)"


@pytest.mark.parametrize(
    "greeting", [b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b"220 mail ESMTP\r\n"]
)
def test_a_port_of_another_program_is_not_tried_again(greeting: bytes) -> None:
    with proxy_that_says(greeting) as (address, _), pytest.raises(RefusedError) as raised:
        fetch_server_config(address, None, None)  # patience for ever
    assert str(raised.value) == f"server {address}: what listens there is no feddkd server: it does not speak gRPC; check the port"
