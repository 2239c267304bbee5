"""The audit log: what it holds, what a change to it comes to, and that it never ends a run."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from feddkd.cli import app
from feddkd.errors import StateError
from feddkd.observability.audit import MAX_LINE_BYTES, AuditLog, verify

EVENTS = 5


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of some events that two processes have written."""
    file = tmp_path / "audit.jsonl"
    for run in ("first", "second"):
        with AuditLog(file, run) as audit:
            audit.joined("north", "ipv4:10.0.0.1:5", None, 10, 0)
            audit.accepted("north", "round 1 local_train", 40, "sha256:00")
            audit.refused("south", "ipv4:10.0.0.2:6", "full", "no room", None, 3)
            audit.lost("north", "the connection is gone", 0)
            audit.left("north", 0)
    return file


def test_each_line_says_what_happened_in_which_run_and_holds_the_hash_of_the_one_before(log: Path) -> None:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["joined", "accepted", "refused", "lost", "left"] * 2
    assert [line["run"] for line in lines] == ["first"] * EVENTS + ["second"] * EVENTS
    assert all(line["time"].endswith("Z") for line in lines)
    assert lines[2]["not_listed_before"] == 3
    assert verify(log).lines == 2 * EVENTS
    assert log.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("number", range(2 * EVENTS - 1))
@pytest.mark.parametrize("change", ["edited", "removed", "repeated", "swapped"])
def test_a_change_of_any_line_but_the_last_is_found(log: Path, number: int, change: str) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    if change == "edited":
        lines[number] = lines[number].replace(b'"run"', b'"ran"')
    elif change == "removed":
        del lines[number]
    elif change == "repeated":
        lines.insert(number, lines[number])
    else:
        lines[number : number + 2] = reversed(lines[number : number + 2])
    log.write_bytes(b"".join(lines))
    with pytest.raises(StateError, match=r"audit\.jsonl, line \d+: it does not follow"):
        verify(log)


def test_the_last_hash_shows_lines_that_were_cut_off(log: Path) -> None:
    before = verify(log).last
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-1]))
    assert verify(log).last != before


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_a_line_that_a_crash_cut_off_is_kept_and_named_and_the_next_follows_it(log: Path, cut: int) -> None:
    content = log.read_bytes()[:-cut]
    log.write_bytes(content)
    with AuditLog(log, "third") as audit:
        audit.left("north", 0)
        audit.left("north", 0)
    assert log.read_bytes().startswith(content)
    found = verify(log)
    assert (found.lines, found.torn) == (2 * EVENTS + 2, () if cut == 1 else (2 * EVENTS,))


def test_a_full_disk_warns_once_and_leaves_a_gap_that_is_counted(
    log: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write = os.write

    def full(descriptor: int, content: bytes) -> int:
        return write(descriptor, content[:7])  # what was left of the disk

    with AuditLog(log, "third") as audit:
        monkeypatch.setattr(os, "write", full)
        audit.left("north", 0)
        monkeypatch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        audit.left("north", 0)
        monkeypatch.undo()
        audit.left("north", 0)
    assert len([record for record in caplog.records if "has a gap" in record.getMessage()]) == 1
    assert json.loads(log.read_text().splitlines()[-1])["missing_before"] == 2
    assert verify(log).lines == 2 * EVENTS + 1


@given(text=st.text(max_size=2_000), kind=st.sampled_from(["client", "reason"]))
def test_a_peers_text_stays_in_one_short_line(tmp_path_factory: pytest.TempPathFactory, text: str, kind: str) -> None:
    file = tmp_path_factory.mktemp("log") / "audit.jsonl"
    with AuditLog(file, "run") as audit:
        audit.refused(text if kind == "client" else "north", "ipv4:1", "invalid", text if kind == "reason" else "", None, 0)
    content = file.read_bytes()
    assert content.count(b"\n") == 1
    assert len(content) < MAX_LINE_BYTES
    assert content.rstrip(b"\n").decode("ascii").isprintable()


def test_the_command_prints_the_last_hash_and_fails_on_a_changed_file(log: Path) -> None:
    done = CliRunner().invoke(app, ["audit", "verify", str(log)])
    assert done.exit_code == 0
    assert verify(log).last in done.output
    log.write_bytes(log.read_bytes().replace(b"10.0.0.1", b"10.0.0.9"))
    assert isinstance(CliRunner().invoke(app, ["audit", "verify", str(log)]).exception, StateError)


@pytest.mark.parametrize("zeros", [1, 4096, 16 << 10, 40_000])
@pytest.mark.parametrize("cut", [0, 5])
def test_zeros_that_a_power_failure_leaves_at_the_end_are_no_change_of_the_log(log: Path, zeros: int, cut: int) -> None:
    before = log.read_bytes()
    whole = before[: len(before) - cut]
    log.write_bytes(whole + bytes(zeros))
    verify(log)  # before the next start, too
    for _ in range(2):
        with AuditLog(log, "run") as audit:
            audit.left("north", 0)
    assert verify(log).lines == before.count(b"\n") + 2
    assert b"\0" not in log.read_bytes()
