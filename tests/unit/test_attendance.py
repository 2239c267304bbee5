"""What the record says of each site and of the time, and that it can be hidden."""

from __future__ import annotations

import json
import re
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import THREE, ScriptedEngine, Setup, number

from feddkd.config import Config
from feddkd.observability.ledger import Ledger
from feddkd.observability.run_folder import RunFolder
from feddkd.scheduler.attendance import Attendance, Presence
from feddkd.text import utc_time

MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def record_of(out: Path, *overrides: str) -> tuple[RunFolder, dict[str, Any]]:
    config = Config.load(overrides=["rounds=2", *overrides])
    with closing(Ledger(out, config)) as ledger:
        setup = Setup(ScriptedEngine(THREE, {(2, 0, "first"): {"c"}}), "scheduler.min_clients=2", *overrides)
        setup.scheduler._log._observers.add(ledger)
        setup.scheduler.run(number(0))
    return RunFolder.load(out), json.loads((out / "summary.json").read_text())


def test_the_record_says_when_and_who(tmp_path: Path) -> None:
    folder, summary = record_of(tmp_path)
    times = [line.time for line in folder.exchanges] + [line.time for line in folder.rounds]
    assert all(time is not None and MOMENT.fullmatch(time) for time in times)
    assert sorted(line.time or "" for line in folder.exchanges) == [line.time for line in folder.exchanges]
    assert summary["started"] <= folder.exchanges[0].time <= summary["ended"]
    assert {client: own["rounds"] for client, own in summary["presence"].items()} == {"a": 2, "b": 2, "c": 1}
    assert summary["presence"]["a"]["first"] < summary["presence"]["a"]["last"] or summary["presence"]["a"]["rounds"] == 2
    first = next(line for line in folder.exchanges if line.by_client)
    assert first.by_client["client_examples"] == {"a": 10.0, "b": 10.0, "c": 10.0}
    assert first.by_client.keys() >= {"client_accuracy", "client_loss", "seconds"}


def test_what_belongs_to_single_sites_can_be_hidden(tmp_path: Path) -> None:
    folder, summary = record_of(tmp_path, "scheduler.share_client_metrics=false")
    assert all(not line.by_client for line in folder.exchanges)
    assert (summary["examples"], summary["presence"], summary["doubtful_labels"]) == ({}, {}, {})
    assert folder.rounds[-1].client_examples is not None or folder.rounds[-1].accuracy is None  # means stay


@given(attempts=st.lists(st.tuples(st.sets(st.sampled_from("abc")), st.booleans()), max_size=8))
def test_attendance_counts_a_round_once_and_keeps_the_first_and_the_last(attempts: list[tuple[set[str], bool]]) -> None:
    attendance, number, seen = Attendance(), 1, []
    for moment, (clients, succeeds) in enumerate(attempts, start=1):
        attendance.see(number, sorted(clients), float(moment))
        seen.append((number, clients, float(moment)))
        number += succeeds
    for client in "abc":
        there = [(number, moment) for number, clients, moment in seen if client in clients]
        expected = Presence(len({number for number, _ in there}), there[0][1], there[-1][1]) if there else None
        assert attendance.known.get(client) == expected


@pytest.mark.parametrize(("at_s", "text"), [(0.0, None), (1.5, "1970-01-01T00:00:01.500Z"), (1_796_000_000.25, "2026-11-30T00:53:20.250Z")])
def test_a_moment_is_written_in_utc(at_s: float, text: str | None) -> None:
    assert utc_time(at_s) == text
