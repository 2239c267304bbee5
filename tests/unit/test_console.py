"""What a person reads of a run on the terminal."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from feddkd.cli.progress import ConsoleProgress
from feddkd.cli.summary import print_summary
from feddkd.cli.words import listed
from feddkd.config import Config
from feddkd.exchange import ExampleCounts, ExchangeId
from feddkd.scheduler.records import ExchangeRecord, RoundRecord
from feddkd.traffic import Traffic

EXCHANGE = ExchangeRecord(ExchangeId("run", 1, 0, "local_train", 0), 3, 2, {}, Traffic(), 1.0, 1.0, 1, None, None, {})
ROUND = RoundRecord(1, None, None, Traffic(), 0, 1.0, 2, {}, 1, {})


def counts(down: int, up: int) -> dict[str, int]:
    """The bytes of an exchange that had no codec."""
    payload = {"payload_bytes_down": down, "payload_bytes_up": up}
    return payload | {"dense_bytes_down": down, "dense_bytes_up": up, "snapshot_bytes_down": 0}


SUMMARY: dict[str, Any] = {
    "total_wire_bytes_down": 1_000_000,
    "total_wire_bytes_up": 0,
    "seconds": 2.0,
    "rounds": 10,
    "model_sha256": "0123",
    "final_accuracy": None,
    "best_accuracy": None,
    "metric": "accuracy",
    "final_score": None,
    "best_score": None,
    "scores": {},
    "delivered_round": 2,
    "stopped": "",
    "rounds_missed": {},
    "not_delivered": {},
    "snapshot_bytes_down": 0,
    "examples": {},
    "doubtful_labels": {},
    "outliers": {},
    "exchanges": {"local_train": counts(400_000, 0), "dkd_step": counts(600_000, 300_000)},
}


@pytest.fixture
def shown() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def progress(shown: io.StringIO) -> ConsoleProgress:
    return ConsoleProgress(Config(), Console(file=shown, width=80))


def test_what_a_client_says_reaches_the_terminal_escaped_and_without_markup(progress: ConsoleProgress, shown: io.StringIO) -> None:
    progress.exchange_done(replace(EXCHANGE, clients_missing={"site-a": "\x1b[2J[red]full[/]\nroot: \u202eok"}))
    assert shown.getvalue() == "  round 1 local_train: site-a is missing: \\x1b[2J[red]full[/]\\nroot: \\u202eok\n"
    progress.paused("[/nothing] \x07")
    assert shown.getvalue().splitlines()[-1] == "  paused: [/nothing] \\x07"
    progress.waiting("waiting up to 120 s for [b] to come back")
    assert shown.getvalue().splitlines()[-1] == "  waiting up to 120 s for [b] to come back"


def test_a_line_is_bounded(progress: ConsoleProgress, shown: io.StringIO) -> None:
    progress.round_failed(1, 0, "x" * 10**6)
    assert len(shown.getvalue()) == 2001


def test_a_round_says_who_was_missing(progress: ConsoleProgress, shown: io.StringIO) -> None:
    progress.round_done(ROUND)
    assert shown.getvalue().count("\n") == 1
    progress.round_done(replace(ROUND, clients_missing={"site-b": "not connected", "site-c": "disconnected"}))
    assert shown.getvalue().splitlines()[-1] == "  round 1 went on without site-b, site-c"


class Gone(io.StringIO):
    """A terminal that was closed."""

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")

    def flush(self) -> None:
        raise BrokenPipeError


def test_a_terminal_that_is_gone_neither_stops_a_run_from_beginning_nor_from_ending() -> None:
    entered = False
    with ConsoleProgress(Config(), Console(file=Gone(), force_terminal=True)):
        entered = True
    assert entered


def printed(capsys: pytest.CaptureFixture[str], **changes: Any) -> list[str]:
    print_summary(SUMMARY | changes, Path("runs/x"))
    return capsys.readouterr().out.splitlines()


def test_the_summary_says_who_was_missing_where(capsys: pytest.CaptureFixture[str]) -> None:
    assert not any("missing" in line or "model not at" in line for line in printed(capsys))
    lines = printed(capsys, rounds_missed={"site-b": 1, "site-c": 4}, not_delivered={"site-c": "not connected\x1b[2J"})
    assert "  clients missing    site-c in 4, site-b in 1 of 10 rounds" in lines
    assert "  model not at       site-c (not connected\\x1b[2J)" in lines


def test_the_summary_says_what_codecs_saved_and_nothing_where_there_was_none(capsys: pytest.CaptureFixture[str]) -> None:
    plain = printed(capsys)
    assert not any("encoded" in line or "whole models" in line for line in plain)
    exchanges = {name: dict(counts) for name, counts in SUMMARY["exchanges"].items()}
    exchanges["local_train"] |= {"dense_bytes_down": 1_600_000}
    exchanges["dkd_step"] |= {"dense_bytes_down": 9_600_000, "dense_bytes_up": 9_600_000}
    lines = printed(capsys, exchanges=exchanges, snapshot_bytes_down=250_000)
    assert [line for line in lines if line not in plain] == [
        "  encoded            local_train: down 400.00 kB instead of 1.60 MB (4.0 times less)",
        "                     dkd_step: down 600.00 kB instead of 9.60 MB (16.0 times less), "
        "up 300.00 kB instead of 9.60 MB (32.0 times less)",
        "  whole models down  250.00 kB to clients that lacked the one before",
    ]


def test_the_summary_says_how_many_examples_had_no_label_and_whose_labels_are_in_doubt(capsys: pytest.CaptureFixture[str]) -> None:
    labelled = {"site-a": {"labelled": 1000, "unlabelled": 0}}
    assert printed(capsys, examples=labelled) == printed(capsys)
    lines = printed(
        capsys,
        examples=labelled | {"site-b": {"labelled": 200, "unlabelled": 30_000}},
        doubtful_labels={"site-b": {"disagreement": 0.42, "median": 0.03, "round": 2}},
        outliers={"site-a": 3},
    )
    assert "  examples           1,200 labelled, 30,000 unlabelled" in lines
    assert "  labels in doubt    site-b (its teacher contradicts 42%, the median site's 3%)" in lines
    assert "  outliers           site-a (since round 3): contributions far longer than those of others, or far from them" in lines


def test_a_run_says_once_how_many_examples_have_no_label(progress: ConsoleProgress, shown: io.StringIO) -> None:
    counts = {"site-a": ExampleCounts(20, 1000), "site-b": ExampleCounts(15)}
    progress.clients_available(counts)
    progress.run_started("run", 2)
    for number in (1, 2):
        progress.clients_available(counts)
        progress.round_started(number, 0, 2)
    assert shown.getvalue().count("unlabelled") == 1
    assert "\n  examples: 35 labelled, 1,000 unlabelled, at 2 clients\n  " in shown.getvalue()


def test_a_run_whose_examples_all_have_a_label_does_not_mention_labels(progress: ConsoleProgress, shown: io.StringIO) -> None:
    progress.clients_available({"site-a": ExampleCounts(20)})
    progress.run_started("run", 2)
    assert "label" not in shown.getvalue()


def test_a_list_names_the_first_and_counts_the_rest() -> None:
    names = [f"c{number}" for number in range(12)]
    assert listed(names[:2]) == "c0, c1"
    assert listed(names[:10]) == ", ".join(names[:10])
    assert listed(names) == f"{', '.join(names[:10])} and 2 more"


def test_the_summary_says_why_a_run_stopped_and_which_round_is_delivered(capsys: pytest.CaptureFixture[str]) -> None:
    changes = {"rounds": 5, "delivered_round": 3, "final_score": 0.8, "best_score": 0.8, "stopped": "patience"}
    plain = printed(capsys, **changes)
    assert "  final accuracy     80.00% (of round 3, the best of 5)" in plain
    assert "  stopped early      patience" in plain
