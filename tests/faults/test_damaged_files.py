"""A server that starts again and finds its files torn, damaged, missing or foreign."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from federation import CONFIGS, SERVER, Federation, check
from run_history import BLOBS, JOURNAL, RunHistory, differences, record_folder, violations
from subsets import slow

Undisturbed = Callable[[str], RunHistory]
Moment = tuple[str, int]
"""A configuration, and the exchange after whose end the server is killed."""

IN_ROUND_2 = "feddkd", 6
"""Round 1 has left a model and a state, and two exchanges of round 2 an outcome each."""

AT_THE_END = "feddkd", 9
"""Both rounds have left a model and a state, and the delivery its outcome."""

SCAFFOLD, TOPK = ("scaffold", 3), ("topk", 10)
"""Rounds 1 and 2 have left a model and a state, and the first two exchanges of round 3, or its only one, an outcome each."""


@pytest.fixture
def moment(request: pytest.FixtureRequest) -> Moment:
    """In round 2 of FedDKD, unless the test says otherwise."""
    moment: Moment = getattr(request, "param", IN_ROUND_2)
    return moment


@pytest.fixture
def federation(tmp_path: Path, moment: Moment) -> Iterator[Federation]:
    """Its server was killed, and its clients wait for another."""
    config, exchange = moment
    with Federation(tmp_path, CONFIGS[config]) as federation:
        federation.start({SERVER: f"scheduler.exchange.after_append=kill@{exchange}"})
        federation.processes[SERVER].wait()
        yield federation


@pytest.fixture
def expected(moment: Moment, undisturbed: Undisturbed) -> RunHistory:
    """What the same run leaves behind when nothing goes wrong."""
    return undisturbed(moment[0])


def journal_of(federation: Federation) -> Path:
    return record_folder(federation.state) / JOURNAL


def blobs_of(federation: Federation) -> list[Path]:
    """The run's blobs, the newest last: models, states and outcomes."""
    return sorted((record_folder(federation.state) / BLOBS).glob("*.safetensors"), key=lambda file: file.stat().st_mtime_ns)


def go_on(federation: Federation) -> str:
    """Start the server again and let the run end; returns what the server said."""
    federation.restart(SERVER)
    federation.finish()
    return federation.logs([SERVER])


def refused(federation: Federation) -> str:
    """Start the server again, which has to end with one line; returns that."""
    before = federation.processes[SERVER].log.read_text()
    process = federation.restart(SERVER)
    assert process.wait() == 1
    said = process.log.read_text().removeprefix(before)
    return said.splitlines()[-1]


@pytest.mark.parametrize("kept", [0.0, 0.99])
def test_a_torn_last_line_is_cut_off(kept: float, federation: Federation, expected: RunHistory) -> None:
    journal = journal_of(federation)
    *whole, last = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(whole) + last[: int(kept * len(last))])
    go_on(federation)
    check(federation, expected)


@pytest.mark.parametrize("garbage", [b"\0" * 4096, b"{}\n"])
def test_what_stands_behind_the_last_event_is_cut_off(garbage: bytes, federation: Federation, expected: RunHistory) -> None:
    """Blocks of zeros are what some file systems leave at the end of a file after a power failure."""
    with journal_of(federation).open("ab") as journal:
        journal.write(garbage)
    go_on(federation)
    check(federation, expected)


@pytest.mark.parametrize(
    ("moment", "line"),
    [(IN_ROUND_2, 6), *slow((SCAFFOLD, 5), (("topk", 12), -2))],
    indirect=["moment"],
)
def test_a_journal_that_is_damaged_in_its_middle_is_used_up_to_there(line: int, federation: Federation, expected: RunHistory) -> None:
    """The run does again what it no longer knows, to the same model; clients are asked again for what they had receipts of."""
    journal = journal_of(federation)
    lines = journal.read_bytes().splitlines(keepends=True)
    middle = line % len(lines)
    lines[middle] = lines[middle].replace(b'"seq"', b'"sep"')
    journal.write_bytes(b"".join(lines))
    go_on(federation)
    history = federation.history()
    assert [line for line in violations(history) if not line.startswith("work goes forward")] == []
    assert differences(expected, history) == []
    assert sorted(journal.parent.glob("journal.cut-*")) != []


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit": lambda blob: blob.write_bytes((content := blob.read_bytes())[:-5] + bytes([content[-5] ^ 1]) + content[-4:]),
    "cut short": lambda blob: os.truncate(blob, blob.stat().st_size // 2),
    "empty": lambda blob: os.truncate(blob, 0),
    "missing": lambda blob: blob.unlink(),
}


@pytest.mark.parametrize(
    ("moment", "which", "damage"),
    [
        *((IN_ROUND_2, which, "a bit") for which in range(4)),
        *((IN_ROUND_2, 2, damage) for damage in DAMAGES if damage != "a bit"),
        *((TOPK, which, "a bit") for which in (4, 5)),
        *slow(
            *((AT_THE_END, which, "a bit") for which in range(2, 5)),
            *((SCAFFOLD, which, "a bit") for which in (2, 3)),
            *((TOPK, which, "a bit") for which in (2, 3)),
        ),
    ],
    indirect=["moment"],
)
def test_a_damaged_blob_is_named_and_the_run_goes_on_from_before_it(
    which: int, damage: str, federation: Federation, expected: RunHistory
) -> None:
    blob = blobs_of(federation)[which]
    DAMAGES[damage](blob)
    said = go_on(federation)
    assert blob.name in said
    history = federation.history()
    assert [line for line in violations(history) if not line.startswith("work goes forward")] == []
    assert differences(expected, history) == []


def test_where_the_journal_no_longer_names_earlier_processes_the_next_one_still_counts_on(
    federation: Federation, expected: RunHistory
) -> None:
    """Clients have seen the third process, and refuse any that counts lower."""
    federation.plan(SERVER, *["scheduler.exchange.after_append=kill@1"] * 2)
    for _ in range(2):
        federation.restart(SERVER).wait()
    journal = journal_of(federation)
    lines = journal.read_bytes().splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if b'"kind":"resumed"' in line)
    lines[first - 1] = lines[first - 1].replace(b'"seq"', b'"sep"')
    journal.write_bytes(b"".join(lines))
    go_on(federation)
    history = federation.history()
    assert [event["incarnation"] for event in history.events("resumed")] == [4]
    assert [line for line in violations(history) if not line.startswith("work goes forward")] == []
    assert differences(expected, history) == []
    assert federation.starts == {SERVER: 4, **dict.fromkeys(federation.names, 1)}


@pytest.mark.parametrize("moment", [AT_THE_END], indirect=True)
def test_a_damaged_blob_that_a_newer_one_replaces_does_not_matter(federation: Federation, expected: RunHistory) -> None:
    DAMAGES["missing"](blobs_of(federation)[0])
    go_on(federation)
    history = federation.history()
    assert violations(history) == []
    assert differences(expected, history) == []


def test_without_outcomes_a_round_that_was_open_is_repeated(tmp_path: Path, undisturbed: Undisturbed) -> None:
    """Same round, same attempt, although its clients have heard that their replies counted."""
    with Federation(tmp_path, [*CONFIGS["topk"], "scheduler.durability=round"]) as federation:
        federation.run({SERVER: "scheduler.exchange.after_append=kill@11"})
        history = federation.history()
    assert [line for line in violations(history) if not line.startswith("work goes forward")] == []
    assert differences(undisturbed("topk"), history) == []


def test_two_blobs_in_each_others_place_are_noticed(federation: Federation, expected: RunHistory) -> None:
    one, *_, other = blobs_of(federation)
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    said = go_on(federation)
    assert one.name in said
    assert differences(expected, federation.history()) == []


@pytest.mark.parametrize("moment", [IN_ROUND_2, AT_THE_END], indirect=True)
def test_without_any_blob_the_run_begins_again(federation: Federation, expected: RunHistory) -> None:
    for blob in blobs_of(federation):
        blob.unlink()
    assert "the run starts over" in go_on(federation)
    assert differences(expected, federation.history()) == []


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (b'{"format": 1,', b'{"format": 2,', "is of format 2; this version of feddkd reads format 1"),
        (b'{"format": 1,', b"", "is not the journal of a run: its first line is damaged"),
    ],
)
def test_a_journal_of_another_version_is_refused(before: bytes, after: bytes, message: str, federation: Federation) -> None:
    journal = journal_of(federation)
    journal.write_bytes(journal.read_bytes().replace(before, after, 1))
    content = journal.read_bytes()
    line = refused(federation)
    assert line == f"feddkd: {journal} {message}"
    assert journal.read_bytes() == content


def test_an_empty_journal_is_refused(federation: Federation) -> None:
    journal = journal_of(federation)
    journal.write_bytes(b"")
    assert refused(federation) == f"feddkd: {journal} is not the journal of a run: its first line is damaged"


def test_another_configuration_is_refused_by_the_key_that_differs(federation: Federation) -> None:
    file = federation.folder / "config.toml"
    file.write_text(file.read_text().replace("steps = 3", "steps = 4"))
    assert "of another configuration: dkd.steps = 3 there, 4 here" in refused(federation)


def test_a_damaged_mark_of_the_run_is_refused(federation: Federation) -> None:
    file = federation.state / "run.json"
    file.write_text("{")
    assert f"{file} is damaged" in refused(federation)
