"""The checker of the fault tests sees each violation, and the comparison each difference that a fault does not explain."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from run_history import BLOBS, JOURNAL, RunHistory, differences, record_folder, violations

from feddkd.config import Config
from feddkd.observability.run_folder import CONFIG, EXCHANGES, ROUNDS, SUMMARY

Lines = list[dict[str, Any]]


def exchange(round_number: int, name: str, step: int = 0, **changes: Any) -> dict[str, Any]:
    line = {
        "round": round_number,
        "attempt": 0,
        "exchange": name,
        "step": step,
        "clients_selected": 2,
        "clients_reported": 2,
        "clients_missing": {},
        "wire_bytes_down": 100,
        "wire_bytes_up": 50,
        "seconds": 1.5,
        "metrics": {"norm": 2.0, "codec_s_up": 0.1},
    }
    return line | changes


EXCHANGES_OF_A_RUN = [
    exchange(1, "local_train"),
    exchange(1, "dkd_step", 1),
    exchange(1, "dkd_step", 2),
    exchange(2, "local_train"),
    exchange(3, "deliver", clients_reported=1, clients_missing={"b": "not connected"}),
]


def seen(what: str, round_number: int, name: str, step: int = 0, **more: Any) -> dict[str, Any]:
    return {"saw": what, "exchange": ["run", round_number, 0, name, step], **more}


CLIENT = [
    seen("work", 1, "local_train"),
    seen("work", 1, "local_train"),
    seen("computed", 1, "local_train", sha256="1"),
    seen("receipt", 1, "local_train", verdict="OK"),
    seen("work", 2, "local_train"),
    seen("computed", 2, "local_train", sha256="2"),
    seen("computed", 2, "local_train", sha256="2"),
    seen("receipt", 2, "local_train", verdict="OK"),
]


def journal_of(exchanges: Sequence[Mapping[str, Any]]) -> Lines:
    done = [
        {"kind": "exchange_done", "record": {"id": {**{key: line[key] for key in ("round", "attempt", "step")}, "name": line["exchange"]}}}
        for line in exchanges
    ]
    return [{"kind": "run_started"}, *done, {"kind": "run_finished"}]


class Run:
    """A run's folder and one client's history, written from lines that a test may change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.exchanges = [dict(line) for line in EXCHANGES_OF_A_RUN]
        self.rounds = [{"round": number, "seconds": 2.0, "wire_bytes_down": 300, "wire_bytes_up": 150, "loss": 0.5} for number in (1, 2)]
        self.client = [dict(line) for line in CLIENT]
        self.journal = journal_of(self.exchanges)
        self.summary: dict[str, Any] | None = {
            "rounds": 2,
            "model_sha256": "abc",
            "final_accuracy": 0.9,
            "run_id": "run",
            "seconds": 5.0,
            "total_wire_bytes_down": 510,
            "other_wire_bytes_down": 10,
            "total_wire_bytes_up": 255,
            "other_wire_bytes_up": 5,
        }

    def read(self) -> RunHistory:
        self.folder.mkdir(parents=True, exist_ok=True)
        numbered: Lines = [{"seq": number, "event": event} for number, event in enumerate(self.journal, 1)]
        files = {JOURNAL: [{"format": 1}, *numbered], EXCHANGES: self.exchanges, ROUNDS: self.rounds, "client": self.client}
        for name, lines in files.items():
            (self.folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        if self.summary is not None:
            (self.folder / SUMMARY).write_text(json.dumps(self.summary))
        config = Config.load(overrides=["scheduler.clients=2", "partition.clients=2", "partition.labels=5"])
        (self.folder / CONFIG).write_text(config.to_toml())
        return RunHistory.read(self.folder, {"client-0": self.folder / "client"})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def only_violation(run: Run) -> str:
    (violation,) = violations(run.read())
    return violation


def test_a_good_run_has_no_violation(run: Run) -> None:
    assert violations(run.read()) == []


def test_a_run_without_a_summary_is_not_complete(run: Run) -> None:
    run.summary = None
    assert only_violation(run) == "record is complete: there is no summary"


def test_a_round_without_a_line_is_seen(run: Run) -> None:
    run.rounds.pop()
    assert only_violation(run) == "record is complete: 1 lines of rounds, the summary says 2"


def test_a_round_with_two_lines_is_seen(run: Run) -> None:
    run.rounds.insert(1, run.rounds[0])
    assert "rounds follow each other: rounds are [1, 1, 2]" in violations(run.read())


@pytest.mark.parametrize("lines", [2, 0])
def test_a_journal_that_does_not_end_once_is_seen(run: Run, lines: int) -> None:
    run.journal[-1:] = [{"kind": "run_finished"}] * lines
    assert only_violation(run) == f"record is complete: run_finished stands there {lines} times"


def test_an_exchange_that_only_the_journal_has_is_seen(run: Run) -> None:
    run.journal.insert(1, run.journal[1])
    assert only_violation(run) == "record is complete: journal and exchanges.jsonl name other exchanges"


def test_an_exchange_that_counts_twice_is_seen(run: Run) -> None:
    run.exchanges.insert(0, run.exchanges[0])
    run.journal = journal_of(run.exchanges)
    assert "nothing counts twice: (1, 0, 'local_train', 0) has 2 lines" in violations(run.read())


def test_a_client_that_counts_and_is_missing_is_seen(run: Run) -> None:
    run.exchanges[0]["clients_missing"] = {"b": "late"}
    assert only_violation(run).startswith("nothing counts twice: (1, 0, 'local_train', 0): clients that reported")


def test_a_step_that_is_left_out_is_seen(run: Run) -> None:
    run.exchanges[2]["step"] = 3
    run.journal = journal_of(run.exchanges)
    assert only_violation(run) == "rounds follow each other: (1, 0, 'dkd_step') has the steps [1, 3]"


def test_an_exchange_of_an_earlier_round_is_seen(run: Run) -> None:
    run.exchanges.insert(4, exchange(1, "other"))
    run.journal = journal_of(run.exchanges)
    assert "rounds follow each other: an exchange stands behind one of a later round or attempt" in violations(run.read())


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"exchange": ["run", 1, 0, "dkd_step", 7]}, "the record has no such exchange"),
        ({"exchange": ["run", 1, 1, "local_train", 0]}, "the record has no such exchange"),
    ],
)
def test_a_receipt_that_the_server_forgot_is_seen(run: Run, change: dict[str, Any], problem: str) -> None:
    run.client[3].update(change)
    assert only_violation(run).endswith(problem)


def test_a_receipt_of_a_client_that_the_record_misses_is_seen(run: Run) -> None:
    run.exchanges[0].update(clients_reported=1, clients_missing={"client-0": "late"})
    assert "receipts are kept: client-0 was told that its reply to (1, 0, 'local_train', 0) counts; the record says that it is missing" in (
        violations(run.read())
    )


def test_a_receipt_that_refuses_promises_nothing(run: Run) -> None:
    run.client[3].update(exchange=["run", 1, 0, "dkd_step", 7], verdict="FAILED_PRECONDITION")
    assert violations(run.read()) == []


def test_a_model_that_a_finished_run_delivers_again_belongs_to_no_record(run: Run) -> None:
    again = {"exchange": ["run", 2, 1, "deliver", 0]}
    run.client += [seen("work", 2, "deliver") | again, seen("receipt", 2, "deliver", verdict="OK") | again]
    assert violations(run.read()) == []


def test_work_of_an_older_round_is_seen(run: Run) -> None:
    run.client.append(seen("work", 1, "dkd_step", 1))
    assert only_violation(run) == "work goes forward: client-0 was asked for (1, 0, 'dkd_step', 1) after a receipt of round 2"


def test_work_that_was_acknowledged_is_not_asked_for_again(run: Run) -> None:
    run.client.append(seen("work", 2, "local_train"))
    assert only_violation(run).startswith("work goes forward: client-0 was asked again for (2, 0, 'local_train', 0)")


def test_an_exchange_below_the_quorum_is_seen(run: Run) -> None:
    run.exchanges[1].update(clients_reported=1, clients_missing={"b": "late"})
    assert only_violation(run) == "quorum is met: (1, 0, 'dkd_step', 1) has 1 replies of 2"


def test_a_reply_that_is_computed_again_has_to_be_the_same(run: Run) -> None:
    run.client[6]["sha256"] = "3"
    assert "client-0 computed (2, 0, 'local_train', 0) to 2 different contributions" in only_violation(run)


def test_lost_bytes_are_a_part_of_all_bytes(run: Run) -> None:
    run.exchanges[1]["lost_wire_bytes_up"] = 51
    assert only_violation(run) == "bytes add up: (1, 0, 'dkd_step', 1): 51 of 50 bytes up were lost"


def test_bytes_that_the_summary_has_and_no_exchange_are_seen(run: Run) -> None:
    assert run.summary is not None
    run.summary["total_wire_bytes_down"] += 1
    assert only_violation(run) == "bytes add up: 500 bytes down in the exchanges, 501 in the summary"


def test_a_blob_with_other_content_is_seen(run: Run) -> None:
    run.read()
    (run.folder / BLOBS).mkdir()
    name = hashlib.sha256(b"tensors").hexdigest()
    for file, content in ((name, b"tensors"), (f"{name[::-1]}.safetensors", b"tensors"), (f"{name}.corrupt-1", b"tensor")):
        (run.folder / BLOBS / file).write_bytes(content)
    assert only_violation(run) == f"blobs are what their names say: {name[::-1]}.safetensors holds something else"


def test_a_torn_last_line_is_not_read(run: Run) -> None:
    history = run.read()
    with (run.folder / JOURNAL).open("a") as journal:
        journal.write('{"seq": 99, "ev')
    assert RunHistory.read(run.folder, {}).journal == history.journal


def test_visits_of_failpoints_are_counted(run: Run) -> None:
    run.client += [{"saw": "failpoint", "name": "a"}, {"saw": "failpoint", "name": "b"}, {"saw": "failpoint", "name": "a"}]
    assert run.read().visits("client-0") == {"a": 2, "b": 1}


def test_the_folder_is_the_one_that_the_state_directory_names(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"run_id": "r1", "status": "running"}')
    assert record_folder(tmp_path) == tmp_path / "r1"


def disturbed(run: Run) -> Run:
    """The same run with what a fault may cost: seconds, and bytes that are told apart."""
    other = Run(run.folder.with_name("disturbed"))
    other.exchanges[1].update(wire_bytes_up=70, lost_wire_bytes_up=20, seconds=9.0, metrics={"norm": 2.0, "codec_s_up": 0.3})
    other.rounds[0].update(wire_bytes_up=170, lost_wire_bytes_up=20, seconds=10.0)
    assert other.summary is not None
    other.summary.update(total_wire_bytes_up=285, other_wire_bytes_up=15, run_id="another", seconds=14.0)
    return other


def test_what_a_fault_cost_is_no_difference(run: Run) -> None:
    other = disturbed(run)
    assert violations(other.read()) == []
    assert differences(run.read(), other.read()) == []


@pytest.mark.parametrize(
    ("where", "key", "value"),
    [
        ("exchanges", "wire_bytes_up", 71),
        ("exchanges", "clients_reported", 1),
        ("exchanges", "metrics", {"norm": 2.5}),
        ("exchanges", "new", 1),
        ("rounds", "loss", 0.4),
    ],
)
def test_any_other_difference_of_a_line_is_told(run: Run, where: str, key: str, value: object) -> None:
    other = disturbed(run)
    getattr(other, where)[1][key] = value
    (difference,) = differences(run.read(), other.read())
    assert difference.startswith(f"{where}, line 2, {key}: ")


@pytest.mark.parametrize("key", ["model_sha256", "final_accuracy"])
def test_another_result_is_told(run: Run, key: str) -> None:
    other = disturbed(run)
    assert other.summary is not None
    other.summary[key] = None
    (difference,) = differences(run.read(), other.read())
    assert difference.startswith(f"{key} of the summary")


def test_another_number_of_lines_is_told(run: Run) -> None:
    other = disturbed(run)
    other.exchanges.pop()
    assert differences(run.read(), other.read()) == ["exchanges: 5 and 4 lines"]
