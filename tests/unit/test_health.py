"""grpc.health.v1 on the server's port, and the command that asks for it."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from fake_streams import FakeInbox
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pki import Pki
from typer.testing import CliRunner

from feddkd.cli import app
from feddkd.errors import UnreachableError
from feddkd.traffic import Traffic
from feddkd.transport import health
from feddkd.transport.frames import SERVICE
from feddkd.transport.health import NotServingError, Probe
from feddkd.transport.pb import federation_pb2 as pb
from feddkd.transport.server import Admission, FederationServer
from feddkd.transport.server_security import ServerSecurity
from feddkd.transport.tls import client_tls, server_tls

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Served:
    def __init__(self) -> None:
        self.inbox = FakeInbox()
        self.server = FederationServer(pb.Manifest(run_id="run"), self.inbox, admission=Admission())
        self.port = self.server.start("127.0.0.1", 0)

    def take_no_more(self) -> None:
        async def end() -> None:
            self.server.take_no_more()

        self.server.call(end()).result()


@pytest.fixture
def served() -> Iterator[Served]:
    found = Served()
    try:
        yield found
    finally:
        found.server.stop()


@contextmanager
def stub(served: Served) -> Iterator[health_pb2_grpc.HealthStub]:
    with grpc.insecure_channel(f"127.0.0.1:{served.port}") as channel:
        yield health_pb2_grpc.HealthStub(channel)


def request(service: str) -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=service)


@pytest.mark.parametrize("service", ["", SERVICE])
def test_a_server_serves_from_when_it_listens_until_it_takes_no_more(served: Served, service: str) -> None:
    with stub(served) as asked:
        assert asked.Check(request(service), timeout=60).status == SERVING
        served.take_no_more()
        assert asked.Check(request(service), timeout=60).status == NOT_SERVING


def test_another_service_is_not_found(served: Served) -> None:
    with stub(served) as asked, pytest.raises(grpc.RpcError) as refused:
        asked.Check(request("grpc.testing"), timeout=60)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


def test_all_services_are_listed(served: Served) -> None:
    with stub(served) as asked:
        listed = asked.List(health_pb2.HealthListRequest(), timeout=60).statuses
    assert {name: answer.status for name, answer in listed.items()} == {"": SERVING, SERVICE: SERVING}


def test_probes_are_in_nobodys_account(served: Served) -> None:
    with stub(served) as asked:
        asked.Check(request(""), timeout=60)
        next(asked.Watch(request(""), timeout=60))
    assert served.inbox.other.traffic == Traffic()
    assert served.server.sessions() == []


def test_who_watches_is_told_of_the_end_and_does_not_hold_the_server_up(served: Served) -> None:
    with stub(served) as asked:
        watch = asked.Watch(request(SERVICE), timeout=60)
        assert next(watch).status == SERVING
        stopping = threading.Thread(target=served.server.stop, args=[3600.0])
        stopping.start()
        assert [answer.status for answer in watch] == [NOT_SERVING]
        stopping.join(60)
        assert not stopping.is_alive()
    served.server = Served().server


def test_one_address_keeps_no_other_from_watching(served: Served) -> None:
    with stub(served) as asked:
        watches = [asked.Watch(request(""), timeout=60) for _ in range(health.MAX_PEER_WATCHES)]
        assert {next(watch).status for watch in watches} == {SERVING}
        with stub(served) as more, pytest.raises(grpc.RpcError) as refused:
            next(more.Watch(request(""), timeout=60))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


class Watching:
    """The context of a call of Watch from an address."""

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self.answers: list[int] = []

    def peer(self) -> str:
        return self._peer

    async def write(self, answer: health_pb2.HealthCheckResponse) -> None:
        self.answers.append(answer.status)

    async def abort(self, code: grpc.StatusCode, _: str) -> None:
        raise PermissionError(code)


@pytest.mark.parametrize("other", ["ipv4:10.0.0.8:1", "ipv6:%5B::2%5D:1"])
def test_one_address_that_watches_leaves_places_for_others(other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "MAX_PEER_WATCHES", 2)

    async def watch() -> tuple[list[int], int]:
        service = health.HealthService()
        held = [asyncio.create_task(service.Watch(request(""), Watching(f"ipv4:10.0.0.7:{port}"))) for port in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(PermissionError, match="RESOURCE_EXHAUSTED"):
            await service.Watch(request(""), Watching("ipv4:10.0.0.7:3"))
        probe = Watching(other)
        held.append(asyncio.create_task(service.Watch(request(""), probe)))
        await asyncio.sleep(0)
        service.end()
        await asyncio.gather(*held)
        return probe.answers, len(service._watches)

    assert asyncio.run(watch()) == ([NOT_SERVING, NOT_SERVING], 0)


def test_the_number_of_watches_is_bounded(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "MAX_WATCHES", 2)
    with stub(served) as asked:
        watches = [asked.Watch(request(""), timeout=60) for _ in range(2)]
        assert [next(watch).status for watch in watches] == [SERVING, SERVING]
        with pytest.raises(grpc.RpcError) as refused:
            next(asked.Watch(request(""), timeout=60))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert asked.Check(request(""), timeout=60).status == SERVING, "a probe that asks once is answered"


def test_a_probe_tells_the_three_cases_apart(served: Served) -> None:
    probe = Probe(timeout_s=60)
    probe.check("127.0.0.1", served.port)
    served.take_no_more()
    with pytest.raises(NotServingError, match="clients cannot join"):
        probe.check("127.0.0.1", served.port)
    served.server.stop()
    with pytest.raises(UnreachableError):
        probe.check("127.0.0.1", served.port)
    served.server = Served().server


def test_the_command_has_an_exit_code_for_a_health_check(served: Served) -> None:
    result = CliRunner().invoke(app, ["health", f"127.0.0.1:{served.port}", "--timeout", "60"])
    assert result.exit_code == 0
    served.take_no_more()
    result = CliRunner().invoke(app, ["health", f"127.0.0.1:{served.port}", "--timeout", "60"])
    assert isinstance(result.exception, NotServingError)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    found = Pki(tmp_path_factory.mktemp("pki"))
    found.server("server", hosts=("server.example",))
    found.client("site-a")
    return found


def with_key(file: Path) -> tuple[Path, Path]:
    return file, file.with_suffix(".key")


@pytest.mark.parametrize("mutual", [False, True], ids=["one-way TLS", "mutual TLS"])
def test_a_probe_needs_what_the_port_needs_and_no_more(mutual: bool, pki: Pki) -> None:
    server = FederationServer(pb.Manifest(run_id="run"), FakeInbox(), admission=Admission())
    certificate, key = with_key(pki.folder / "server.pem")
    port = server.start("127.0.0.1", 0, ServerSecurity(server_tls(certificate, key, pki.ca if mutual else None)))
    bare, own = client_tls(pki.ca, None, None), client_tls(pki.ca, *with_key(pki.folder / "site-a.pem"))
    try:
        Probe(timeout_s=60, tls=own, name="server.example").check("127.0.0.1", port)
        assert server.sessions() == []
        if mutual:
            with pytest.raises(UnreachableError):
                Probe(timeout_s=2, tls=bare, name="server.example").check("127.0.0.1", port)
        else:
            Probe(timeout_s=60, tls=bare, name="server.example").check("127.0.0.1", port)
        for wrong in (Probe(timeout_s=2, tls=own), Probe(timeout_s=2)):  # another name than the certificate's; plaintext
            with pytest.raises(UnreachableError):
                wrong.check("127.0.0.1", port)
    finally:
        server.stop()
