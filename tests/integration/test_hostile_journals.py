"""A journal that somebody made up ends no command with more than one line, and makes none of them do harm."""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path

import pytest
from killed_runs import OVERRIDES

from feddkd import cli
from feddkd.config import Config
from feddkd.engines.resolve import resolve
from feddkd.exchange import DELIVER
from feddkd.scheduler.journal_lines import Header, first_line

RUN_ID = "made-up"
BYTES = dict.fromkeys(("payload_bytes_down", "payload_bytes_up", "wire_bytes_down", "wire_bytes_up"), 1)
STARTED = {"kind": "run_started", "rounds": 2, "available": {"a": {"labelled": 1}}}
FINISHED = {"kind": "run_finished", "other": BYTES, "not_delivered": {}}


def exchange_done(outcome: str = "", name: str = "local_train") -> dict[str, object]:
    record = {
        "id": {"run_id": RUN_ID, "round": 1, "attempt": 0, "name": name, "step": 0},
        **dict.fromkeys(("clients_selected", "clients_reported", "gradient_evaluations"), 1),
        **dict.fromkeys(("seconds", "client_seconds"), 0.5),
        **{key: {} for key in ("clients_missing", "metrics", "by_client", "lost")},
        **dict.fromkeys(("loss", "client_evaluation")),
        "traffic": BYTES,
    }
    return {"kind": "exchange_done", "record": record, "outcome": outcome}


def round_finished(model: str, number: int = 1) -> dict[str, object]:
    numbers = {"evaluation": None, "clients_reported": 1, "clients_missing": {}, "notes": {}, "examples": {"labelled": 1}}
    return {"kind": "round_finished", "round": number, **numbers, "model": model, "state": model}


def line(number: int, event: object, at_s: str = "1.5") -> bytes:
    """A line with the checksum that it should have."""
    start = f'{{"seq": {number}, "at_s": {at_s}, "time": 1.0'.encode()
    written = json.dumps(event).encode()
    return start + b', "crc32": %d, "event": ' % zlib.crc32(written, zlib.crc32(start)) + written + b"}\n"


def made_up(folder: Path, *lines: bytes) -> Path:
    config = resolve(Config.load(None, list(OVERRIDES)))
    folder.mkdir()
    (folder / "journal.jsonl").write_bytes(first_line(Header(RUN_ID, config.to_toml())) + b"".join(lines))
    return folder


COMMANDS = {
    "replay": ["replay"],
    "status": ["status"],
    "run": ["run", "--engine", "in-process", "--no-report", "--resume"],
}


def carry_out(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    """Returns the exit code; no other exception than the one that carries it gets out."""
    monkeypatch.setattr(sys, "argv", ["feddkd", *COMMANDS[command], str(folder)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def refusal(errors: str) -> list[str]:
    """The lines on standard error besides the first one of `feddkd run`, which says what is about to run."""
    return [said for said in errors.splitlines() if not said.startswith("feddkd run: going on with")]


CANNOT_FOLLOW = {
    "the end of the run alone": [FINISHED],
    "the end of the run before its rounds": [STARTED, FINISHED],
    "an exchange before a round": [STARTED, exchange_done()],
    "an exchange alone": [exchange_done()],
    "a delivery before a round": [STARTED, exchange_done(name=DELIVER)],
    "a finished round that did not begin": [STARTED, round_finished("a" * 64)],
    "a failed round that did not begin": [STARTED, {"kind": "round_failed", "round": 1, "attempt": 0, "reason": "x"}],
    "a late delivery alone": [
        {"kind": "delivered_late", "exchange": exchange_done()["record"]["id"], "clients": ["a"], "traffic": BYTES}  # type: ignore[index]
    ],
    "a delivery alone": [{"kind": "delivery_started", "cohort": {}, "absent": {}}],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("events", CANNOT_FOLLOW.values(), ids=CANNOT_FOLLOW)
def test_events_that_cannot_follow_each_other_are_refused_with_one_line(
    command: str, events: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made_up(tmp_path / "run", *(line(number, event) for number, event in enumerate(events)))
    before = (folder / "journal.jsonl").read_bytes()
    assert carry_out(command, folder, monkeypatch) == 1
    (said,) = refusal(capsys.readouterr().err)
    assert said.startswith("feddkd: ")
    assert [file.name for file in folder.iterdir()] == ["journal.jsonl"]
    assert (folder / "journal.jsonl").read_bytes() == before


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("content", [b"", b"{", first_line(Header(RUN_ID, "rounds = 2\n")).rstrip(b"\n"), b'{"format": 1}\n', b"[[" * 9**6])
def test_what_has_no_first_line_is_refused_with_one_line(
    command: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "journal.jsonl"
    file.write_bytes(content)
    assert carry_out(command, tmp_path, monkeypatch) == 1
    (said,) = refusal(capsys.readouterr().err)
    assert said.startswith(f"feddkd: {file} is not the journal of a run")
    assert file.read_bytes() == content


NOT_WHOLE = {
    "a time of 10^400": line(0, STARTED, at_s="1" + "0" * 400),
    "a time of 1e400": line(0, STARTED, at_s="1e400"),
    "a time that is no number": line(0, STARTED, at_s="NaN"),
    "the name of a blob with slashes": line(0, exchange_done(outcome="../../etc/passwd")),
    "the name of a model with slashes": line(0, round_finished("/" * 64)),
    "no event": line(0, "x"),
    "deep brackets": b"[" * 10**6 + b"\n",
}


@pytest.mark.parametrize("content", NOT_WHOLE.values(), ids=NOT_WHOLE)
def test_replay_names_a_line_that_says_what_no_journal_says_and_status_shows_what_is_before_it(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made_up(tmp_path / "run", content)
    assert carry_out("replay", folder, monkeypatch) == 1
    assert "line 2 is damaged" in " ".join(capsys.readouterr().out.split())
    assert carry_out("status", folder, monkeypatch) == 0
    assert [file.name for file in folder.iterdir()] == ["journal.jsonl"]


def test_a_run_goes_on_before_such_a_line_and_keeps_it_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = line(0, exchange_done(outcome="../../etc/passwd"))
    folder = made_up(tmp_path / "run", content)
    assert carry_out("run", folder, monkeypatch) == 0
    assert (folder / "journal.cut-1.jsonl").read_bytes() == content
    assert carry_out("replay", folder, monkeypatch) == 0
    assert "passwd" not in capsys.readouterr().out
