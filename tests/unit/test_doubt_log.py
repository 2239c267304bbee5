"""Doubts about clients are logged when they come, and not again by what reads the journal."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest

from feddkd.exchange import ExampleCounts, ExchangeId
from feddkd.scheduler.events import Event, ExchangeDone, RoundStarted, RunStarted
from feddkd.scheduler.journal import Entry, NoJournal
from feddkd.scheduler.records import ExchangeRecord
from feddkd.scheduler.run_log import RunLog
from feddkd.scheduler.state import RunState, fold
from feddkd.traffic import Traffic

SITES = dict.fromkeys("abcd", ExampleCounts(10, 0))
CALM = {"a": 0.0, "b": 0.02, "c": 0.04, "d": 0.5}


def exchange(step: int, round_number: int = 1, running: int = 0) -> ExchangeDone:
    """One in which the labels of d stand out and, if it is `running`, the contributions of a."""
    where = ExchangeId("run", round_number, 0, "local_train", step)
    by_client = {"label_disagreement": CALM}
    stood_out, named = ({"a": running}, ("a",)) if running else ({}, ())
    return ExchangeDone(
        ExchangeRecord(where, 4, 4, {}, Traffic(), 0.1, 0.1, 1, None, None, {}, by_client, outliers=stood_out, named_outliers=named)
    )


BEGUN: tuple[Event, ...] = (RunStarted(3, SITES), RoundStarted(1, 0, None, None))


class Kept(NoJournal):
    """The events of an earlier process."""

    def __init__(self, events: Sequence[Event]) -> None:
        super().__init__("run")
        self._kept = [Entry(event, 0.0, 0.0) for event in events]

    @property
    def entries(self) -> list[Entry]:
        return self._kept


def test_doubts_are_logged_as_they_come_and_once(caplog: pytest.LogCaptureFixture) -> None:
    log = RunLog(NoJournal("run"), RunState("run", 1), [])
    for event in (*BEGUN, exchange(0, 1), exchange(1, 2, running=5), exchange(2, 3, running=6), exchange(3, 4)):
        log.happen(event)
    assert caplog.messages == [
        "round 2 local_train: the contributions of a stood out in 5 exchanges in a row: far longer than those of others, or far from them",
        "the labels of d may be wrong: its teacher contradicts 50 % of them, the median site's 3 % (round 3)",
    ]


def test_what_reads_a_journal_logs_no_old_doubt_and_a_process_that_goes_on_only_new_ones(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    events = (*BEGUN, exchange(0, 1), exchange(1, 2, running=5))
    assert fold(Kept(events).entries, "run", 1).outliers == {"a": 2}
    log = RunLog(Kept(events), RunState("run", 1), [])
    log.take_in_history()
    assert caplog.messages == []
    log.happen(exchange(2, 3, running=6))
    (line,) = caplog.messages
    assert line.startswith("the labels of d may be wrong")
