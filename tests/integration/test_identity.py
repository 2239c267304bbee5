"""Who may take part as whom: certificates and join tokens against a real server, with what both ends are told.

The same tables are in docs/how-to/identity.md; a test compares them.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast, get_args

import pytest
from fake_streams import FakeInbox
from pki import DAMAGES, DAY, NOW, Pki, damaged, signed_ca
from prometheus_client import CollectorRegistry

from feddkd.certs.certificate import Certificate
from feddkd.certs.revocation import revocation_list
from feddkd.errors import RefusedError, StateError, TransportError, UnreachableError
from feddkd.exchange import ExampleCounts
from feddkd.observability.audit import AuditLog, verify
from feddkd.observability.server_metrics import ServiceMetrics
from feddkd.refusal_kinds import KINDS, Kind
from feddkd.scheduler.engine import Engine
from feddkd.transport.audit_sink import AuditSink, NoAudit
from feddkd.transport.certificate_policy import utc_now
from feddkd.transport.client import ServerConnection
from feddkd.transport.join_tokens import JoinTokens
from feddkd.transport.pb import federation_pb2 as pb
from feddkd.transport.server import Admission, FederationServer
from feddkd.transport.server_security import ServerSecurity
from feddkd.transport.tls import ClientTls, client_tls, server_tls

DOCS = Path(__file__).parents[2] / "docs" / "how-to" / "identity.md"
METRICS = DOCS.parents[1] / "metrics.md"
JOINS = "takes part"
REFUSED = "refused"
COUNTS = ExampleCounts(5)
OPEN_TO_ALL = Admission()


@dataclass(frozen=True)
class Case:
    """A row of the table: what a client that asks for "north" shows, and what both ends say; "..." stands for anything.

    Attributes:
        client: the client's message after "server HOST:PORT: "; empty where it takes part.
        at_server: whether the server's log and audit log say the same; otherwise the handshake fails before it knows anybody.
    """

    shows: str
    client: str = ""
    at_server: bool = False

    @property
    def outcome(self) -> str:
        return REFUSED if self.client else JOINS


NOT_ACCEPTED = "it does not accept the certificate --tls-cert ..."
NOT_ASKED = "not for the client id 'north' that it asks for"

CERTIFICATES = [
    Case("its own certificate"),
    Case("its own, renewed during the run"),
    Case("a certificate of several ids, its own among them"),
    Case("a certificate with the URI feddkd:north"),
    Case("a certificate without alternative names, with the common name north"),
    Case(
        "the certificate of another client",
        f"the certificate of this client is for south, {NOT_ASKED}",
        True,
    ),
    Case(
        "a certificate whose name differs in case",
        f"the certificate of this client is for North, {NOT_ASKED}",
        True,
    ),
    Case("no certificate", "it admits only clients with a certificate: give one with --tls-cert and --tls-key"),
    Case(
        "an expired certificate",
        f"{NOT_ACCEPTED}: it has expired on ..., and this machine's clock says ...",
    ),
    Case(
        "a certificate that is not yet valid",
        f"{NOT_ACCEPTED}: it is not valid before ..., and this machine's clock says ...",
    ),
    Case("a revoked certificate", "the certificate of this client (north, serial number ...) is revoked", True),
    Case("a certificate of another CA", f"{NOT_ACCEPTED}: the CA in --tls-ca ... has not signed it"),
    Case(
        "the certificate of a server",
        f"{NOT_ACCEPTED}: it is for a server, or the server's --tls-client-ca is another one than --tls-ca, "
        "or its clock differs from this machine's",
    ),
    Case("its own, to a server whose certificate is for another host", "its certificate is for another host name than 127.0.0.1"),
    Case("its own, to a server whose certificate has expired", "its certificate has expired"),
    Case("its own, to a server of another CA", "its certificate is not trusted by --tls-ca ... (unable to get local issuer certificate)"),
]

TOKENS = [
    Case("its token, at its first join"),
    Case("its token once more, or none, from the same state directory"),
    Case("the same after a restart of the server"),
    Case("no token, at its first join", "this server asks for a join token at a client's first join: give it with --join-token-file", True),
    Case("another token", "the join token is not that of client id 'north'", True),
    Case("the token of another client", "the join token is not that of client id 'north'", True),
    Case(
        "a token that was used, from another state directory",
        "the join token of 'north' was used at ... by another process of this id, and is good for one only: "
        "have another one made, or join with the state directory of before",
        True,
    ),
]


class Taken(NoAudit):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.refusals: list[tuple[str, str]] = []

    def refused(self, client_id: str, address: str, kind: str, reason: str, certificate: object, unsaid: int) -> None:
        self.refusals.append((client_id, reason))


@dataclass
class Place:
    """Certificates of a CA for everything that the table needs; `other` is a CA that nobody trusts."""

    pki: Pki
    other: Pki
    shown: dict[str, Path | None] = field(default_factory=dict)
    servers: dict[str, Path] = field(default_factory=dict)

    def tls_of(self, shows: str) -> ClientTls | None:
        file = self.shown[shows]
        return client_tls(self.pki.ca, file, file.with_suffix(".key") if file is not None else None)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    pki, other = Pki(tmp_path_factory.mktemp("ca")), Pki(tmp_path_factory.mktemp("other"), "other CA")
    names = [case.shows for case in CERTIFICATES]
    files = [
        pki.client("north"),
        pki.client("renewed", ["north"]),
        pki.client("several", ["east", "north", "west"]),
        pki.handmade("by-uri", uri="feddkd:north"),
        pki.handmade("north", file="by-common-name"),
        pki.client("south"),
        pki.client("North"),
        None,
        pki.client("expired", ["north"], starts=NOW - 20 * DAY, days=5),
        pki.client("later", ["north"], starts=NOW + 5 * DAY),
        pki.client("revoked", ["north"]),
        other.client("north"),
        pki.server("server"),
    ]
    shown = dict(zip(names, [*files, *[files[0]] * 3], strict=True))
    pki.revoke("revoked")
    servers = {
        names[-3]: pki.server("elsewhere", ["fed.example.org"]),
        names[-2]: pki.server("old", starts=NOW - 20 * DAY, days=5),
        names[-1]: other.server(),
    }
    return Place(pki, other, shown, servers)


@contextmanager
def serving(security: ServerSecurity, admission: Admission = OPEN_TO_ALL) -> Iterator[tuple[FederationServer, str]]:
    server = FederationServer(pb.Manifest(run_id="run"), FakeInbox(), admission=admission)
    address = f"127.0.0.1:{server.start('127.0.0.1', 0, security)}"
    try:
        yield server, address
    finally:
        server.stop()


def security_of(place: Place, shows: str = "", audit: AuditSink | None = None, *, any_certificate: bool = False) -> ServerSecurity:
    file = place.servers.get(shows, place.pki.folder / "server.pem")
    tls = server_tls(file, file.with_suffix(".key"), place.pki.ca, crl=place.pki.crl, any_certificate=any_certificate)
    return ServerSecurity(tls, audit=audit or NoAudit())


def join(
    address: str,
    tls: ClientTls | None,
    *,
    instance: str = "secret",
    client_id: str = "north",
    token: str = "",
    classes: Sequence[str] = (),
) -> None:
    """Join as a client does. Raises TransportError."""

    async def joining() -> None:
        async with ServerConnection(address, tls) as connection:
            await connection.join(client_id, COUNTS, instance, classes, token)

    asyncio.run(joining())


def pattern_of(message: str) -> str:
    return ".*".join(map(re.escape, message.split("...")))


@pytest.mark.parametrize("case", CERTIFICATES, ids=lambda case: case.shows)
def test_a_certificate_admits_its_own_ids_and_no_other(place: Place, case: Case, caplog: pytest.LogCaptureFixture) -> None:
    taken = Taken()
    with serving(security_of(place, case.shows, taken)) as (server, address):
        if case.shows == "its own, renewed during the run":
            join(address, place.tls_of(case.shows))
            place.pki.renew("renewed")
        check(case, taken, caplog, lambda: join(address, place.tls_of(case.shows)))
        assert [session.client_id for session in server.sessions()] == ([] if case.client else ["north"])


def check(case: Case, taken: Taken, caplog: pytest.LogCaptureFixture, attempt: Callable[[], None]) -> None:
    """Check that an attempt comes to what the table says, at both ends."""
    if not case.client:
        attempt()
        assert taken.refusals == []
        return
    with pytest.raises(RefusedError, match=f"^server 127\\.0\\.0\\.1:\\d+: {pattern_of(case.client)}$"):
        attempt()
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("refused")]
    assert len(taken.refusals) == len(said) == int(case.at_server)
    for (client_id, reason), line in zip(taken.refusals, said, strict=True):
        assert client_id == "north"
        assert re.fullmatch(pattern_of(case.client), reason)
        assert re.fullmatch(f"refused north at ipv4:127\\.0\\.0\\.1:\\d+: {pattern_of(case.client)}", line)


def test_another_ones_certificate_is_enough_where_the_server_asks_for_no_name(place: Place) -> None:
    with serving(security_of(place, any_certificate=True)) as (_, address):
        join(address, place.tls_of("the certificate of another client"))
        with pytest.raises(TransportError, match="another process owns the client id 'north'"):
            join(address, place.tls_of("its own certificate"), instance="another")
        with pytest.raises(RefusedError, match="is revoked"):
            join(address, place.tls_of("a revoked certificate"), client_id="revoked")


def test_a_session_token_is_of_no_use_with_the_certificate_of_another_client(place: Place) -> None:
    taken = Taken()
    with serving(security_of(place, audit=taken)) as (server, address):

        async def steal() -> None:
            async with ServerConnection(address, place.tls_of("its own certificate")) as connection:
                token = (await connection.join("north", COUNTS, "secret")).session_token
            async with (
                ServerConnection(address, place.tls_of("the certificate of another client")) as thief,
                thief.participate(token) as stream,
            ):
                async for _ in stream.messages():
                    pass

        with pytest.raises(RefusedError, match=f"is for south, {NOT_ASKED}"):
            asyncio.run(steal())
        assert [client_id for client_id, _ in taken.refusals] == ["north"]
        assert server.connected() == []


@pytest.mark.parametrize("end", ["client", "server"])
def test_a_certificate_that_is_renewed_during_a_run_needs_no_restart(tmp_path: Path, end: str) -> None:
    pki = Pki(tmp_path)
    server_file, file = pki.server(), pki.client("north")
    security = ServerSecurity(server_tls(server_file, server_file.with_suffix(".key"), pki.ca))
    tls = client_tls(pki.ca, file, file.with_suffix(".key"))
    with serving(security) as (server, address):

        async def take_part() -> list[bytes | None]:
            found = []
            async with ServerConnection(address, tls) as connection:
                for instance in ("first", "started again without its state directory"):
                    await connection.join("north", COUNTS, instance)
                    (session,) = server.sessions()
                    found.append(session.owner.certificate)
                    pki.renew("north" if end == "client" else "server")
            return found

        before, after = asyncio.run(take_part())
        assert (before != after) == (end == "client")
        assert shown_by(address, pki.ca) == server_file.read_text()


def shown_by(address: str, ca: Path) -> str:
    """Return the certificate that a server shows to a new connection."""
    import socket
    import ssl

    from feddkd.transport.tls_problems import host_and_port

    context = ssl.create_default_context(cafile=str(ca))
    host, port = host_and_port(address)
    with socket.create_connection((host, port)) as connection, context.wrap_socket(connection, server_hostname=host) as secure:
        der = secure.getpeercert(binary_form=True)
    assert der is not None
    return ssl.DER_cert_to_PEM_cert(der)


@pytest.mark.parametrize("broken", [b"", b"-----BEGIN CERTIFICATE-----\nMIIB", b"\xff\x00"])
def test_a_half_written_file_keeps_the_last_good_one_with_one_warning(
    tmp_path: Path, broken: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    pki = Pki(tmp_path)
    server_file, file = pki.server(), pki.client("north")
    good = server_file.read_text()
    tls = client_tls(pki.ca, file, file.with_suffix(".key"))
    with serving(ServerSecurity(server_tls(server_file, server_file.with_suffix(".key"), pki.ca))) as (_, address):
        server_file.write_bytes(broken)
        file.write_bytes(broken)
        for instance in ("one", "two"):
            join(address, tls, instance=instance)
        assert shown_by(address, pki.ca) == good
    said = [record.getMessage() for record in caplog.records if "stays in use" in record.getMessage()]
    assert len([line for line in said if str(server_file) in line]) == 1
    assert len([line for line in said if str(file) in line]) == 1


class Clock:
    def __init__(self) -> None:
        self.now = utc_now()

    def __call__(self) -> datetime.datetime:
        return self.now


@pytest.mark.parametrize("event", ["revoked", "expired"])
def test_a_stream_ends_when_its_certificate_is_revoked_or_has_expired(tmp_path: Path, event: str) -> None:
    pki, clock = Pki(tmp_path / "ca"), Clock()
    server_file, file = pki.server(), pki.client("north")
    crl = tmp_path / "crl.pem"
    shutil.copy(pki.crl, crl)
    tls = client_tls(pki.ca, file, file.with_suffix(".key"))
    with serving(ServerSecurity(server_tls(server_file, server_file.with_suffix(".key"), pki.ca, crl=crl, clock=clock))) as (
        server,
        address,
    ):

        async def take_part() -> None:
            async with ServerConnection(address, tls) as connection:
                joined = await connection.join("north", COUNTS, "secret")
                async with connection.participate(joined.session_token) as stream:
                    await asyncio.to_thread(until_connected, server)
                    await asyncio.wrap_future(server.call(server.check_certificates()))
                    assert [session.client_id for session in server.connected()] == ["north"]
                    if event == "revoked":
                        pki.revoke("north")
                        shutil.copy(pki.crl, crl)
                    else:
                        clock.now += 100 * DAY
                    await asyncio.wrap_future(server.call(server.check_certificates()))
                    with pytest.raises(UnreachableError, match=r"certificate of this client .* (is revoked|has expired on)"):
                        async for _ in stream.messages():
                            pass
                with pytest.raises(RefusedError if event == "revoked" else UnreachableError, match=event):
                    await connection.join("north", COUNTS, "secret")
                if event == "expired":
                    clock.now -= 100 * DAY  # a clock that jumped ends nobody's part for good
                    await connection.join("north", COUNTS, "secret")

        asyncio.run(take_part())


def until_connected(server: FederationServer) -> None:
    """Wait for the server's loop to have taken in the stream."""
    until(server, lambda: bool(server.connected()))


def until(server: FederationServer, is_so: Callable[[], bool]) -> None:
    """Wait for something that happens on the server's loop."""

    async def waiting() -> None:
        while not is_so():  # noqa: ASYNC110 - nobody sets an event for tests
            await asyncio.sleep(0)

    server.call(waiting()).result(30.0)


def test_a_list_that_becomes_unreadable_stays_in_use_and_one_of_another_ca_is_refused_at_the_start(
    tmp_path: Path, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    file = place.pki.folder / "server.pem"
    for content, problem in ((b"nothing", "holds no list of revoked"), (place.other.crl.read_bytes(), "of another CA")):
        crl = tmp_path / "crl.pem"
        crl.write_bytes(content)
        with pytest.raises(Exception, match=problem):
            server_tls(file, file.with_suffix(".key"), place.pki.ca, crl=crl)
        crl.write_bytes(place.pki.crl.read_bytes())
        tls = server_tls(file, file.with_suffix(".key"), place.pki.ca, crl=crl)
        with serving(ServerSecurity(tls)) as (server, address):
            crl.write_bytes(content)
            server.call(server.check_certificates()).result()
            with pytest.raises(RefusedError, match="is revoked"):
                join(address, place.tls_of("a revoked certificate"))
            join(address, place.tls_of("its own certificate"))
        assert problem in caplog.text
        assert "stays in use" in caplog.text


def test_a_list_past_its_next_update_locks_nobody_out_and_is_named_once(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    clock.now += 400 * DAY  # beyond the list's next update, and within no certificate: only the list is looked at
    file = place.pki.folder / "server.pem"
    tls = server_tls(file, file.with_suffix(".key"), place.pki.ca, crl=place.pki.crl, clock=clock)
    assert tls is not None
    caplog.clear()
    for _ in range(3):
        tls.policy.refresh()
    assert len([record for record in caplog.records if "is out of date since" in record.getMessage()]) == 1


@pytest.mark.parametrize("case", TOKENS, ids=lambda case: case.shows)
def test_a_join_token_admits_one_client_once(tmp_path: Path, case: Case, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "tokens.json"
    token, others = JoinTokens(file).make("north"), JoinTokens(file).make("south")
    caplog.set_level(logging.DEBUG)
    taken = Taken()
    joins: dict[str, list[tuple[str, str]]] = {  # instance and token; the last one is what the case is about
        TOKENS[0].shows: [("one", token)],
        TOKENS[1].shows: [("one", token), ("one", token), ("one", "")],
        TOKENS[2].shows: [("one", token), ("one", "")],
        TOKENS[3].shows: [("one", "")],
        TOKENS[4].shows: [("one", "fdk_" + "A" * 43)],
        TOKENS[5].shows: [("one", others)],
        TOKENS[6].shows: [("one", token), ("two", token)],
    }
    *before, (instance, shown) = joins[case.shows]
    with serving(ServerSecurity(tokens=JoinTokens(file))) as (_, address):
        for earlier_instance, earlier_token in before:
            join(address, None, instance=earlier_instance, token=earlier_token)
    # A server that has just started holds the id for nobody: only the file speaks.
    with serving(ServerSecurity(tokens=JoinTokens(file), audit=taken)) as (server, address):
        check(case, taken, caplog, lambda: join(address, None, instance=instance, token=shown))
        assert [session.client_id for session in server.sessions()] == ([] if case.client else ["north"])
    assert token not in file.read_text()
    assert token not in caplog.text


def test_a_client_that_is_refused_leaves_nothing_behind_and_learns_nothing_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, no_token = tmp_path / "tokens.json", "this server asks for a join token at a client's first join"
    token, south = JoinTokens(file).make("north"), JoinTokens(file).make("south")
    monkeypatch.setattr("feddkd.transport.sessions.CONNECT_TIMEOUT_S", 1000.0)
    admission = Admission(expected=frozenset({"north", "south", "west"}), max_examples_of={"north": 5, "west": 1}, max_clients=1)
    with serving(ServerSecurity(tokens=JoinTokens(file)), admission) as (server, address):
        with pytest.raises(RefusedError, match=no_token):
            join(address, None, instance="thief", classes=["evil"])
        assert server.classes.names == ()
        join(address, None, token=token, classes=["cat", "dog"])
        answers = set()
        # It is taken, it is expected but full, it has too many examples, nobody expects it, its classes are others.
        for asked, classes in (("north", []), ("south", []), ("west", []), ("nobody", []), ("south", ["secret"])):
            with pytest.raises(RefusedError) as refused:
                join(address, None, instance="thief", client_id=asked, classes=classes)
            answers.add(str(refused.value))
        assert len(answers) == 1
        with pytest.raises(TransportError, match="1 clients have joined"):
            join(address, None, client_id="south", token=south)
        assert [session.client_id for session in server.sessions()] == ["north"]
        assert not JoinTokens(file).all()["south"].used


def test_a_client_with_classes_of_its_own_that_is_refused_for_another_reason_sets_none(place: Place) -> None:
    with serving(security_of(place), Admission(max_examples=4)) as (server, address):
        with pytest.raises(RefusedError, match="5 examples"):
            join(address, place.tls_of("its own certificate"), classes=["evil"])
        assert server.classes.names == ()


def test_who_is_long_away_stays_while_strangers_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feddkd.transport.sessions.ID_HOLD_S", 0.0)
    file = tmp_path / "tokens.json"
    token, other = JoinTokens(file).make("north"), JoinTokens(file).make("south")
    with serving(ServerSecurity(tokens=JoinTokens(file)), Admission(max_clients=1)) as (server, address):

        async def take_part() -> None:
            async with ServerConnection(address) as connection:
                joined = await connection.join("north", COUNTS, "secret", (), token)
                async with connection.participate(joined.session_token):
                    await asyncio.to_thread(until_connected, server)

        asyncio.run(take_part())
        until(server, lambda: not server.connected())
        with pytest.raises(RefusedError, match="asks for a join token"):
            join(address, None, client_id="south")
        assert [session.client_id for session in server.sessions()] == ["north"]
        join(address, None, client_id="south", token=other)
        assert [session.client_id for session in server.sessions()] == ["south"]


def test_the_documentation_has_the_same_tables() -> None:
    lines = DOCS.read_text().splitlines()
    for case in (*CERTIFICATES, *TOKENS):
        where = "both ends" if case.at_server else "the client" if case.client else ""
        assert f"| {case.shows} | {case.outcome} | {case.client} | {where} |" in lines


def test_the_audit_log_says_who_came_and_who_was_refused(tmp_path: Path, place: Place) -> None:
    with AuditLog(tmp_path / "audit.jsonl", "run") as audit, serving(security_of(place, audit=audit)) as (_, address):
        join(address, place.tls_of("its own certificate"))
        for _ in range(3):  # said once
            with pytest.raises(RefusedError):
                join(address, place.tls_of("the certificate of another client"))
    joined, refused = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert (joined["event"], joined["client"], joined["certificate"]["names"]) == ("joined", "north", ["north"])
    assert (refused["event"], refused["client"], refused["kind"]) == ("refused", "north", "identity")
    assert refused["certificate"]["subject"] == "CN=south"
    assert refused["peer"].startswith("ipv4:127.0.0.1:")
    assert verify(tmp_path / "audit.jsonl").lines == 2


def test_a_damaged_file_of_tokens_is_named_at_the_start_and_admits_nobody_later(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    with pytest.raises(StateError, match="there are no join tokens"):
        JoinTokens(file).check_file()
    token = JoinTokens(file).make("north")
    with serving(ServerSecurity(tokens=JoinTokens(file))) as (_, address):
        file.write_text("{")
        with pytest.raises(TransportError, match=r"tokens\.json is damaged"):
            join(address, None, token=token)
    with pytest.raises(StateError, match="is damaged"):
        JoinTokens(file).check_file()


def test_the_server_answers_others_while_the_file_of_tokens_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, asked, go_on = tmp_path / "tokens.json", threading.Event(), threading.Event()
    token = JoinTokens(file).make("north")

    def wait(_: JoinTokens, __: int) -> None:
        asked.set()
        assert go_on.wait(30.0)

    with serving(ServerSecurity(tokens=JoinTokens(file))) as (server, address), ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(JoinTokens, "_lock", wait)
        joining = pool.submit(join, address, None, token=token)
        assert asked.wait(30.0)
        assert server.answers(30.0)
        with pytest.raises(RefusedError, match="is not that of client id 'south'"):
            join(address, None, client_id="south", token="fdk_" + "A" * 43)
        go_on.set()
        joining.result(30.0)
        assert [session.client_id for session in server.sessions()] == ["north"]


@pytest.mark.parametrize("kind", [*DAMAGES, "older list"])
def test_a_revocation_holds_whatever_becomes_of_the_files(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No look by hand: a join itself reads what has changed, and a watch that has ended would never end the stream."""
    monkeypatch.setattr("feddkd.transport.server.CERTIFICATE_CHECK_S", 0.01)
    pki, crl, ca = Pki(tmp_path / "ca"), tmp_path / "crl.pem", tmp_path / "client-ca.pem"
    server_file, north, south = pki.server(), pki.client("north"), pki.client("south")
    old = pki.crl.read_bytes()
    pki.revoke("north")
    crl.write_bytes(pki.crl.read_bytes())
    ca.write_bytes(pki.ca.read_bytes())
    of = {file.stem: client_tls(pki.ca, file, file.with_suffix(".key")) for file in (north, south)}
    tls = server_tls(server_file, server_file.with_suffix(".key"), ca, crl=crl)
    with serving(ServerSecurity(tls)) as (server, address):

        async def take_part() -> None:
            async with ServerConnection(address, of["south"]) as connection:
                joined = await connection.join("south", COUNTS, "secret")
                async with connection.participate(joined.session_token) as stream:
                    await asyncio.to_thread(until_connected, server)
                    crl.write_bytes(old if kind == "older list" else damaged(pki.crl.read_bytes(), kind))
                    if kind in DAMAGES:
                        ca.write_bytes(damaged(pki.ca.read_bytes(), kind) + pki.ca.read_bytes())
                    with pytest.raises(RefusedError, match=r"is revoked|does not accept"):  # gRPC may not take the CAs
                        await asyncio.to_thread(join, address, of["north"])
                    server.call(server.check_certificates()).result(30.0)
                    ca.write_bytes(pki.ca.read_bytes())
                    pki.revoke("south")
                    crl.write_bytes(pki.crl.read_bytes())
                    with pytest.raises(UnreachableError, match="is revoked"):
                        async for _ in stream.messages():
                            pass

        asyncio.run(take_part())


def test_the_watch_goes_on_after_any_error_and_names_it_once(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("feddkd.transport.server.CERTIFICATE_CHECK_S", 0.0)
    looks = list[int]()

    async def fail(_: FederationServer) -> None:
        looks.append(1)
        raise OverflowError("too long")

    monkeypatch.setattr(FederationServer, "check_certificates", fail)
    with serving(security_of(place)) as (server, _):
        until(server, lambda: len(looks) >= 3)
    assert [record.getMessage() for record in caplog.records].count("the certificates of connected clients could not be checked") == 1


@pytest.mark.parametrize("kind", ["version", "curve", "time", "octets of an extension"])
def test_a_damaged_certificate_of_the_server_leaves_the_last_good_one_in_use(tmp_path: Path, kind: str) -> None:
    pki = Pki(tmp_path)
    server_file, file = pki.server(), pki.client("north")
    with serving(ServerSecurity(server_tls(server_file, server_file.with_suffix(".key"), pki.ca))) as (_, address):
        tls = client_tls(pki.ca, file, file.with_suffix(".key"))
        for each in (server_file, file):
            each.write_bytes(damaged(each.read_bytes(), kind))
        for instance in ("one", "two"):
            join(address, tls, instance=instance)


def test_a_client_whose_certificate_was_renewed_in_time_goes_on_when_the_old_one_ends(tmp_path: Path) -> None:
    pki, clock = Pki(tmp_path), Clock()
    server_file, file = pki.server(), pki.client("north")
    tls = client_tls(pki.ca, file, file.with_suffix(".key"))
    with serving(ServerSecurity(server_tls(server_file, server_file.with_suffix(".key"), pki.ca, clock=clock))) as (server, address):

        async def take_part() -> None:
            async with ServerConnection(address, tls) as connection:
                joined = await connection.join("north", COUNTS, "secret")
                async with connection.participate(joined.session_token) as stream:
                    await asyncio.to_thread(until_connected, server)
                    pki.renew("north")
                    clock.now += 40 * DAY  # the old one had 30 days, the new one has 60
                    server.call(server.check_certificates()).result(30.0)
                    with pytest.raises(UnreachableError, match="has expired on"):
                        async for _ in stream.messages():
                            pass
                joined = await connection.join("north", COUNTS, "secret")
                async with connection.participate(joined.session_token):
                    await asyncio.to_thread(until_connected, server)
                    server.call(server.check_certificates()).result(30.0)
                    assert [session.client_id for session in server.connected()] == ["north"]

        asyncio.run(take_part())


@pytest.mark.parametrize("change", ["removed", "replaced"])
def test_a_token_that_is_taken_away_ends_the_stream_and_opens_no_other(tmp_path: Path, change: str) -> None:
    file = tmp_path / "tokens.json"
    token = JoinTokens(file).make("north")
    with serving(ServerSecurity(tokens=JoinTokens(file))) as (server, address):

        async def take_part() -> None:
            async with ServerConnection(address) as connection:
                joined = await connection.join("north", COUNTS, "secret", (), token)
                async with connection.participate(joined.session_token) as stream:
                    await asyncio.to_thread(until_connected, server)
                    if change == "removed":
                        JoinTokens(file).remove("north")
                    else:
                        JoinTokens(file).make("north")
                    with pytest.raises(UnreachableError, match="was removed or replaced"):
                        async for _ in stream.messages():
                            pass
                async with connection.participate(joined.session_token) as stream:
                    with pytest.raises(RefusedError, match="was removed or replaced"):
                        async for _ in stream.messages():
                            pass
                with pytest.raises(RefusedError, match="join token"):
                    await connection.join("north", COUNTS, "secret", (), token)

        asyncio.run(take_part())


def test_a_client_that_is_killed_is_lost_in_the_log_and_in_the_audit_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    audit_file = tmp_path / "audit.jsonl"
    with AuditLog(audit_file, "run") as audit, serving(ServerSecurity(audit=audit)) as (server, address):

        async def take_part() -> None:
            async with ServerConnection(address) as connection:
                joined = await connection.join("north", COUNTS, "secret")
                async with connection.participate(joined.session_token):  # leaving it cancels the call, as a kill does
                    await asyncio.to_thread(until_connected, server)

        asyncio.run(take_part())
        until(server, lambda: "lost" in audit_file.read_text())
    lines = [json.loads(line) for line in audit_file.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["joined", "lost"]
    assert [record.getMessage() for record in caplog.records].count(f"the stream of north ended: {lines[1]['reason']}") == 1


def test_a_stream_with_a_made_up_token_is_counted_and_said(tmp_path: Path) -> None:
    taken = Taken()
    with serving(ServerSecurity(audit=taken)) as (server, address):

        async def steal() -> None:
            async with ServerConnection(address) as connection, connection.participate("made up") as stream:
                async for _ in stream.messages():
                    pass

        for _ in range(3):
            with pytest.raises(UnreachableError, match="names no session"):
                asyncio.run(steal())
        assert server.refused() == {"session": 3}
        assert len(taken.refusals) == 1


def test_the_kinds_of_refusals_are_the_same_in_the_metric_and_in_the_documentation(place: Place) -> None:
    shown = ", ".join(f"`{kind}` ({meaning})" for kind, meaning in KINDS.items())
    (line,) = [line for line in METRICS.read_text().splitlines() if "`feddkd_refused_joins_total`" in line]
    assert shown in line
    *first, last = (f"`{kind}`" for kind in KINDS)
    assert f"`kind` is one of {', '.join(first)} and {last}," in " ".join(DOCS.read_text().split())
    metrics = ServiceMetrics(registry := CollectorRegistry())
    with serving(security_of(place)) as (server, address):
        metrics.watch(cast("Engine", server))
        with pytest.raises(RefusedError, match="is revoked"):
            join(address, place.tls_of("a revoked certificate"))
        found = {kind: registry.get_sample_value("feddkd_refused_joins_total", {"reason": kind}) for kind in get_args(Kind)}
    assert found == {**dict.fromkeys(KINDS, 0.0), "certificate": 1.0}


def test_a_client_of_an_intermediate_ca_takes_part_until_the_root_revokes_that_ca(tmp_path: Path) -> None:
    pki, other = Pki(tmp_path / "ca"), Pki(tmp_path / "other", "intermediate CA")
    server_file, intermediate, leaf = pki.server(), tmp_path / "intermediate.pem", other.client("north")
    root = tmp_path / "root.pem"
    key = pki.authority.key(b"")
    root.write_bytes(signed_ca(pki.authority.certificate, pki.authority.certificate, key))
    intermediate.write_bytes(signed_ca(other.authority.certificate, pki.authority.certificate, key))
    leaf.write_bytes(leaf.read_bytes() + intermediate.read_bytes())
    crl = tmp_path / "crl.pem"
    crl.write_bytes(pki.crl.read_bytes())
    tls = client_tls(pki.ca, leaf, leaf.with_suffix(".key"))
    with serving(ServerSecurity(server_tls(server_file, server_file.with_suffix(".key"), root, crl=crl))) as (_, address):
        join(address, tls)
        serial = Certificate.read(intermediate).serial
        crl.write_bytes(revocation_list(pki.authority.certificate, key, crl.read_bytes(), [serial], NOW, NOW + DAY))
        with pytest.raises(RefusedError, match=r"the certificate of a CA of this client \(.*intermediate CA, .*\) is revoked"):
            join(address, tls)


def test_a_theft_is_said_after_a_flood_of_made_up_ids_of_the_same_certificate(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feddkd.transport.refusals.BURST_OF_PEER", 2)
    taken = Taken()
    with serving(security_of(place, audit=taken), Admission(expected=frozenset({"north"}))) as (_, address):
        for client_id in ("one", "two", "three", "north"):
            with pytest.raises(RefusedError, match="is for south"):
                join(address, place.tls_of("the certificate of another client"), client_id=client_id)
    assert [client_id for client_id, _ in taken.refusals] == ["one", "two", "north"]
