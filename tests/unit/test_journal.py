"""The journal of a run, and what crashes, damage and full disks leave of it."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_events import events, same

from feddkd.errors import StateError
from feddkd.exchange import ExampleCounts, ExchangeId
from feddkd.failpoints import planned
from feddkd.scheduler.events import Event, ExchangeDone, RoundFailed, RoundStarted, RunFinished, RunStarted
from feddkd.scheduler.journal import NoJournal
from feddkd.scheduler.journal_file import FileJournal, is_open
from feddkd.scheduler.journal_lines import Header, has_journal, read_journal
from feddkd.scheduler.records import ExchangeRecord
from feddkd.traffic import Traffic

HEADER = Header("run-1", 'seed = 3\ntext = "é"\n')
THREE = (RunStarted(2, {"a": ExampleCounts(3)}), RoundFailed(1, 0, "é: \n lost", 4), RoundFailed(1, 1, "again", 5))
DONE = ExchangeDone(ExchangeRecord(ExchangeId("run-1", 1, 0, "x", 0), 1, 1, {}, Traffic(), 0.0, 0.0, 0, None, None, {}))


def begun(folder: Path, *happened: Event) -> FileJournal:
    journal = FileJournal.create(folder, HEADER, "exchange")
    for event in happened:
        journal.append(event)
    return journal


def events_of(folder: Path) -> list[Event]:
    return [entry.event for entry, _ in read_journal(folder)[1]]


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    """Of a journal of three events in `tmp_path`."""
    begun(tmp_path, *THREE).close()
    return (tmp_path / "journal.jsonl").read_bytes()


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(happened=st.lists(events, min_size=1, max_size=6))
def test_any_events_are_there_when_it_is_opened_again(tmp_path_factory: pytest.TempPathFactory, happened: list[Event]) -> None:
    folder = tmp_path_factory.mktemp("journal")
    begun(folder, *happened).close()
    with closing(FileJournal.open(folder)) as journal:
        assert journal.header == HEADER
        assert journal.run_id == "run-1"
        assert len(journal.entries) == len(happened)
        assert all(map(same, [entry.event for entry in journal.entries], happened))


def test_another_process_appends_behind_what_is_there_and_its_clock_goes_on(tmp_path: Path) -> None:
    begun(tmp_path, *THREE[:2]).close()
    with closing(FileJournal.open(tmp_path)) as journal:
        before = journal.entries[-1]
        entry = journal.append(THREE[2])
        assert entry.at_s >= before.at_s
    assert events_of(tmp_path) == list(THREE)
    assert [json.loads(line)["seq"] for line in (tmp_path / "journal.jsonl").read_text().splitlines()[1:]] == [0, 1, 2]


def test_every_line_is_json(content: bytes) -> None:
    first, *others = content.splitlines()
    assert json.loads(first) == {"format": 1, "run_id": "run-1", "config": HEADER.config}
    assert [json.loads(line)["event"]["kind"] for line in others] == ["run_started", "round_failed", "round_failed"]


def test_a_last_line_that_is_torn_at_any_byte_is_cut_off_and_kept_aside(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    start = content.rindex(b"\n", 0, -1) + 1
    for length in range(start, len(content)):
        file.write_bytes(content[:length])
        with closing(FileJournal.open(tmp_path)) as journal:
            assert [entry.event for entry in journal.entries] == list(THREE[:2])
        assert file.read_bytes() == content[:start]
        aside = tmp_path / "journal.cut-1.jsonl"
        assert aside.exists() == (length > start)
        if aside.exists():
            assert aside.read_bytes() == content[start:length]
            aside.unlink()


def test_after_a_torn_line_the_same_event_can_be_appended(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_bytes(content[:-3])
    with closing(FileJournal.open(tmp_path)) as journal:
        journal.append(THREE[2])
    assert events_of(tmp_path) == list(THREE)


def test_any_flipped_bit_of_an_event_ends_the_journal_before_it(content: bytes, tmp_path: Path) -> None:
    """The checksum covers the event; what stands before it is only when it happened."""
    lines = content.splitlines(keepends=True)
    for number, line in enumerate(lines[1:]):
        start = line.index(b', "event": ')
        before = sum(map(len, lines[: number + 1]))
        for position in range(start, len(line)):
            damaged = bytearray(content)
            damaged[before + position] ^= 1 << position % 8
            (tmp_path / "journal.jsonl").write_bytes(damaged)
            assert events_of(tmp_path) == list(THREE[:number]), (number, position)


def test_any_flipped_bit_before_an_event_changes_no_event(content: bytes, tmp_path: Path) -> None:
    lines = content.splitlines(keepends=True)
    for number, line in enumerate(lines[1:]):
        before = sum(map(len, lines[: number + 1]))
        for position in range(line.index(b', "event": ')):
            damaged = bytearray(content)
            damaged[before + position] ^= 1 << position % 8
            (tmp_path / "journal.jsonl").write_bytes(damaged)
            assert events_of(tmp_path) in (list(THREE[:number]), list(THREE)), (number, position)


def test_what_follows_a_damaged_line_is_kept_aside_and_not_lost(content: bytes, tmp_path: Path) -> None:
    lines = content.splitlines(keepends=True)
    damaged = lines[2].replace(b"lost", b"last")
    (tmp_path / "journal.jsonl").write_bytes(lines[0] + lines[1] + damaged + lines[3])
    (tmp_path / "journal.cut-1.jsonl").write_bytes(b"of before")
    with closing(FileJournal.open(tmp_path)) as journal:
        assert [entry.event for entry in journal.entries] == [THREE[0]]
    assert (tmp_path / "journal.cut-1.jsonl").read_bytes() == b"of before"
    assert (tmp_path / "journal.cut-2.jsonl").read_bytes() == damaged + lines[3]


@pytest.mark.parametrize("change", ["twice", "missing", "swapped"])
def test_events_out_of_order_are_not_taken(content: bytes, tmp_path: Path, change: str) -> None:
    first, a, b, c = content.splitlines(keepends=True)
    lines = {"twice": [first, a, a, b, c], "missing": [first, a, c], "swapped": [first, a, c, b]}[change]
    (tmp_path / "journal.jsonl").write_bytes(b"".join(lines))
    assert events_of(tmp_path) == [THREE[0]]


def test_a_line_of_control_characters_is_one_line(tmp_path: Path) -> None:
    event = RoundFailed(1, 0, "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\r")
    begun(tmp_path, event, THREE[2]).close()
    assert events_of(tmp_path) == [event, THREE[2]]


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (b'{"format": 2, "run_id": "run-1", "config": ""}', r"is of format 2; this version of feddkd reads format 1$"),
        (b'{"format": "\\u001b[2J", "run_id": "run-1", "config": ""}', r"is of format .*\[2J; this version of feddkd reads format 1$"),
        (b"", "is not the journal of a run: its first line is damaged$"),
        (b"{}", "is not the journal of a run: its first line is damaged$"),
        (b"[]", "is not the journal of a run: its first line is damaged$"),
        (b"\xff\x00", "is not the journal of a run: its first line is damaged$"),
        (b'{"format": 1, "run_id": 3, "config": ""}', "is not the journal of a run: its first line is damaged$"),
        (b'{"format": 1, "run_id": "a"}', "is not the journal of a run: its first line is damaged$"),
    ],
)
def test_what_is_no_journal_of_this_version_is_refused_by_name_and_not_changed(first: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    file.write_bytes(first + b"\nrest")
    with pytest.raises(StateError, match=message) as refused:
        FileJournal.open(tmp_path)
    assert str(file) in str(refused.value)
    assert str(refused.value).isprintable()
    assert file.read_bytes() == first + b"\nrest"
    assert not is_open(tmp_path)  # nothing is left that holds it


def test_there_is_none_where_none_was_begun(tmp_path: Path) -> None:
    assert not has_journal(tmp_path)
    with pytest.raises(StateError, match=f"cannot open {tmp_path / 'journal.jsonl'}: No such file"):
        FileJournal.open(tmp_path)


def test_a_second_one_is_not_begun_over_the_first(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(StateError, match=f"^{tmp_path} already holds the journal of a run$"):
        FileJournal.create(tmp_path, Header("other", ""), "exchange")
    assert (tmp_path / "journal.jsonl").read_bytes() == content
    assert names(tmp_path) == ["blobs", "journal.jsonl"]


def test_a_journal_that_was_cut_off_before_its_first_line_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl.partial").write_bytes(b'{"format"')
    assert not has_journal(tmp_path)
    begun(tmp_path, *THREE).close()
    assert events_of(tmp_path) == list(THREE)
    assert names(tmp_path) == ["blobs", "journal.jsonl"]


def test_a_second_opener_is_refused_as_long_as_the_first_has_it_open(tmp_path: Path) -> None:
    first = begun(tmp_path, *THREE)
    assert is_open(tmp_path)
    with pytest.raises(StateError, match=r"another process has .*journal\.jsonl open and is running this run$"):
        FileJournal.open(tmp_path)
    assert events_of(tmp_path) == list(THREE)  # whoever only reads is not refused
    first.close()
    first.close()
    assert not is_open(tmp_path)
    FileJournal.open(tmp_path).close()


def hold(folder: str, ready: multiprocessing.synchronize.Event) -> None:
    journal = FileJournal.open(Path(folder))
    ready.set()
    multiprocessing.Event().wait()
    journal.close()


def test_a_process_that_is_killed_lets_it_go(content: bytes, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=(str(tmp_path), ready))
    process.start()
    assert ready.wait(60)
    with pytest.raises(StateError, match="another process has"):
        FileJournal.open(tmp_path)
    process.kill()
    process.join()
    FileJournal.open(tmp_path).close()


@pytest.mark.parametrize("action", ["enospc", "eio"])
def test_after_a_write_that_failed_nothing_is_appended_until_it_is_opened_again(tmp_path: Path, action: str) -> None:
    journal = begun(tmp_path, *THREE[:2])
    with planned(f"journal.append.before_fsync={action}"), pytest.raises(StateError, match=r"^cannot write .*journal\.jsonl: "):
        journal.append(THREE[2])
    with pytest.raises(StateError, match=r"journal\.jsonl failed to be written before$"):
        journal.append(THREE[2])
    assert [entry.event for entry in journal.entries] == list(THREE[:2])
    journal.close()
    assert events_of(tmp_path) == list(THREE[:2])
    with closing(FileJournal.open(tmp_path)) as again:
        again.append(THREE[2])
    assert events_of(tmp_path) == list(THREE)


@pytest.mark.parametrize(
    ("durability", "event", "is_synced"),
    [
        ("exchange", DONE, True),
        ("round", DONE, False),
        ("exchange", RoundStarted(1, 0, None, None), True),
        ("exchange", THREE[1], True),
        ("round", THREE[1], True),
        ("round", RunFinished(Traffic(), {}), True),
    ],
)
def test_what_others_depend_on_is_on_the_disk_when_append_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: str, event: Event, is_synced: bool
) -> None:
    with closing(FileJournal.create(tmp_path, HEADER, durability)) as journal:  # type: ignore[arg-type]
        synced: list[int] = []
        monkeypatch.setattr("os.fsync", synced.append)
        journal.append(event)
        assert bool(synced) == is_synced
        assert events_of(tmp_path) == [event]


def test_by_round_only_checkpoints_are_stored(tmp_path: Path) -> None:
    with closing(FileJournal.create(tmp_path, HEADER, "round")) as journal:
        assert journal.store({"w": torch.ones(2)}) == ""
        assert list(journal.blobs.folder.iterdir()) == []
        name = journal.store({"w": torch.ones(2)}, checkpoint=True)
        assert journal.load(name).tensors["w"].tolist() == [1, 1]


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_events_that_are_cut_off_are_returned_and_kept_aside(content: bytes, tmp_path: Path, count: int) -> None:
    lines = content.splitlines(keepends=True)
    with closing(FileJournal.open(tmp_path)) as journal:
        assert journal.cut(count) == list(THREE[count:])
        assert [entry.event for entry in journal.entries] == list(THREE[:count])
        journal.append(THREE[2])
    assert events_of(tmp_path) == [*THREE[:count], THREE[2]]
    assert has_journal(tmp_path)
    aside = tmp_path / "journal.cut-1.jsonl"
    assert (aside.read_bytes() if aside.exists() else b"") == b"".join(lines[1 + count :])


def test_a_header_longer_than_a_block_is_found_again(tmp_path: Path) -> None:
    header = Header("run-1", "x" * (1 << 20))
    with closing(FileJournal.create(tmp_path, header, "exchange")) as journal:
        journal.append(THREE[0])
    with closing(FileJournal.open(tmp_path)) as journal:
        assert journal.header == header
        journal.cut(0)
        journal.append(THREE[1])
    assert events_of(tmp_path) == [THREE[1]]


def test_one_that_was_begun_and_left_without_an_event_is_deleted(tmp_path: Path) -> None:
    begun(tmp_path).close()
    assert names(tmp_path) == []
    begun(tmp_path, *THREE).close()


def test_one_whose_events_are_all_damaged_is_not_deleted(content: bytes, tmp_path: Path) -> None:
    first, *others = content.splitlines(keepends=True)
    (tmp_path / "journal.jsonl").write_bytes(first + b"x" + b"".join(others))
    FileJournal.open(tmp_path).close()
    assert (tmp_path / "journal.jsonl").read_bytes() == first
    assert (tmp_path / "journal.cut-1.jsonl").read_bytes() == b"x" + b"".join(others)


def test_without_a_journal_nothing_is_kept(tmp_path: Path) -> None:
    journal = NoJournal("run-1")
    journal.append(THREE[0])
    assert journal.store({"w": torch.ones(2)}, checkpoint=True) == ""
    assert list(journal.entries) == []
    with pytest.raises(StateError, match="this run has no journal"):
        journal.load("")


@pytest.fixture(autouse=True)
def _no_descriptor_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    left = [link for link in Path("/proc/self/fd").iterdir() if str(tmp_path) in str(link.readlink() if link.is_symlink() else "")]
    assert left == []
