"""`feddkd replay`: it finds whatever is damaged, says where a run would go on, and changes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from killed_runs import cut_after, finished_run, last_round_ended, round_2_averaged, round_2_began, snapshot
from typer.testing import CliRunner

from feddkd import cli
from feddkd.cli.replay import as_object, replayed
from feddkd.config import Config
from feddkd.config.toml import parse_toml
from feddkd.scheduler.events import Event, ExchangeDone, RoundFinished
from feddkd.scheduler.inspection import inspect
from feddkd.scheduler.journal_file import FileJournal
from feddkd.scheduler.journal_lines import JOURNAL, read_journal
from feddkd.scheduler.recovery import resume


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run, and beside it every blob that it ever had."""
    folder = tmp_path_factory.mktemp("runs")
    finished_run(folder / "finished", folder / "blobs")
    return folder


@pytest.fixture
def folder(runs: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may change."""
    return Path(shutil.copytree(runs / "finished", tmp_path / "run"))


def replay(folder: Path, *options: str) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(cli.app, ["replay", str(folder), "--json", *options])
    return done.exit_code, json.loads(done.stdout)


def flip(file: Path, place: int) -> None:
    """Change one bit of a file."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(bytes(content))


def append(file: Path, content: bytes) -> None:
    with file.open("ab") as stream:
        stream.write(content)


def newest(folder: Path, name: str) -> Path:
    """The file of the newest round's model or state."""
    events = [entry.event for entry, _ in read_journal(folder)[1]]
    last = [event for event in events if isinstance(event, RoundFinished)][-1]
    return folder / "blobs" / f"{getattr(last, name)}.safetensors"


def first_open_outcome(folder: Path) -> Path:
    """The file of the outcome that the journal ends with."""
    last = read_journal(folder)[1][-1][0].event
    assert isinstance(last, ExchangeDone)
    return folder / "blobs" / f"{last.outcome}.safetensors"


def test_a_finished_run_is_as_its_summary_says(folder: Path) -> None:
    code, found = replay(folder)
    summary = json.loads((folder / "summary.json").read_text())
    assert (code, found["problems"], found["is_finished"], found["goes_on"]) == (0, [], True, "")
    assert found["model_sha256"] == summary["model_sha256"]
    shared = found.keys() & summary.keys() - {"exchanges", "seconds"}
    assert {key: found[key] for key in shared} == {key: summary[key] for key in shared}
    assert found["exchanges"] == {"local_train": 2, "dkd_step": 4, "deliver": 1}
    assert found["blobs_checked"] == 4
    assert set(found["compared"]) == {"exchanges.jsonl", "rounds.jsonl", "summary.json", "model.safetensors"}


@pytest.mark.parametrize(
    ("after", "goes_on"),
    [
        (round_2_began, "with round 2"),
        (round_2_averaged, "after round 2 local_train"),
        (last_round_ended, "with the delivery of the final model"),
    ],
)
def test_it_says_where_a_run_that_was_killed_goes_on(after: Callable[[Event], bool], goes_on: str, runs: Path, folder: Path) -> None:
    cut_after(folder, after, runs / "blobs")
    for name in ("exchanges.jsonl", "rounds.jsonl", "summary.json"):
        (folder / name).unlink()
    code, found = replay(folder)
    assert (code, found["problems"], found["is_finished"], found["goes_on"]) == (0, [], False, goes_on)


def test_a_record_that_is_behind_a_run_that_was_killed_is_no_damage(folder: Path) -> None:
    cut_after(folder, last_round_ended)
    for name in ("exchanges.jsonl", "rounds.jsonl"):
        lines = (folder / name).read_text().splitlines(keepends=True)
        (folder / name).write_text("".join(lines[:-2]) + '{"cut')
    code, found = replay(folder)
    assert (code, found["problems"]) == (0, [])
    assert len(found["notes"]) == 4  # each file is short, and ends with a piece of a line


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a line of the journal": (lambda run: flip(run / JOURNAL, (run / JOURNAL).stat().st_size - 30), "journal.jsonl line"),
    "the newest model": (lambda run: flip(newest(run, "model"), -1), "is damaged: its SHA-256"),
    "the newest state": (lambda run: flip(newest(run, "state"), 20), "is damaged: its SHA-256"),
    "a model that is missing": (lambda run: newest(run, "model").unlink(), "is missing"),
    "a model of no length": (lambda run: newest(run, "model").write_bytes(b""), "is damaged: its SHA-256"),
    "a line of exchanges": (lambda run: flip(run / "exchanges.jsonl", 10), "exchanges.jsonl line 1 is not what the journal says: round"),
    "a line of rounds that is no JSON": (lambda run: flip(run / "rounds.jsonl", 0), "rounds.jsonl line 1"),
    "a line too many": (lambda run: append(run / "rounds.jsonl", b"{}\n"), "has 3 lines, the journal 2"),
    "a line too few": (lambda run: (run / "rounds.jsonl").write_text(""), "has 0 lines, the journal 2"),
    "the summary": (lambda run: (run / "summary.json").write_text("{}"), "summary.json is not what the journal says: algorithm"),
    "the model of the record": (lambda run: flip(run / "model.safetensors", -1), "model.safetensors is not the model of the last round"),
    "no model in the record": (lambda run: (run / "model.safetensors").write_bytes(b"x"), "model.safetensors cannot be read"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_named_and_left_as_it_is(what: str, folder: Path) -> None:
    damage, words = DAMAGES[what]
    damage(folder)
    before = snapshot(folder)
    code, found = replay(folder)
    assert code == 1
    assert found["is_damaged"]
    assert any(words in problem for problem in found["problems"]), found["problems"]
    assert snapshot(folder) == before


@pytest.mark.parametrize("what", ["the newest model", "the newest state", "an outcome", "nothing", "every model", "the end of the journal"])
@pytest.mark.parametrize("after", [round_2_averaged, last_round_ended])
def test_a_run_goes_on_where_replay_says(what: str, after: Callable[[Event], bool], runs: Path, folder: Path) -> None:
    cut_after(folder, after, runs / "blobs")
    match what:
        case "an outcome" if after is round_2_averaged:
            flip(first_open_outcome(folder), 9)
        case "every model":
            for file in (folder / "blobs").iterdir():
                flip(file, 0)
        case "the end of the journal":
            flip(folder / JOURNAL, -9)
        case "the newest model" | "the newest state":
            flip(newest(folder, what.split()[-1]), -1)
    code, said = replay(folder)
    assert (code == 0) == (said["problems"] == [])
    header, _ = read_journal(folder)
    resume(folder, Config.parse(parse_toml(header.config, "a test"))).close()
    assert len(read_journal(folder)[1]) == said["events_kept"] + 1  # and the event that another process goes on
    assert as_object(replayed(folder, folder))["model_sha256"] == said["model_sha256"]


def test_the_piece_of_a_line_that_a_crash_leaves_is_no_damage(folder: Path) -> None:
    append(folder / JOURNAL, b'{"seq": 99, "at_s"')
    code, found = replay(folder)
    assert (code, found["problems"]) == (0, [])
    assert "ends with 18 bytes of a line" in found["notes"][0]


@given(data=st.data())
def test_no_bit_of_an_event_changes_unseen(data: st.DataObject, runs: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Times and checksums included; the first line is checked when a run goes on, against its configuration."""
    content = bytearray((runs / "finished" / JOURNAL).read_bytes())
    place = data.draw(st.integers(content.index(b"\n") + 1, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    folder = tmp_path_factory.mktemp("flipped")
    (folder / JOURNAL).write_bytes(content)
    shutil.copytree(runs / "finished" / "blobs", folder / "blobs")
    whole = len(read_journal(runs / "finished")[1])
    found = inspect(folder, quorum=3)
    assert found.problems or found.notes
    assert len(found.entries) < whole


def test_a_record_elsewhere_is_compared_when_it_is_named(folder: Path, tmp_path: Path) -> None:
    record = tmp_path / "record"
    record.mkdir()
    for name in ("exchanges.jsonl", "rounds.jsonl", "summary.json", "model.safetensors"):
        (folder / name).rename(record / name)
    assert replay(folder)[1]["compared"] == {}
    code, found = replay(folder, "--out", str(record))
    assert (code, len(found["compared"])) == (0, 4)


def test_a_run_that_is_running_can_be_replayed(folder: Path) -> None:
    journal = FileJournal.open(folder)
    assert replay(folder)[0] == 0
    journal.close()


def test_a_person_reads_what_is_wrong(folder: Path) -> None:
    done = CliRunner().invoke(cli.app, ["replay", str(folder)])
    assert "everything is as the journal says" in done.stdout
    flip(newest(folder, "model"), -1)
    done = CliRunner().invoke(cli.app, ["replay", str(folder)])
    assert done.exit_code == 1
    assert "DAMAGED" in done.stdout
    assert "goes on" in done.stdout
