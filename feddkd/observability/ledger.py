"""Writes the communication ledger: cost and result of every exchange and round, one JSON object per line.

Sizes are in bytes, times in seconds; down is towards the client. A line is written and flushed as soon as it
is complete, so an interrupted run leaves a record up to that point.

A run ends if its record cannot be written: every failed write raises a StateError that names the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from safetensors import SafetensorError

from feddkd.config import Config, MainMetric
from feddkd.durable import write_durably
from feddkd.errors import StateError
from feddkd.exchange import Evaluation, ExampleCounts
from feddkd.models.initial import WholeModel, about_classes
from feddkd.observability.model_files import BEST, ModelFiles
from feddkd.observability.run_folder import CLASSES, CONFIG, EXCHANGES, MODEL, PARTITION, ROUNDS, RUN_COMMENT, SUMMARY
from feddkd.observability.versions import cpu_capability, installed_versions
from feddkd.scheduler.attendance import Presence
from feddkd.scheduler.engine import Engine
from feddkd.scheduler.records import ExchangeRecord, Observer, RoundRecord, RunRecord
from feddkd.tensors import Tensors
from feddkd.text import printable, utc_time
from feddkd.traffic import Traffic


class Ledger(Observer):
    """Writes what a run leaves behind into a folder: its configuration, a line for each exchange and round, summary and model.

    Every method raises StateError for a file that cannot be written.
    """

    essential = True

    def __init__(self, out: Path, config: Config, *, again: bool = False, run_id: str | None = None) -> None:
        """Start the record of a run.

        Args:
            again: the folder may hold the record of this run; it is written again from what is told of its history.
            run_id: the run, where it is known by now; no other run's record is written over then.

        Raises:
            StateError: the folder cannot be written, or already holds the record of another run.
        """
        self._out = out
        self._config = config
        self._began = False
        self._whole = WholeModel()
        self._engine: Engine | None = None
        self._class_names: tuple[str, ...] = ()
        self._models = ModelFiles(out, config.scheduler.keep_checkpoints)
        try:
            out.mkdir(parents=True, exist_ok=True)
            _check_whose(out / CONFIG, run_id)
            self._exchanges = _open_for_one_run(out, again=again)
            write_durably(out / CONFIG, (_whose(run_id) + config.to_toml()).encode())
            self._rounds = (out / ROUNDS).open("w", encoding="utf-8")
        except OSError as error:
            raise StateError(f"cannot write the record of the run to {out}: {error.strerror}") from error

    def model_known(self, whole: WholeModel) -> None:
        self._whole = whole

    def partitioned(self, counts: Mapping[str, Sequence[int]]) -> None:
        """Write `partition.json`."""
        with _writing(self._out / PARTITION) as file:
            file.write_text(json.dumps(counts) + "\n", encoding="utf-8")

    def engine_ready(self, engine: Engine) -> None:
        self._engine = engine

    def clients_available(self, examples: Mapping[str, ExampleCounts]) -> None:
        """Write `classes.json`, once the names of the classes are known."""
        names = () if self._engine is None else tuple(self._engine.class_names)
        if names == self._class_names:
            return
        self._class_names = names
        with _writing(self._out / CLASSES) as file:
            file.write_text(json.dumps(names) + "\n", encoding="utf-8")

    def exchange_done(self, record: ExchangeRecord) -> None:
        self._began = True
        _append(self._exchanges, exchange_line(record))

    def round_done(self, record: RoundRecord) -> None:
        _append(self._rounds, round_line(record))
        if record.evaluation is not None:
            with _writing(self._out / BEST):
                self._models.evaluated(record.round, record.evaluation.worth)

    def round_finished(self, round_number: int, model: Tensors) -> None:
        """Keep the newest global model, so that a run that is cut off leaves what it had learned."""
        with _writing(self._out / MODEL):
            self._models.write(round_number, self._whole.of(model), self._about(round_number))

    def _about(self, round_number: int) -> dict[str, str]:
        """Return the metadata of the file of a round's model."""
        return {**self._whole.about, **about_classes(self._class_names), "round": str(round_number)}

    def run_done(self, record: RunRecord) -> None:
        if record.delivered_round is not None:
            with _writing(self._out / MODEL):
                self._models.deliver(self._whole.of(record.model), self._about(record.delivered_round))
        summary = summarize(record, self._config)
        with _writing(self._out / SUMMARY) as file:
            file.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")

    def close(self) -> None:
        """Close the files; everything that was complete is already in them. A run that never began leaves its folder free for another."""
        for file in (self._exchanges, self._rounds):
            with contextlib.suppress(OSError):  # what could not be written was said when it was to be written
                file.close()
        if not self._began:
            (self._out / EXCHANGES).unlink(missing_ok=True)
            (self._out / ROUNDS).unlink(missing_ok=True)


def exchange_line(record: ExchangeRecord) -> dict[str, Any]:
    """Return the content of a line of `exchanges.jsonl`."""
    return {
        "round": record.id.round,
        "attempt": record.id.attempt,
        "exchange": record.id.name,
        "step": record.id.step,
        "time": utc_time(record.done_s),
        "clients_selected": record.clients_selected,
        "clients_reported": record.clients_reported,
        "clients_missing": dict(record.clients_missing),
        **_byte_counts(record.traffic),
        **_lost(record.lost),
        "seconds": round(record.seconds, 6),
        "client_seconds": round(record.client_seconds, 6),
        "gradient_evaluations": record.gradient_evaluations,
        "loss": _finite(record.loss),
        **_client_evaluation(record.client_evaluation),
        "metrics": _finite_metrics(record.metrics),
        **({"outliers": dict(record.outliers)} if record.outliers else {}),
        **({"by_client": {name: dict(values) for name, values in record.by_client.items()}} if record.by_client else {}),
    }


def round_line(record: RoundRecord) -> dict[str, Any]:
    """Return the content of a line of `rounds.jsonl`."""
    return {
        "round": record.round,
        "time": utc_time(record.done_s),
        "accuracy": record.evaluation.accuracy if record.evaluation else None,
        "loss": _finite(record.evaluation.loss) if record.evaluation else None,
        "scores": _scores(record.evaluation),
        **_client_evaluation(record.client_evaluation),
        **_byte_counts(record.traffic),
        **_lost(record.lost),
        "cumulative_wire_bytes": record.cumulative_wire_bytes,
        "seconds": round(record.seconds, 6),
        "clients_reported": record.clients_reported,
        "clients_missing": dict(record.clients_missing),
        "gradient_evaluations": record.gradient_evaluations,
        "class_accuracy": record.evaluation.class_accuracy if record.evaluation else None,
        "metrics": _finite_metrics(record.metrics),
        "labelled_examples": record.examples.labelled,
        "unlabelled_examples": record.examples.unlabelled,
    }


def summarize(record: RunRecord, config: Config) -> dict[str, Any]:
    """Return the content of `summary.json`.

    `total_wire_bytes_*` cover everything that crossed the network; the part that belongs to no exchange
    (joining, late answers, farewells) is in `other_wire_bytes_*` as well. `exchanges` has the bytes of the
    exchanges by their name. `metric` is the one that decides which round is the best; `final_score` and
    `best_score` are its values, and `scores` has all metrics of the final model.
    """
    shares, metric = config.scheduler.share_client_metrics, MainMetric.of(config).name
    return {
        "algorithm": config.algorithm.name,
        "rounds": record.rounds,
        "final_accuracy": record.final_evaluation.accuracy if record.final_evaluation else None,
        "best_accuracy": record.best_accuracy,
        "metric": metric,
        "final_score": _score(record.final_evaluation, metric),
        "best_score": _score(record.best_evaluation, metric),
        "scores": _scores(record.final_evaluation),
        "best_round": record.best_round,
        "delivered_round": record.rounds if record.delivered_round is None else record.delivered_round,
        "stopped": record.stopped,
        "total_wire_bytes_up": record.traffic.wire_bytes_up + record.other_traffic.wire_bytes_up,
        "total_wire_bytes_down": record.traffic.wire_bytes_down + record.other_traffic.wire_bytes_down,
        "other_wire_bytes_up": record.other_traffic.wire_bytes_up,
        "other_wire_bytes_down": record.other_traffic.wire_bytes_down,
        **_lost(record.lost_traffic),
        **_tensor_bytes(record.traffic),
        "exchanges": {name: _byte_counts(traffic) for name, traffic in record.exchange_traffic.items()},
        "gradient_evaluations": record.gradient_evaluations,
        "seconds": round(record.seconds, 3),
        "rounds_missed": dict(record.rounds_missed),
        "not_delivered": dict(record.not_delivered),
        "started": utc_time(record.started_s),
        "ended": utc_time(record.ended_s),
        "examples": {client: counts._asdict() for client, counts in record.examples.items()} if shares else {},
        "presence": {client: _presence(own) for client, own in record.presence.items()} if shares else {},
        "doubtful_labels": {client: dataclasses.asdict(doubt) for client, doubt in record.doubtful_labels.items()},
        "outliers": dict(record.outliers),
        "seed": config.seed,
        "model_sha256": record.model.sha256(),
        "run_id": record.run_id,
        "versions": installed_versions(),
        "cpu_capability": cpu_capability(),
    }


def _presence(presence: Presence) -> dict[str, Any]:
    return {"rounds": presence.rounds, "first": utc_time(presence.first_s), "last": utc_time(presence.last_s)}


def _byte_counts(traffic: Traffic) -> dict[str, int]:
    return {
        **_tensor_bytes(traffic),
        "wire_bytes_down": traffic.wire_bytes_down,
        "wire_bytes_up": traffic.wire_bytes_up,
    }


def _lost(traffic: Traffic) -> dict[str, int]:
    """What was lost: the part of the wire bytes that a run without faults would not have spent."""
    return {"lost_wire_bytes_down": traffic.wire_bytes_down, "lost_wire_bytes_up": traffic.wire_bytes_up}


def _tensor_bytes(traffic: Traffic) -> dict[str, int]:
    return {
        "payload_bytes_down": traffic.payload_bytes_down,
        "payload_bytes_up": traffic.payload_bytes_up,
        "dense_bytes_down": traffic.dense_bytes_down,
        "dense_bytes_up": traffic.dense_bytes_up,
        "snapshot_bytes_down": traffic.snapshot_bytes_down,
    }


def _client_evaluation(evaluation: Evaluation | None) -> dict[str, Any]:
    """On what the clients hold out: in an exchange, of the model it broadcast; in a round, of the round's model."""
    return {
        "client_examples": evaluation.examples if evaluation else None,
        "client_accuracy": evaluation.accuracy if evaluation else None,
        "client_loss": _finite(evaluation.loss) if evaluation else None,
        "client_scores": _scores(evaluation),
    }


def _scores(evaluation: Evaluation | None) -> dict[str, float | None]:
    """Every metric of an evaluation by its name, accuracy and loss included."""
    return _finite_metrics(evaluation.all_scores) if evaluation else {}


def _score(evaluation: Evaluation | None, metric: str) -> float | None:
    return _finite(evaluation.score(metric)) if evaluation else None


def _finite(value: float | None) -> float | None:
    """JSON has no NaN or infinity: a diverged loss is null."""
    return value if value is not None and math.isfinite(value) else None


def _finite_metrics(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _finite(value) for name, value in metrics.items()}


def _whose(run_id: str | None) -> str:
    """The comment that `config.toml` begins with."""
    return f"{RUN_COMMENT}{run_id}\n" if run_id is not None else ""


def _check_whose(file: Path, run_id: str | None) -> None:
    """Refuse a record that names another run. Raises StateError or OSError."""
    try:
        with file.open("rb") as stream:
            first = stream.readline(256).decode(errors="replace").rstrip("\n")
    except FileNotFoundError:
        return
    if run_id is not None and first.startswith(RUN_COMMENT) and first != _whose(run_id).rstrip("\n"):
        raise StateError(f"{file.parent} holds the record of {printable(first[2:])}; choose another --out for run {run_id}")


def _open_for_one_run(out: Path, *, again: bool) -> TextIO:
    """Open `exchanges.jsonl`, and lock it for as long as this process has it open.

    Args:
        again: what it holds is of this run, and is written from the beginning.

    Raises:
        StateError: another run has written to it, or is about to.
    """
    stream = (out / EXCHANGES).open("a", encoding="utf-8")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_free = again or stream.tell() == 0
    except BlockingIOError:
        is_free = False
    if not is_free:
        stream.close()
        raise StateError(f"{out} already holds the record of a run; choose another --out, or resume it with --resume")
    if stream.tell() > 0:
        stream.truncate(0)
    return stream


def _append(stream: TextIO, line: dict[str, Any]) -> None:
    with _writing(Path(stream.name)):
        stream.write(json.dumps(line) + "\n")
        stream.flush()


@contextlib.contextmanager
def _writing(file: Path) -> Iterator[Path]:
    """Turns what is raised while a file is written into StateError."""
    try:
        yield file
    except OSError as error:
        raise StateError(f"cannot write {file}: {error.strerror or error}") from error
    except SafetensorError as error:  # its text holds that of the operating system
        raise StateError(f"cannot write {file}: {error}") from error
