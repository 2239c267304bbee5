import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddkd.bench.throttle import Pacer, throttled
from feddkd.observability.wall_time import Link

FAST = Link(1e12, 1e12, 0.0)
times = st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 10)), min_size=1, max_size=30)


def test_bytes_leave_one_after_another_at_the_rate_and_arrive_later() -> None:
    line = Pacer(8000.0, 0.25)  # a byte takes a millisecond
    assert line.send(500, now=10.0) == pytest.approx((10.5, 10.75))
    assert line.send(100, now=10.1) == pytest.approx((10.6, 10.85))  # waits for the first
    assert line.send(100, now=20.0) == pytest.approx((20.1, 20.35))  # an idle line saves nothing up


@given(times)
def test_no_byte_overtakes_another_nor_the_rate(pieces: list[tuple[int, float]]) -> None:
    line, now, last, sent = Pacer(8000.0, 0.5), 0.0, 0.0, 0
    for size, wait in pieces:
        now += wait
        left, arrived = line.send(size, now)
        assert left >= max(last, now)
        assert arrived == left + 0.5
        last, sent = left, sent + size
    assert last >= sent / 1000 * (1 - 1e-9)


@pytest.fixture
def echo() -> Iterator[str]:
    """The address of a server that sends back what each connection sends."""

    def answer(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(1 << 16):
                connection.sendall(data)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def through(address: str, data: bytes) -> bytes:
    """What comes back for `data` and the end of it."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def test_every_byte_comes_through_in_order_on_each_clients_own_line(echo: str) -> None:
    data = [bytes([client]) * 100_000 + b"end" for client in range(2)]
    with throttled(echo, [FAST, FAST]) as addresses:
        assert len(set(addresses)) == 2
        assert [through(address, sent) for address, sent in zip(addresses, data, strict=True)] == data
        assert through(addresses[0], b"again") == b"again"


def test_a_line_whose_server_is_gone_hangs_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        gone = f"127.0.0.1:{probe.getsockname()[1]}"
    with throttled(gone, [FAST]) as (address,):
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port))) as connection:
            assert connection.recv(1) == b""


def test_a_line_that_is_closed_hangs_up_on_both_ends(echo: str) -> None:
    with throttled(echo, [FAST]) as (address,):
        host, _, port = address.rpartition(":")
        connection = socket.create_connection((host, int(port)))
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
    with connection:
        assert connection.recv(1) == b""
