"""`status.json`: what a living process says of itself, and that it never harms the run."""

import errno
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, cast

import pytest

from feddkd.errors import RunError
from feddkd.observability.status_file import JOINING, MOST_CLIENTS, REPLIES, RETURNING, STATUS, LiveStatus, StatusFile, read_status
from feddkd.scheduler.engine import Engine
from feddkd.scheduler.records import ExchangeRecord, RunRecord

NEVER_S = 1e6


class StillEngine:
    """Answers what a status asks of an engine."""

    def __init__(self, heard: Mapping[str, float], waiting: list[str]) -> None:
        self.heard = heard
        self.waiting = waiting

    def last_heard(self) -> Mapping[str, float]:
        return self.heard

    def waiting_for(self) -> list[str]:
        return self.waiting

    def here(self) -> list[str]:
        return sorted(self.heard)


def watching(folder: Path, engine: object | None = None, command: str = "") -> StatusFile:
    """A status that is written only when the test says so."""
    status = StatusFile(folder, command, every_s=NEVER_S)
    if engine is not None:
        status.engine_ready(cast("Engine", engine))
    return status


def written(folder: Path) -> LiveStatus:
    found = read_status(folder)
    assert found is not None
    return found


def fail(*_: Any, **__: Any) -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_process_that_waits_for_clients_says_so_at_once(tmp_path: Path) -> None:
    with watching(tmp_path):
        assert written(tmp_path).waits_for == JOINING


def test_it_says_whose_reply_is_awaited_and_when_each_client_was_heard(tmp_path: Path) -> None:
    status = watching(tmp_path, StillEngine({"b": 2.04, "a": 0.5}, ["a"]), command="feddkd server x.toml")
    status.run_started("run", 3)
    assert status.write()
    found = written(tmp_path)
    assert (found.waits_for, found.waiting_for, found.num_waiting) == (REPLIES, ["a"], 1)
    assert found.last_heard_s == {"a": 0.5, "b": 2.0}
    assert (found.connected, found.here, found.known, found.command) == (2, ["a", "b"], 2, "feddkd server x.toml")


def test_a_pause_is_told_until_the_next_round_begins(tmp_path: Path) -> None:
    status = watching(tmp_path, StillEngine({}, []))
    status.run_resumed("run", 3, 1, 2, None)
    status.write()
    assert written(tmp_path).waits_for == RETURNING
    status.paused("round 2 needs 3 clients, 1 is connected")
    status.write()
    assert written(tmp_path).waits_for == "round 2 needs 3 clients, 1 is connected"
    assert written(tmp_path).paused
    status.round_started(2, 0, 3)
    status.write()
    assert written(tmp_path).waits_for == ""
    assert not written(tmp_path).paused


def test_whom_a_process_that_goes_on_waits_for_is_told_until_an_exchange_is_done(tmp_path: Path) -> None:
    status = watching(tmp_path, StillEngine({}, []))
    status.run_resumed("run", 3, 1, 2, None)
    status.waiting("waiting up to 120 s for site-b to come back")
    status.write()
    assert written(tmp_path).waits_for == "waiting up to 120 s for site-b to come back"
    status.exchange_done(cast("ExchangeRecord", None))
    status.write()
    assert written(tmp_path).waits_for == ""


def test_the_last_version_says_why_the_process_ended(tmp_path: Path) -> None:
    with watching(tmp_path) as status:
        assert written(tmp_path).ended == ""
        status.run_failed("stopped by SIGTERM\x1b[2J")
    assert written(tmp_path).ended == "stopped by SIGTERM\\x1b[2J"
    with watching(tmp_path) as status:
        assert written(tmp_path).ended == ""  # another process
        status.run_done(cast("RunRecord", None))
    assert written(tmp_path).ended == "all rounds are done"


def test_of_very_many_clients_those_that_were_heard_last_are_listed(tmp_path: Path) -> None:
    names = [f"client-{number:04}" for number in range(MOST_CLIENTS + 5)]
    status = watching(tmp_path, StillEngine({name: float(number) for number, name in enumerate(names)}, names))
    status.write()
    found = written(tmp_path)
    assert list(found.last_heard_s) == names[:MOST_CLIENTS]
    assert (len(found.waiting_for), found.num_waiting, found.known) == (MOST_CLIENTS, MOST_CLIENTS + 5, MOST_CLIENTS + 5)


def test_an_engine_that_was_aborted_leaves_the_rest_of_the_file(tmp_path: Path) -> None:
    class Aborted(StillEngine):
        def waiting_for(self) -> list[str]:
            raise RunError("stopped")

    status = watching(tmp_path, Aborted({"a": 1.0}, []))
    status.run_failed("stopped")
    assert status.write()
    assert (written(tmp_path).ended, written(tmp_path).last_heard_s) == ("stopped", {})


def test_a_full_disk_costs_nothing_but_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with watching(tmp_path) as status:
        status.run_failed("the status of an earlier process")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", fail)
        with watching(tmp_path):
            assert list(tmp_path.iterdir()) == []  # what the earlier process said is not said of this one
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_leaves_the_last_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with watching(tmp_path) as status:
        status.run_failed("late words")
        monkeypatch.setattr(Path, "write_text", fail)
        assert not status.write()
    assert written(tmp_path).ended == ""
    assert [file.name for file in tmp_path.iterdir()] == [STATUS]


def test_the_file_is_written_again_and_again(tmp_path: Path) -> None:
    asked = threading.Semaphore(0)

    class Counting(StillEngine):
        def last_heard(self) -> Mapping[str, float]:
            asked.release()
            return {}

    status = StatusFile(tmp_path, every_s=0.001)
    status.engine_ready(cast("Engine", Counting({}, [])))
    with status:
        for _ in range(5):
            assert asked.acquire(timeout=60)


@pytest.mark.parametrize("content", ["", "{", "[]", json.dumps({"pid": -1, "time": 0}), json.dumps({"pid": 1, "time": "x"})])
def test_what_cannot_be_read_says_nothing(content: str, tmp_path: Path) -> None:
    (tmp_path / STATUS).write_text(content)
    assert read_status(tmp_path) is None
