"""What a server says of those that it refuses: each once, and few in a flood."""

from __future__ import annotations

import logging

import grpc
import pytest

from feddkd.transport.refusals import BURST, PER_S, REPEAT_AFTER_S, NotAdmittedError, Refusals
from feddkd.transport.register import NoRegister

FULL = NotAdmittedError(grpc.StatusCode.RESOURCE_EXHAUSTED, "no room", kind="full")


class Taken(NoRegister):
    def __init__(self) -> None:
        self.unsaid: list[int] = []

    def refused(self, client_id: str, address: str, kind: str, reason: str, certificate: object, unsaid: int) -> None:
        self.unsaid.append(unsaid)


def test_a_peer_that_is_refused_for_one_reason_is_named_once_in_an_hour(caplog: pytest.LogCaptureFixture) -> None:
    taken = Taken()
    refusals = Refusals(taken)
    for port in range(100):
        refusals.take(FULL, f"ipv4:10.0.0.1:{port}", "north", None, now=float(port))
    refusals.take(FULL, "ipv4:10.0.0.2:1", "north", None, now=100.0)
    refusals.take(FULL, "ipv4:10.0.0.1:1", "south", None, now=100.0)
    refusals.take(FULL, "ipv4:10.0.0.1:1", "north", None, now=REPEAT_AFTER_S)
    assert taken.unsaid == [0, 99, 0, 0]
    assert refusals.counts == {"full": 103}
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 4


def test_a_flood_of_joins_under_ever_other_names_fills_neither_log_nor_memory(caplog: pytest.LogCaptureFixture) -> None:
    taken = Taken()
    refusals = Refusals(taken)
    flood = 20_000
    for number in range(flood):
        refusals.take(FULL, f"ipv4:10.0.0.1:{number}", f"made-up-{number}", None, now=0.0)
    assert len(taken.unsaid) == len(caplog.records) == BURST
    refusals.take(FULL, "ipv4:10.0.0.9:1", "late", None, now=1 / PER_S)
    assert taken.unsaid[-1] == flood - BURST
    assert len(refusals._said) <= BURST + 1
    assert refusals.counts == {"full": flood + 1}


def test_a_peers_name_is_cut_and_escaped(caplog: pytest.LogCaptureFixture) -> None:
    Refusals(NoRegister()).take(FULL, "ipv4:10.0.0.1:1", "\x1b[2J" + "x" * 100_000, None, now=0.0)
    assert len(caplog.messages[0]) < 300
    assert caplog.messages[0].isprintable()
