"""The trackers write what a run did, as the library of each reads it back, and never disturb the run."""

from __future__ import annotations

import json
import math
import struct
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from harness import until
from typer.testing import CliRunner

import feddkd
from feddkd import TrackedRun, Tracker
from feddkd.cli import app
from feddkd.config import Config
from feddkd.errors import ConfigError
from feddkd.exchange import Evaluation, ExchangeId
from feddkd.observability.trackers import tracker as tracker_module
from feddkd.observability.trackers.tracker import tracker_of
from feddkd.observability.trackers.tracking import Tracking
from feddkd.registry import TRACKERS
from feddkd.scheduler.records import ExchangeRecord, RoundRecord, RunRecord
from feddkd.tensors import Schema, Tensors, TensorSpec
from feddkd.traffic import Traffic

RUN_ID = "0123456789ab"
MODEL = Tensors(Schema([TensorSpec("w", torch.float32, (3,))]))
LIBRARIES_WARN = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader"),
]
pytestmark = LIBRARIES_WARN


def exchange(round_number: int, name: str, down: int, up: int, step: int = 0) -> ExchangeRecord:
    return ExchangeRecord(
        ExchangeId(RUN_ID, round_number, 0, name, step), 2, 2, {}, Traffic(0, 0, down, up), 0.1, 0.2, 10, 0.5, None, metrics={}
    )


def round_record(number: int, *, correct: int, metrics: Mapping[str, float] | None = None, loss: float = 1.0) -> RoundRecord:
    return RoundRecord(
        number, Evaluation(100, correct, 100 * loss), None, Traffic(0, 0, 30, 12), 42 * number, 2.5, 2, {"c": "gone"}, 20, metrics or {}
    )


def run_record() -> RunRecord:
    return RunRecord(RUN_ID, 2, MODEL, None, None, Traffic(), Traffic(), 0, 1.0, {}, {})


def tell_rounds(tracking: Tracking, *numbers: int, metrics: Mapping[str, float] | None = None) -> None:
    """Two exchanges a round; the next round's first one is told before the record of a round, as in a run."""
    for number in numbers:
        tracking.exchange_done(exchange(number, "local_train", 10, 4))
        if number > 1:
            tracking.round_done(round_record(number - 1, correct=50 + number - 1, metrics=metrics))
        tracking.exchange_done(exchange(number, "dkd_step", 20, 8))
    tracking.round_done(round_record(numbers[-1], correct=50 + numbers[-1], metrics=metrics))


def track(name: str, folder: Path, *numbers: int, metrics: Mapping[str, float] | None = None) -> None:
    """Tell a tracker of a whole run, as each process of it is told: from the first round."""
    (folder / "model.safetensors").touch()
    tracking = Tracking(name, tracker_of(name), Config.parse({"dkd": {"steps": 7}}), folder)
    tracking.run_started(RUN_ID, len(numbers))
    tell_rounds(tracking, *numbers, metrics=metrics)
    tracking.run_done(run_record())


EXPECTED_IN_ROUND_2 = {
    "test/accuracy": 0.52,
    "test/loss": 1.0,
    "bytes/down": 30.0,
    "bytes/up": 12.0,
    "bytes/total": 84.0,
    "bytes/local_train/down": 10.0,
    "bytes/dkd_step/up": 8.0,
    "bytes_so_far/dkd_step": 56.0,
    "round/seconds": 2.5,
    "round/clients": 2.0,
    "round/missing": 1.0,
}
Series = Mapping[str, list[tuple[int, float]]]


def check_series(series: Series) -> None:
    """Two rounds by round, and by bytes, each once."""
    for name, value in EXPECTED_IN_ROUND_2.items():
        assert [step for step, _ in series[name]] == [1, 2], name
        assert series[name][1][1] == pytest.approx(value), name
    assert [step for step, _ in series["by_bytes/accuracy"]] == [42, 84]
    assert [value for _, value in series["by_bytes/accuracy"]] == pytest.approx([0.51, 0.52])


def tensorboard_series(folder: Path) -> Series:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return {name: [(event.step, event.value) for event in accumulator.Scalars(name)] for name in accumulator.Tags()["scalars"]}


def test_tensorboard_reads_every_number_of_a_run_that_was_resumed_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    track("tensorboard", tmp_path, 1)
    track("tensorboard", tmp_path, 1, 2)
    check_series(tensorboard_series(tmp_path))


@pytest.fixture(params=["file://{}/mlruns", pytest.param("sqlite:///{}/mlflow.db", marks=pytest.mark.slow)], ids=["files", "database"])
def mlflow(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of MLflow that keeps everything in the folder: in files, or in a database, which takes it ten seconds to make."""
    for module in ("mlflow", "sqlalchemy", "alembic"):
        pytest.importorskip(module)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", request.param.format(tmp_path))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "hospitals")
    from mlflow import MlflowClient

    return MlflowClient()


def test_mlflow_reads_every_number_of_a_run_that_was_resumed_once(tmp_path: Path, mlflow: Any) -> None:
    track("mlflow", tmp_path, 1, metrics={"<b>odd</b>/name": 1.0, "not_finite": math.nan})
    track("mlflow", tmp_path, 1, 2, metrics={"<b>odd</b>/name": 1.0, "not_finite": math.nan})
    (run,) = mlflow.search_runs([mlflow.get_experiment_by_name("hospitals").experiment_id])
    names = run.data.metrics.keys()
    check_series({name: [(found.step, found.value) for found in mlflow.get_metric_history(run.info.run_id, name)] for name in names})
    assert "metrics/_b_odd__b__name" in names
    assert math.isnan(run.data.metrics["metrics/not_finite"])
    assert run.data.params["dkd.steps"] == "7"
    assert run.data.tags["feddkd.run_id"] == run.info.run_name == RUN_ID
    assert run.data.tags["feddkd.model"] == str(tmp_path / "model.safetensors")
    assert run.info.status == "FINISHED"


def test_wandb_reads_every_number_of_its_offline_file_and_prints_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-key"))
    monkeypatch.setenv("WANDB_PROJECT", "hospitals")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    track("wandb", tmp_path, 1, 2)
    assert "wandb" not in "".join(capfd.readouterr())
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    # Its own process writes the file, and may be a moment behind.
    until(lambda: any(record.HasField("exit") for record in wandb_records(file)))
    records = wandb_records(file)
    run = next(record.run for record in records if record.HasField("run"))
    assert (run.run_id, run.project) == (RUN_ID, "hospitals")
    rows = [row for record in records if record.HasField("history") and (row := wandb_row(record.history)).get("round")]
    names = {name for row in rows for name in row}
    series = {name: [(int(row["round"]), float(row[name])) for row in rows if name in row] for name in names - {"_runtime", "_wandb"}}
    series["by_bytes/accuracy"] = [(int(row["bytes/total"]), float(row["by_bytes/accuracy"])) for row in rows]
    check_series(series)
    assert any(item.key == "dkd.steps" for item in run.config.update)


FILE_HEADER, BLOCK, RECORD_HEADER = 7, 32768, 7


def wandb_records(file: Path) -> list[Any]:
    """Read an offline file: the library's own messages in the log format of LevelDB. It has no reader in Python any more."""
    from wandb.proto import wandb_internal_pb2

    message: Any = wandb_internal_pb2
    content, place, parts, records = file.read_bytes(), FILE_HEADER, b"", []
    while place + RECORD_HEADER <= len(content):
        if BLOCK - place % BLOCK < RECORD_HEADER:  # no room for a record's header: filled up
            place += BLOCK - place % BLOCK
            continue
        size, kind = struct.unpack_from("<HB", content, place + 4)
        parts += content[place + RECORD_HEADER : place + RECORD_HEADER + size]
        place += RECORD_HEADER + size
        if kind in (1, 4):  # whole, or the last part
            records.append(message.Record.FromString(parts))
            parts = b""
    return records


def wandb_row(history: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in history.item}


class Kept(Tracker):
    """Keeps what it is told."""

    made: ClassVar[list[Kept]] = []

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.made.append(self)

    def begin(self, run: TrackedRun) -> str:
        self.told.append(("begin", run.known_as))
        return "ours"

    def log(self, round_number: int, wire_bytes: int, values: Mapping[str, float], by_bytes: Mapping[str, float]) -> None:
        self.told.append((round_number, wire_bytes))

    def end(self, *, completed: bool, model: Path | None) -> None:
        self.told.append(completed)


def test_a_tracker_of_ones_own_follows_a_real_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kept, "made", [])
    settings = {"rounds": 2, "dkd.steps": 1, "partition.clients": 2, "partition.labels": 5}
    run = feddkd.run(settings, track=f"{__name__}:Kept", out=tmp_path / "run", progress=False)
    (kept,) = Kept.made
    assert kept.told == [("begin", ""), *[(row["round"], row["cumulative_wire_bytes"]) for row in run.rounds], True]


def test_a_run_that_goes_on_tells_each_round_once(tmp_path: Path) -> None:
    first, second = Kept(), Kept()
    for kept, rounds in ((first, [1]), (second, [1, 2])):
        tracking = Tracking("kept", kept, Config.parse({}), tmp_path)
        tracking.run_started(RUN_ID, 2)
        tell_rounds(tracking, *rounds)
        tracking.run_failed("stopped by SIGTERM")
    assert first.told == [("begin", ""), (1, 42), False]
    assert second.told == [("begin", "ours"), (2, 84), False]


class Failing(Kept):
    def log(self, *_: Any, **__: Any) -> None:
        raise OSError("no route to the tracker")


def test_a_tracker_that_fails_is_named_once_and_called_no_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    failing = Failing()
    tracking = Tracking("ours", failing, Config.parse({}), tmp_path)
    tracking.run_started(RUN_ID, 2)
    tell_rounds(tracking, 1, 2)
    tracking.run_done(run_record())
    assert caplog.messages == ["ours failed and is switched off for the rest of this run: OSError: no route to the tracker"]
    assert failing.told == [("begin", "")]


class Hanging(Kept):
    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def begin(self, run: TrackedRun) -> str:
        self.go_on.wait()
        return "late"


def test_a_tracker_that_hangs_holds_neither_the_rounds_nor_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hanging = Hanging()
    tracking = Tracking("ours", hanging, Config.parse({}), tmp_path, patience_s=0.0)
    tracking.run_started(RUN_ID, 2)
    tell_rounds(tracking, 1, 2)
    tracking.run_done(run_record())
    assert caplog.messages == ["ours has not taken everything in after 0 s, and is not waited for"]
    hanging.go_on.set()
    tracking._thread.join()


def test_a_run_that_fails_before_it_begins_tells_no_tracker(tmp_path: Path) -> None:
    kept = Kept()
    Tracking("kept", kept, Config.parse({}), tmp_path).run_failed("the port is taken")
    assert kept.told == []


@pytest.mark.parametrize("name", list(TRACKERS))
def test_what_is_not_installed_is_said_with_the_command_that_installs_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_module, "find_spec", lambda module: None)
    with pytest.raises(ConfigError, match=rf"--track {name}: .* not installed; install what is missing with\n.*install"):
        tracker_of(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorbord", "mlflow, tensorboard, wandb or package.module:Class is expected"),
        (f"{__name__}:RUN_ID", "a subclass of feddkd.Tracker is expected"),
        ("no.such.module:Tracker", "there is no module"),
    ],
)
def test_a_name_that_stands_for_no_tracker_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tracker_of(name)


@pytest.mark.parametrize("arguments", [["run", "--out", "record"], ["server", "s.toml", "--listen", "127.0.0.1:0", "--state", "record"]])
def test_a_tracker_that_cannot_be_used_is_said_before_anything_starts(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracker_module, "find_spec", lambda module: None)
    result = CliRunner().invoke(app, [*arguments, "--track", "mlflow"])
    assert isinstance(result.exception, ConfigError)
    assert "--track mlflow: mlflow, sqlalchemy, alembic are not installed; install what is missing with" in str(result.exception)
    assert list(tmp_path.iterdir()) == []
