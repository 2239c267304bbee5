"""What a server says of clients that come and go: each one's events, and few of one that does so in a loop."""

from __future__ import annotations

import logging

import grpc
import pytest

from feddkd.exchange import ExampleCounts
from feddkd.log_events import EVENT
from feddkd.transport.audit_sink import NoAudit
from feddkd.transport.client_events import BURST, BURST_OF_HOST, PER_S, PER_S_OF_HOST, REMEMBERED, ClientEvents
from feddkd.transport.peer import Peer
from feddkd.transport.sessions import Session
from feddkd.transport.stream import CLIENT_IS_GONE, End

PEER = Peer("ipv4:10.0.0.1:1")
LOST = End(grpc.StatusCode.UNAVAILABLE, "the connection is gone")
DONE, GONE = End(grpc.StatusCode.OK, ""), End(grpc.StatusCode.OK, CLIENT_IS_GONE)


class Taken(NoAudit):
    """Remembers the lines: the event, the client, and how many were left out before."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, int]] = []

    def joined(self, client_id: str, address: str, certificate: object, examples: int, unsaid: int) -> None:
        self.lines.append(("joined", client_id, unsaid))

    def left(self, client_id: str, unsaid: int) -> None:
        self.lines.append(("left", client_id, unsaid))

    def ended(self, client_id: str, unsaid: int) -> None:
        self.lines.append(("ended", client_id, unsaid))

    def lost(self, client_id: str, reason: str, unsaid: int) -> None:
        self.lines.append(("lost", client_id, unsaid))


def test_a_client_that_comes_and_goes_in_a_loop_fills_neither_log_and_another_is_still_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    taken = Taken()
    events = ClientEvents(taken)
    north, south = Session("north", ExampleCounts(1)), Session("south", ExampleCounts(1))
    for _ in range(500):
        events.joined(north, PEER, "", 0.0)
        events.ended(north, PEER, End(grpc.StatusCode.INVALID_ARGUMENT, "not understood"), 0.0)
    assert len(taken.lines) == len(caplog.records) == BURST
    events.joined(south, PEER, "", 0.0)
    events.ended(north, PEER, LOST, 1 / PER_S)
    assert taken.lines[BURST:] == [("joined", "south", 0), ("lost", "north", 1000 - BURST)]


def test_ids_that_one_host_makes_up_are_bounded_in_lines_and_in_memory() -> None:
    taken = Taken()
    events = ClientEvents(taken)
    for number in range(BURST_OF_HOST + 2 * REMEMBERED):
        events.joined(Session(f"made-up-{number}", ExampleCounts(1)), PEER, "", 0.0)
    assert len(taken.lines) == BURST_OF_HOST
    assert len(events._unsaid) == REMEMBERED
    events.joined(Session("later", ExampleCounts(1)), PEER, "", 1 / PER_S_OF_HOST)
    assert taken.lines[-1] == ("joined", "later", 0)


@pytest.mark.parametrize(
    ("end", "leaves", "event", "logged"),
    [
        (DONE, True, "left", "client_left"),
        (DONE, False, "ended", None),
        (LOST, False, "lost", "client_lost"),
        (LOST, True, "lost", "client_lost"),
        (GONE, False, "lost", "client_lost"),
        (GONE, True, "left", "client_left"),
    ],
)
def test_an_event_has_one_meaning_in_the_log_and_in_the_audit_log(
    end: End, leaves: bool, event: str, logged: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    taken = Taken()
    ClientEvents(taken).ended(Session("north", ExampleCounts(1), leaves=leaves), PEER, end, 0.0)
    assert taken.lines == [(event, "north", 0)]
    assert [getattr(record, EVENT) for record in caplog.records] == ([logged] if logged else [])
