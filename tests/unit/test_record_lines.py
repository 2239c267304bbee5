import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_records import write_record

from feddkd.errors import StateError
from feddkd.observability import run_folder
from feddkd.observability.record_lines import ExchangeLine
from feddkd.observability.run_folder import RunFolder


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return write_record(tmp_path / "run", rounds=2)


@pytest.fixture
def full_record(tmp_path: Path) -> Path:
    """One that has what sites say, too."""
    return write_record(tmp_path / "full", rounds=2, sites=True)


def problem(record: Path) -> str:
    """The one line that says which part of a record is damaged."""
    with pytest.raises(StateError) as refused:
        RunFolder.load(record)
    message = str(refused.value)
    assert message.startswith(str(record))
    assert message.isprintable()
    assert len(message) < 500
    return message.removeprefix(f"{record}/")


FILES = ("exchanges.jsonl", "rounds.jsonl", "summary.json", "partition.json")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\n",
        b"[" * 100_000 + b"\n",
        b'{"round": ' + b"9" * 5000 + b"}\n",
        b"nonsense\n",
        b"3\n",
        b"null\n",
        b'{"a": ' * 100_000 + b"\n",
    ],
    ids=["not text", "deep arrays", "digits", "words", "a number", "null", "deep tables"],
)
def test_what_is_no_object_is_named(file: str, content: bytes, record: Path) -> None:
    (record / file).write_bytes(content)
    assert problem(record).startswith(f"{file} line 1 " if file.endswith("l") else f"{file} ")


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        ("rounds.jsonl", "round", "1", "has round = '1': input should be a valid integer"),
        ("rounds.jsonl", "round", True, "has round = True: input should be a valid integer"),
        ("rounds.jsonl", "round", 2**40, "has round = 1099511627776: input should be less than or equal to 2147483647"),
        ("rounds.jsonl", "seconds", "x", "has seconds = 'x': input should be a valid number"),
        ("rounds.jsonl", "seconds", float("inf"), "has seconds = inf: input should be a finite number"),
        ("rounds.jsonl", "seconds", -1, "has seconds = -1: input should be greater than or equal to 0"),
        ("rounds.jsonl", "accuracy", 1.5, "has accuracy = 1.5: input should be less than or equal to 1"),
        ("rounds.jsonl", "class_accuracy", {"0": 1.0}, "has class_accuracy = {'0': 1.0}: input should be a valid array"),
        ("rounds.jsonl", "metrics", [1], "has metrics = [1]: input should be an object"),
        ("exchanges.jsonl", "exchange", 3, "has exchange = 3: input should be a valid string"),
        ("exchanges.jsonl", "exchange", "x" * 10_000, "has exchange = 'xxx"),
        ("exchanges.jsonl", "wire_bytes_up", -3, "has wire_bytes_up = -3: input should be greater than or equal to 0"),
        ("exchanges.jsonl", "wire_bytes_up", None, "has wire_bytes_up = None: input should be a valid integer"),
        ("exchanges.jsonl", "loss", "low", "has loss = 'low': input should be a valid number"),
        ("exchanges.jsonl", "clients_reported", 2.5, "has clients_reported = 2.5: input should be a valid integer"),
        ("summary.json", "versions", ["torch"], "has versions = ['torch']: input should be an object"),
        ("summary.json", "versions", {"torch": 2}, "has versions = {'torch': 2}: every value must be a string"),
        ("summary.json", "rounds_missed", {"a": "2"}, "has rounds_missed = {'a': '2'}: every value must be a count"),
        ("summary.json", "exchanges", {"a": 3}, "has exchanges = {'a': 3}: every value must be an object of byte counts"),
        (
            "summary.json",
            "exchanges",
            {"a": {"b": -1}},
            "has exchanges = {'a': {'b': -1}}: every byte count must be an integer of at least 0",
        ),
        ("exchanges.jsonl", "dense_bytes_up", -1, "has dense_bytes_up = -1: input should be greater than or equal to 0"),
        ("rounds.jsonl", "clients_missing", {"a": None}, "has clients_missing = {'a': None}: every value must be a string"),
        ("exchanges.jsonl", "by_client", [1], "has by_client = [1]: input should be an object"),
        ("rounds.jsonl", "unlabelled_examples", -1, "has unlabelled_examples = -1: input should be greater than or equal to 0"),
        ("summary.json", "examples", {"a": {"labelled": -1}}, "has examples.a.labelled = -1: input should be greater than or equal to 0"),
        ("summary.json", "examples", {"a": 3}, "has examples.a = 3: input should be an object"),
        (
            "summary.json",
            "doubtful_labels",
            {"a": {"disagreement": 2, "median": 0, "round": 1}},
            "has doubtful_labels.a.disagreement = 2: ",
        ),
        ("summary.json", "doubtful_labels", {"a": {"disagreement": 0.5, "median": 0}}, "has no 'doubtful_labels.a.round'"),
        ("summary.json", "seconds", "long", "has seconds = 'long': input should be a valid number"),
        ("summary.json", "model_sha256", 7, "has model_sha256 = 7: input should be a valid string"),
        ("partition.json", "client-0", 3, "client-0 does not have a list of example counts"),
        ("partition.json", "client-0", [3, -1], "client-0 does not have a list of example counts"),
        ("partition.json", "client-0", [2**60], "client-0 does not have a list of example counts"),
    ],
)
def test_a_field_of_another_kind_is_named(file: str, key: str, value: object, message: str, record: Path) -> None:
    path = record / file
    if file.endswith(".jsonl"):
        lines = path.read_text().splitlines()
        lines[1] = json.dumps(json.loads(lines[1]) | {key: value})
        path.write_text("\n".join(lines) + "\n")
        assert f"{file} line 2 {message}" in problem(record)
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
        assert message in problem(record)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 1.7e308, 10**400])
def test_a_number_that_cannot_be_drawn_counts_as_not_recorded(number: float) -> None:
    line = ExchangeLine.model_validate_json(
        json.dumps(
            {"round": 1, "exchange": "x", "wire_bytes_down": 1, "wire_bytes_up": 1, "seconds": 1, "loss": number, "client_seconds": number}
            | {"metrics": {"huge": number, "text": "1", "flag": True, "list": [1], "none": None, "n" * 201: 1.0, "fine": 2}}
        )
    )
    assert (line.loss, line.client_seconds) == (None, None)
    assert line.metrics == {"fine": 2.0}


def exchange_line(by_client: object) -> ExchangeLine:
    fields = {"round": 1, "exchange": "x", "wire_bytes_down": 1, "wire_bytes_up": 1, "seconds": 1}
    return ExchangeLine.model_validate_json(json.dumps(fields | {"by_client": by_client}))


def test_numbers_of_clients_that_are_unknown_or_out_of_range_are_left_out() -> None:
    values = {"a": 0, "b": 1, "c": 1.5, "d": -0.1, "e": float("nan"), "f": True, "g": "1", "h": None, "i": [1], "j" * 201: 0.5, "k": 0.5}
    said = {"teacher_accuracy": values, "loss": values, "own": values, "label_disagreement": [1], "client_accuracy": {"a": 7}}
    assert exchange_line(said).by_client == {
        "teacher_accuracy": {"a": 0.0, "b": 1.0, "k": 0.5},
        "loss": {"a": 0.0, "b": 1.0, "c": 1.5, "k": 0.5},
    }
    assert exchange_line(None).by_client == {}


def test_the_metric_of_a_teacher_may_have_any_sign() -> None:
    values = {"a": -3.5, "b": 0, "c": 12.5, "d": float("nan"), "e": "1"}
    assert exchange_line({"teacher_score": values}).by_client == {"teacher_score": {"a": -3.5, "b": 0.0, "c": 12.5}}


def test_numbers_of_very_many_clients_are_left_out(record: Path) -> None:
    many = {f"c{number}": 0.5 for number in range(1001)}
    assert exchange_line({"loss": many, "client_accuracy": {"a": 0.5}}).by_client == {"client_accuracy": {"a": 0.5}}
    content = json.loads((record / "summary.json").read_text()) | {"examples": {name: {"labelled": "x"} for name in many}}
    (record / "summary.json").write_text(json.dumps(content))
    summary = RunFolder.load(record).summary
    assert summary is not None
    assert summary.examples == {}


def test_a_record_of_an_older_version_tells_nothing_of_single_clients(record: Path) -> None:
    run = RunFolder.load(record)
    assert all(line.by_client == {} for line in run.exchanges)
    assert all(line.labelled_examples is None for line in run.rounds)
    assert run.summary is not None
    assert (run.summary.examples, run.summary.doubtful_labels) == ({}, {})


def test_a_record_without_dense_bytes_was_sent_without_a_codec(record: Path) -> None:
    run = RunFolder.load(record)
    for line in run.exchanges:
        assert (line.dense_bytes_down, line.dense_bytes_up) == (line.payload_bytes_down, line.payload_bytes_up) == (1000, 900)
        assert line.snapshot_bytes_down == 0


def test_dense_bytes_are_those_that_the_record_has() -> None:
    fields = {"round": 1, "exchange": "x", "seconds": 1, "wire_bytes_down": 9, "wire_bytes_up": 9, "payload_bytes_down": 5}
    line = ExchangeLine.model_validate_json(json.dumps(fields | {"dense_bytes_down": 160, "dense_bytes_up": 7, "snapshot_bytes_down": 4}))
    assert (line.dense_bytes_down, line.dense_bytes_up, line.snapshot_bytes_down) == (160, 7, 4)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**50),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_record_with_any_field_of_any_line_changed_is_read_or_refused(data: st.DataObject, full_record: Path) -> None:
    file = full_record / data.draw(st.sampled_from(FILES))
    content = file.read_bytes()
    lines = content.decode().splitlines()
    number = data.draw(st.integers(0, len(lines) - 1))
    line: dict[str, Any] = json.loads(lines[number])
    key = data.draw(st.sampled_from(sorted(line)))
    if data.draw(st.booleans()):
        line[key] = data.draw(anything)
    else:
        del line[key]
    lines[number] = json.dumps(line)
    file.write_text("\n".join(lines) + "\n")
    try:
        RunFolder.load(full_record)
    except StateError as error:
        said = str(error)
    else:
        said = ""
    finally:
        file.write_bytes(content)
    assert "\n" not in said


def test_a_last_line_that_a_crash_cut_short_is_left_out(record: Path) -> None:
    with (record / "rounds.jsonl").open("a") as file:
        file.write('{"round": 3, "sec')
    assert [line.round for line in RunFolder.load(record).rounds] == [1, 2]


@pytest.mark.parametrize("mark", ["partition.json", "journal.jsonl", "status.json", "# run 0123456789ab"])
def test_a_run_that_ended_before_its_first_exchange_has_a_record(mark: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(f"{mark}\n" if mark.startswith("#") else "")
    if not mark.startswith("#"):
        (tmp_path / mark).write_text("{}")
    assert (RunFolder.load(tmp_path).rounds, RunFolder.load(tmp_path).exchanges) == ([], [])


def test_a_configuration_alone_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("rounds = 3\n")
    with pytest.raises(StateError, match=r"does not hold the record of a run: cannot read rounds\.jsonl"):
        RunFolder.load(tmp_path)


@pytest.mark.parametrize("missing", ["rounds.jsonl", "exchanges.jsonl"])
def test_one_file_of_lines_without_the_other_is_no_record(missing: str, record: Path) -> None:
    (record / missing).unlink()
    assert "does not hold the record of a run: cannot read" in problem(record)


@pytest.mark.parametrize(
    ("limit", "value", "file", "message"),
    [
        ("MAX_LINE", 50, "exchanges.jsonl", "exchanges.jsonl line 1 is longer than 50 bytes"),
        ("MAX_LINES", 3, "exchanges.jsonl", "exchanges.jsonl has more than 3 lines"),
        ("MAX_FILE", 300, "rounds.jsonl", "rounds.jsonl is larger than 300 bytes"),
        ("MAX_OBJECT", 300, "summary.json", "summary.json is larger than 300 bytes"),
    ],
)
def test_a_file_of_any_length_is_read_up_to_a_limit(
    limit: str, value: int, file: str, message: str, record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in {"exchanges.jsonl", "rounds.jsonl"} - {file}:
        (record / other).write_text("")
    monkeypatch.setattr(run_folder, limit, value)
    assert problem(record) == message


@pytest.mark.parametrize("content", [b"\xff", b"rounds = " + b"[" * 3000, b"rounds = 0", b"nonsense"])
def test_a_damaged_configuration_is_named(content: bytes, record: Path) -> None:
    (record / "config.toml").write_bytes(content)
    assert re.match(r"config\.toml( is not valid TOML| line 1)?: ", problem(record))
