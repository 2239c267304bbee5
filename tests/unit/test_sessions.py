"""The table of sessions: whom it finds, whom it forgets, and what that costs."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from fake_streams import EXCHANGE, NotJoinedError, Server, clock, run, settle
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from pki import self_signed

from feddkd.exchange import ExampleCounts
from feddkd.traffic import Meter
from feddkd.transport.admission import Admission
from feddkd.transport.messages import CLIENT_HEARTBEAT, Verdict, hello_message, receipt_message
from feddkd.transport.sessions import (
    CONNECT_TIMEOUT_S,
    ID_HOLD_S,
    NOBODY,
    Outgoing,
    Owner,
    Session,
    Sessions,
)
from feddkd.transport.stream import Stream

PEM, OTHER_PEM = self_signed("one"), self_signed("two")
IDS = ("a", "b", "c", "d", "e", "f")
LIMIT = 4


class Table(RuleBasedStateMachine):
    """Clients come and go at will; the table must agree with what they remember."""

    def __init__(self) -> None:
        super().__init__()
        self.sessions = Sessions()
        self.now = 0.0
        self.tokens: dict[str, tuple[Session, str]] = {}

    @rule(seconds=st.sampled_from([1.0, 9.0, 34.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(
        client=st.sampled_from(IDS),
        instance=st.sampled_from(["x", "y"]),
        certificate=st.sampled_from([None, b"1", b"2"]),
    )
    def join(self, client: str, instance: str, certificate: bytes | None) -> None:
        self.sessions.expire(self.now)
        known = self.sessions.find(client)
        if known is None and not self.sessions.make_room(client, LIMIT, self.now):
            assert len(self.sessions) == LIMIT
            for session in self.sessions.all():
                away = session.has_connected and session.stream is None
                assert not away or session.owner.certificate or session.silent_s(self.now) < 70
            return
        if known is not None and known.stream is not None:
            self.sessions.disconnect(known, self.now)
        owner = Owner.of(instance, certificate)
        self.tokens[client] = self.sessions.add(client, ExampleCounts(1), owner, self.now)
        session, token = self.tokens[client]
        assert self.sessions.of_token(token) is session

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def connect(self, data: st.DataObject) -> None:
        _, token = self.tokens[data.draw(st.sampled_from(sorted(self.tokens)))]
        session = self.sessions.of_token(token)
        if session is not None:
            if session.stream is not None:
                self.sessions.disconnect(session, self.now)
            self.sessions.connect(session, Stream(self.now))

    @precondition(lambda self: self.sessions.connected())
    @rule(data=st.data())
    def disconnect(self, data: st.DataObject) -> None:
        connected = self.sessions.connected()
        self.sessions.disconnect(data.draw(st.sampled_from(connected)), self.now)

    @invariant()
    def every_session_has_one_id_and_one_token(self) -> None:
        sessions = self.sessions.all()
        ids = [session.client_id for session in sessions]
        assert ids == sorted(set(ids))
        assert len(ids) == len(self.sessions) <= LIMIT
        for session in sessions:
            assert self.sessions.find(session.client_id) is session
            assert self.tokens[session.client_id][0] is session
            assert self.sessions.of_token(self.tokens[session.client_id][1]) is session

    @invariant()
    def the_connected_are_those_with_a_stream(self) -> None:
        expected = [session for session in self.sessions.all() if session.stream is not None]
        assert self.sessions.connected() == expected

    @invariant()
    def the_present_are_connected_or_were_a_moment_ago(self) -> None:
        for grace_s in (0.0, 5.0, 20.0):
            since = self.now - grace_s
            expected = [
                session
                for session in self.sessions.all()
                if session.stream is not None or (session.has_connected and session.lost_at > since)
            ]
            assert self.sessions.present(since) == expected

    @invariant()
    def a_forgotten_session_opens_nothing(self) -> None:
        for client, (session, token) in self.tokens.items():
            if self.sessions.find(client) is not session:
                assert self.sessions.of_token(token) is None

    @invariant()
    def ids_of_a_certificate_are_counted(self) -> None:
        for certificate in (b"1", b"2"):
            bound = [s for s in self.sessions.all() if s.owner.certificate == certificate]
            assert self.sessions.held_by(certificate) == len(bound)

    @invariant()
    def connected_clients_are_never_forgotten(self) -> None:
        for session, _ in self.tokens.values():
            assert session.stream is None or self.sessions.find(session.client_id) is session


TestTable = Table.TestCase
TestTable.settings = settings(max_examples=60, stateful_step_count=40)


def filled(count: int, now: float = 0.0) -> tuple[Sessions, list[str]]:
    """A table with so many connected sessions, and their tokens."""
    sessions = Sessions()
    tokens = []
    for number in range(count):
        session, token = sessions.add(f"site-{number}", ExampleCounts(1), NOBODY, now)
        sessions.connect(session, Stream(now))
        tokens.append(token)
    return sessions, tokens


def steps_of(action: Callable[[], object]) -> int:
    """How many lines of Python, and calls out of Python, an action takes.

    The collector rests meanwhile: other libraries have callbacks of its own to count.
    """
    steps = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal steps
        steps += 1
        return trace

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal steps
        steps += event == "c_call"

    previous = sys.gettrace()
    gc.collect()
    gc.disable()
    sys.settrace(trace)
    sys.setprofile(profile)
    try:
        action()
    finally:
        sys.setprofile(None)
        sys.settrace(previous)
        gc.enable()
    return steps


@pytest.mark.no_cover  # it counts steps by the same hooks
def test_a_join_and_a_hello_cost_the_same_with_many_sessions() -> None:
    def costs(count: int) -> list[int]:
        sessions, tokens = filled(count)
        known = sessions.of_token(tokens[count // 2])
        assert known is not None

        def join() -> None:
            sessions.expire(1.0)
            assert sessions.find("new") is None
            assert sessions.make_room("new", 10**6, 1.0)
            sessions.add("new", ExampleCounts(1), NOBODY, 1.0)

        return [
            steps_of(lambda: sessions.of_token(tokens[count // 2])),
            steps_of(lambda: sessions.disconnect(known, 1.0)),
            steps_of(lambda: sessions.connect(known, Stream(1.0))),
            steps_of(join),
            steps_of(lambda: sessions.make_room("newer", count, 1.0)),
        ]

    assert costs(20_000) == costs(100)


def test_expiring_is_spread_over_many_joins() -> None:
    sessions = Sessions()
    for number in range(1_000):
        sessions.add(f"made-up-{number}", ExampleCounts(1), NOBODY, 0.0)
    assert steps_of(lambda: sessions.expire(CONNECT_TIMEOUT_S)) < 500
    while len(sessions):
        before = len(sessions)
        sessions.expire(CONNECT_TIMEOUT_S)
        assert len(sessions) < before


def test_made_up_ids_make_room_after_ten_seconds() -> None:
    async def flood() -> None:
        server = Server(Admission(max_clients=30))
        for number in range(30):
            await server.join(f"made-up-{number}")
        with pytest.raises(NotJoinedError, match="30 clients have joined"):
            await server.join("honest-site")
        await clock().pass_time(CONNECT_TIMEOUT_S)
        await server.join("honest-site")
        for number in range(10):
            await server.join(f"later-{number}")
        expired = server.server.session("made-up-0")
        assert expired is None
        await server.close()

    run(flood())


def test_clients_that_are_long_away_make_room_when_the_table_is_full() -> None:
    async def fill() -> None:
        server = Server(Admission(max_clients=2))
        away, connected = await server.connect("away"), await server.connect("connected")
        away.half_close()
        await settle()
        with pytest.raises(NotJoinedError, match="2 clients have joined"):
            await server.join("new")
        for _ in range(4):
            await clock().pass_time(ID_HOLD_S / 4)
            connected.bring(CLIENT_HEARTBEAT)
        await server.join("new")
        assert [session.client_id for session in server.server.sessions()] == ["connected", "new"]
        await server.close()

    run(fill())


def test_an_id_that_is_bound_to_a_certificate_makes_no_room() -> None:
    async def fill() -> None:
        server = Server(Admission(max_clients=1))
        away, _ = server.open(hello_message(await server.join("site", certificate=PEM)))
        await settle()
        away.half_close()
        await clock().pass_time(100 * ID_HOLD_S)
        with pytest.raises(NotJoinedError, match="1 clients have joined"):
            await server.join("new")
        await server.close()

    run(fill())


def test_a_client_whose_session_made_room_joins_again() -> None:
    async def come_late() -> None:
        server = Server()
        token = await server.join("slow")
        await clock().pass_time(CONNECT_TIMEOUT_S)
        server.open(hello_message(token))  # nobody needed the room: still welcome
        await settle()
        assert server.inbox.events == ["slow connected"]
        forgotten = await server.join("slower")
        await clock().pass_time(CONNECT_TIMEOUT_S)
        await server.join("other")
        refused, _ = server.open(hello_message(forgotten))
        await settle()
        assert "join first" in refused.reason()
        await server.connect("slower")
        await server.close()

    run(come_late())


def test_one_certificate_holds_a_bounded_number_of_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    async def join_many() -> None:
        server = Server()
        for number in range(3):
            await server.join(f"site-{number}", certificate=PEM)
        with pytest.raises(NotJoinedError, match="with this certificate"):
            await server.join("site-3", certificate=PEM)
        await server.join("site-2", certificate=PEM)  # it holds this one already
        await server.join("site-3", certificate=OTHER_PEM)
        await server.close()

    monkeypatch.setattr("feddkd.transport.joining.MAX_IDS_OF_A_CERTIFICATE", 3)
    run(join_many())


def test_what_is_sent_to_a_client_that_is_away_is_dropped() -> None:
    session = Session("site", ExampleCounts(1))
    session.send(Outgoing((receipt_message(EXCHANGE, Verdict.VERDICT_OK),), Meter()))
    session.send_work(Outgoing((b"work",), Meter()))
    assert session.stream is None


def test_a_place_is_kept_for_who_took_part_before_a_restart_until_it_is_away_for_long() -> None:
    sessions = Sessions()
    sessions.reserve({"member": Owner(b"m")}, now=0.0)
    assert not sessions.make_room("new", 1, 1.0)
    assert sessions.make_room("member", 1, 1.0)
    assert sessions.make_room("new", 1, 1.0 + ID_HOLD_S)
    sessions.add("new", ExampleCounts(1), NOBODY, 1.0 + ID_HOLD_S)
    assert not sessions.make_room("member", 1, 2.0 + ID_HOLD_S)


def test_a_place_that_is_bound_to_a_certificate_stays_reserved() -> None:
    sessions = Sessions()
    sessions.reserve({"member": Owner(None, b"c")}, now=0.0)
    assert not sessions.make_room("new", 1, 1000.0)
