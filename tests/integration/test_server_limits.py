"""What hostile and broken clients meet at a real server: gRPC's own share of the limits."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import pytest
from fake_streams import ANSWER, FakeInbox
from harness import HandClient, until

from feddkd.traffic import Meter
from feddkd.transport.frames import SERVICE
from feddkd.transport.pb import federation_pb2 as pb
from feddkd.transport.server import Admission, FederationServer
from feddkd.transport.sessions import Outgoing, Session


class Pusher(FakeInbox):
    """Sends each client that connects a broadcast of 16 MiB."""

    def connected(self, session: Session, holding: object) -> None:
        super().connected(session, None)
        frames = (bytes(1 << 20) for _ in range(16))
        session.send_work(Outgoing(frames, Meter()))


@contextmanager
def serving(inbox: FakeInbox, write_stall_s: float = 60.0) -> Iterator[str]:
    """A server that listens. Yields its address."""
    manifest = pb.Manifest(run_id="run")
    server = FederationServer(
        manifest,
        inbox,
        admission=Admission(),
        write_stall_s=write_stall_s,
    )
    port = server.start("127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop()


def test_a_client_that_does_not_read_loses_its_stream_and_harms_nobody() -> None:
    inbox = Pusher()
    with serving(inbox, write_stall_s=0.2) as address, HandClient(address, "deaf") as deaf:
        deaf.connect()
        until(lambda: "deaf disconnected" in inbox.events)
        with HandClient(address, "good") as good:
            good.connect()
            assert sum(len(good.receive()) for _ in range(16)) == 16 << 20


def test_a_client_that_reads_again_learns_why_its_stream_ended() -> None:
    """Its first message was under way when a newer stream replaced this one."""
    inbox = Pusher()
    with serving(inbox) as address, HandClient(address) as old, HandClient(address) as new:
        old.connect()
        until(lambda: "hand connected" in inbox.events)
        new.connect()
        until(lambda: inbox.events.count("hand connected") == 2)
        assert old.status() is grpc.StatusCode.ABORTED


def test_a_client_that_leaves_while_it_is_written_to_is_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """gRPC logs a traceback if a call ends in a way that it does not expect."""
    leave: list[Callable[[HandClient], None]] = [
        HandClient.half_close,
        HandClient.hang_up,
        lambda client: client.send(b"\xff"),
    ]
    inbox = Pusher()
    with serving(inbox) as address:
        for number in range(30):
            with HandClient(address, f"client-{number}") as client:
                client.connect()
                until(lambda: f"client-{number} connected" in inbox.events)  # noqa: B023
                leave[number % 3](client)
                until(lambda: f"client-{number} disconnected" in inbox.events)  # noqa: B023
    assert [r.getMessage() for r in caplog.records if r.name.startswith("grpc")] == []


def test_answers_to_no_open_exchange_end_the_stream_of_a_client_that_sends_on() -> None:
    inbox = FakeInbox()
    inbox.open = False
    with serving(inbox) as address, HandClient(address) as client:
        client.connect()
        client.send(*[ANSWER] * 100)
        assert client.status() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert inbox.events.count("hand replied") < 50


@pytest.mark.parametrize("size", [100_000, 3_000_000])
def test_a_large_join_is_refused(size: int, caplog: pytest.LogCaptureFixture) -> None:
    with serving(FakeInbox()) as address, grpc.insecure_channel(address) as channel:
        join: Callable[..., bytes] = channel.unary_unary(f"/{SERVICE}/Join", None, None)
        with pytest.raises(grpc.RpcError) as refused:
            join(bytes(size), timeout=60)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "Traceback" not in caplog.text


def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feddkd.transport.options.MAX_CONNECTIONS", 3)
    with serving(FakeInbox()) as address:
        host, port = address.split(":")
        connections = [socket.create_connection((host, int(port))) for _ in range(5)]
        greetings = [connection.recv(9) for connection in connections]  # HTTP/2's first frame
        for connection in connections:
            connection.close()
    assert [bool(greeting) for greeting in greetings] == [True] * 3 + [False] * 2
