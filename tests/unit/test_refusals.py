"""What a server says of those that it refuses: each once, and few in a flood."""

from __future__ import annotations

import datetime
import logging

import grpc
import pytest

from feddkd.certs.certificate import Certificate
from feddkd.transport.audit_sink import NoAudit
from feddkd.transport.peer import Peer
from feddkd.transport.refusals import BURST, BURST_OF_CLIENT, BURST_OF_PEER, PER_S, REPEAT_AFTER_S, NotAdmittedError, RefusalLog

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
FULL = NotAdmittedError(grpc.StatusCode.RESOURCE_EXHAUSTED, "no room", kind="full")


class Taken(NoAudit):
    def __init__(self) -> None:
        self.unsaid: list[int] = []
        self.clients: list[str] = []

    def refused(self, client_id: str, address: str, kind: str, reason: str, certificate: object, unsaid: int) -> None:
        self.unsaid.append(unsaid)
        self.clients.append(client_id)


def test_a_peer_that_is_refused_for_one_reason_is_named_once_in_an_hour(caplog: pytest.LogCaptureFixture) -> None:
    taken = Taken()
    refusals = RefusalLog(taken)
    for port in range(100):
        refusals.take(FULL, Peer(f"ipv4:10.0.0.1:{port}"), "north", now=float(port))
    refusals.take(FULL, Peer("ipv4:10.0.0.2:1"), "north", now=100.0)
    refusals.take(FULL, Peer("ipv4:10.0.0.1:1"), "south", now=100.0)
    refusals.take(FULL, Peer("ipv4:10.0.0.1:1"), "north", now=REPEAT_AFTER_S)
    assert taken.unsaid == [0, 99, 0, 0]
    assert refusals.counts == {"full": 103}
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 4


def test_a_flood_of_joins_under_ever_other_names_fills_neither_log_nor_memory(caplog: pytest.LogCaptureFixture) -> None:
    taken = Taken()
    refusals = RefusalLog(taken)
    flood = 20_000
    for number in range(flood):
        refusals.take(FULL, Peer(f"ipv4:10.0.0.1:{number}"), f"made-up-{number}", now=0.0)
    assert len(taken.unsaid) == len(caplog.records) == BURST_OF_PEER
    refusals.take(FULL, Peer("ipv4:10.0.0.9:1"), "late", now=1 / PER_S)
    assert taken.unsaid[-1] == flood - BURST_OF_PEER
    assert len(refusals._said) <= BURST_OF_PEER + 1
    assert refusals.counts == {"full": flood + 1}


def test_a_peers_name_is_cut_and_escaped(caplog: pytest.LogCaptureFixture) -> None:
    RefusalLog(NoAudit()).take(FULL, Peer("ipv4:10.0.0.1:1"), "\x1b[2J" + "x" * 100_000, now=0.0)
    assert len(caplog.messages[0]) < 300
    assert caplog.messages[0].isprintable()


def with_certificate(name: str) -> Peer:
    return Peer("ipv4:10.0.0.1:1", certificate=Certificate(NOW, NOW, sha256=name.encode()))


@pytest.mark.parametrize(
    ("flooding", "other"),
    [(Peer("ipv4:10.0.0.1:1"), Peer("ipv4:10.0.0.2:1")), (with_certificate("south"), with_certificate("west"))],
    ids=["hosts", "certificates behind one host"],
)
def test_a_flood_of_one_peer_hides_neither_another_peer_nor_what_it_does_to_a_client_of_the_run(flooding: Peer, other: Peer) -> None:
    taken = Taken()
    refusals = RefusalLog(taken)
    for number in range(BURST_OF_PEER + 10):
        refusals.take(FULL, flooding, f"made-up-{number}", now=0.0)
    refusals.take(FULL, flooding, "north", now=0.0, is_known=True)
    refusals.take(FULL, other, "made-up", now=0.0)
    assert taken.clients[BURST_OF_PEER:] == ["north", "made-up"]


def test_floods_from_ever_other_hosts_are_bounded_in_all_and_for_each_client_of_the_run() -> None:
    taken = Taken()
    refusals = RefusalLog(taken)
    for number in range(2 * BURST):
        refusals.take(FULL, Peer(f"ipv4:10.0.{number >> 8}.{number & 255}:1"), "north", now=0.0, is_known=True)
    assert len(taken.clients) == BURST + BURST_OF_CLIENT
