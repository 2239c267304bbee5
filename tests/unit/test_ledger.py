import json
import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import load_file

from feddkd.config import Config
from feddkd.data.datasets import load_test, load_train
from feddkd.data.partitions import client_ids, partition
from feddkd.engines.simulation import run_federation
from feddkd.errors import StateError
from feddkd.exchange import Evaluation, ExampleCounts, ExchangeId
from feddkd.models.initial import build_initial
from feddkd.observability.ledger import Ledger
from feddkd.observability.record_lines import SITE_NUMBERS
from feddkd.observability.run_folder import RunFolder
from feddkd.scheduler.records import ExchangeRecord, RoundRecord, RunRecord
from feddkd.scheduler.sites import Doubt
from feddkd.tensors import Schema, Tensors, TensorSpec
from feddkd.traffic import Traffic

BYTES = ("payload_bytes_down", "payload_bytes_up", "wire_bytes_down", "wire_bytes_up")
# Section 6 of the design, word by word.
EXCHANGE_KEYS = {"round", "exchange", "step", "clients_selected", "clients_reported", *BYTES, "seconds", "loss"}
ROUND_KEYS = {"round", "accuracy", "loss", *BYTES, "cumulative_wire_bytes", "seconds", "clients_reported"}
# What came after it.
LOST = {"lost_wire_bytes_down", "lost_wire_bytes_up"}
TENSOR_EXTRAS = {"dense_bytes_down", "dense_bytes_up", "snapshot_bytes_down"}
EXCHANGE_EXTRAS = TENSOR_EXTRAS | LOST | {"time", "attempt", "clients_missing", "client_seconds", "gradient_evaluations", "metrics"}
SUMMARY_EXTRAS = {
    *("run_id", "other_wire_bytes_up", "other_wire_bytes_down", "gradient_evaluations", "cpu_capability"),
    *("rounds_missed", "not_delivered", "examples", "doubtful_labels", "outliers", "best_round", "delivered_round", "stopped"),
    *("started", "ended", "presence", "metric", "final_score", "best_score", "scores"),
    *("payload_bytes_down", "payload_bytes_up", "exchanges", *TENSOR_EXTRAS, *LOST),
}
ROUND_EXTRAS = (
    TENSOR_EXTRAS
    | LOST
    | {
        *("gradient_evaluations", "class_accuracy", "metrics", "clients_missing"),
        *("labelled_examples", "unlabelled_examples", "time", "scores"),
    }
)
SUMMARY_KEYS = {
    *("algorithm", "rounds", "final_accuracy", "best_accuracy", "total_wire_bytes_up", "total_wire_bytes_down"),
    *("seconds", "seed", "model_sha256", "versions"),
}
EVALUATION_EXTRAS = {"client_examples", "client_accuracy", "client_loss", "client_scores"}

CONFIG = Config.parse({"seed": 3, "rounds": 2, "partition": {"name": "iid", "clients": 3}, "training": {"epochs": 1}, "dkd": {"steps": 2}})
EXCHANGE = ExchangeRecord(
    ExchangeId("run", 1, 0, "local_train", 0),
    clients_selected=3,
    clients_reported=2,
    clients_missing={"client-1": "disconnected"},
    traffic=Traffic(10, 20, 30, 40, 100, 200, 5),
    seconds=0.25,
    client_seconds=0.5,
    gradient_evaluations=700,
    loss=1.5,
    client_evaluation=Evaluation(8, 6, 4.0),
    metrics={"update_norm_squared": 4.0, "drift_diversity": 2.0},
    lost=Traffic(0, 0, 3, 4),
    done_s=1_796_000_000.25,
)
ROUND = RoundRecord(
    round=1,
    evaluation=Evaluation(10, 7, 5.0, (4, 6, 0), (1, 6, 0)),
    client_evaluation=Evaluation(8, 6, 4.0),
    traffic=Traffic(10, 20, 30, 40, 100, 200, 5),
    cumulative_wire_bytes=70,
    seconds=1.25,
    clients_reported=2,
    clients_missing={"client-1": "disconnected"},
    gradient_evaluations=900,
    metrics={"drift_diversity": 2.0},
    examples=ExampleCounts(40, 60),
    lost=Traffic(0, 0, 3, 4),
    done_s=1_796_000_001.5,
)


def refuse(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is not JSON")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with closing(Ledger(tmp_path / "out", CONFIG)) as ledger:
        yield ledger


@dataclass
class Run:
    out: Path
    record: RunRecord
    exchanges: list[dict[str, Any]]
    rounds: list[dict[str, Any]]
    summary: dict[str, Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A whole federation in this process."""
    out = tmp_path_factory.mktemp("run")
    with closing(Ledger(out, CONFIG)) as ledger:
        record = run_federation(CONFIG, "in-process", out, [ledger])
    summary = json.loads((out / "summary.json").read_text(), parse_constant=refuse)
    return Run(out, record, lines(out / "exchanges.jsonl"), lines(out / "rounds.jsonl"), summary)


def test_an_exchange_becomes_a_line_at_once(ledger: Ledger, tmp_path: Path) -> None:
    ledger.exchange_done(EXCHANGE)
    # Read before the ledger is closed: a run that is cut off leaves all it knew.
    assert lines(tmp_path / "out" / "exchanges.jsonl") == [
        {
            "round": 1,
            "attempt": 0,
            "exchange": "local_train",
            "step": 0,
            "time": "2026-11-30T00:53:20.250Z",
            "clients_selected": 3,
            "clients_reported": 2,
            "clients_missing": {"client-1": "disconnected"},
            "payload_bytes_down": 10,
            "payload_bytes_up": 20,
            "dense_bytes_down": 100,
            "dense_bytes_up": 200,
            "snapshot_bytes_down": 5,
            "wire_bytes_down": 30,
            "wire_bytes_up": 40,
            "lost_wire_bytes_down": 3,
            "lost_wire_bytes_up": 4,
            "seconds": 0.25,
            "client_seconds": 0.5,
            "gradient_evaluations": 700,
            "loss": 1.5,
            "client_examples": 8,
            "client_accuracy": 0.75,
            "client_loss": 0.5,
            "client_scores": {"accuracy": 0.75, "loss": 0.5},
            "metrics": {"update_norm_squared": 4.0, "drift_diversity": 2.0},
        }
    ]


def test_what_single_clients_said_is_on_the_line_where_there_is_something(ledger: Ledger, tmp_path: Path) -> None:
    ledger.exchange_done(EXCHANGE)
    said = {"teacher_accuracy": {"site-a": 0.75, "site-b": 0.5}, "loss": {"site-a": 1.25}}
    ledger.exchange_done(replace(EXCHANGE, by_client=said))
    without, with_numbers = lines(tmp_path / "out" / "exchanges.jsonl")
    assert with_numbers == without | {"by_client": said}


def test_a_round_becomes_a_line_at_once(ledger: Ledger, tmp_path: Path) -> None:
    ledger.round_done(ROUND)
    assert lines(tmp_path / "out" / "rounds.jsonl") == [
        {
            "round": 1,
            "time": "2026-11-30T00:53:21.500Z",
            "accuracy": 0.7,
            "loss": 0.5,
            "scores": {"accuracy": 0.7, "loss": 0.5},
            "client_examples": 8,
            "client_accuracy": 0.75,
            "client_loss": 0.5,
            "client_scores": {"accuracy": 0.75, "loss": 0.5},
            "payload_bytes_down": 10,
            "payload_bytes_up": 20,
            "dense_bytes_down": 100,
            "dense_bytes_up": 200,
            "snapshot_bytes_down": 5,
            "wire_bytes_down": 30,
            "wire_bytes_up": 40,
            "lost_wire_bytes_down": 3,
            "lost_wire_bytes_up": 4,
            "cumulative_wire_bytes": 70,
            "seconds": 1.25,
            "clients_reported": 2,
            "clients_missing": {"client-1": "disconnected"},
            "gradient_evaluations": 900,
            "class_accuracy": [0.25, 1.0, None],
            "metrics": {"drift_diversity": 2.0},
            "labelled_examples": 40,
            "unlabelled_examples": 60,
        }
    ]


@pytest.mark.parametrize("diverged", [math.nan, math.inf, -math.inf])
def test_a_diverged_loss_is_null(ledger: Ledger, tmp_path: Path, diverged: float) -> None:
    evaluation = Evaluation(8, 1, diverged)
    ledger.exchange_done(replace(EXCHANGE, loss=diverged, client_evaluation=evaluation, metrics={"some": diverged}))
    ledger.round_done(replace(ROUND, evaluation=evaluation, client_evaluation=evaluation, metrics={"some": diverged}))
    (exchange,), (finished,) = lines(tmp_path / "out" / "exchanges.jsonl"), lines(tmp_path / "out" / "rounds.jsonl")
    assert (exchange["loss"], exchange["client_loss"], exchange["client_accuracy"]) == (None, None, 0.125)
    assert (finished["loss"], finished["client_loss"], finished["accuracy"]) == (None, None, 0.125)
    assert exchange["metrics"] == finished["metrics"] == {"some": None}


def test_what_nobody_evaluated_is_null(ledger: Ledger, tmp_path: Path) -> None:
    ledger.exchange_done(replace(EXCHANGE, loss=None, client_evaluation=None))
    ledger.round_done(replace(ROUND, evaluation=None, client_evaluation=None))
    (exchange,), (finished,) = lines(tmp_path / "out" / "exchanges.jsonl"), lines(tmp_path / "out" / "rounds.jsonl")
    assert exchange.keys() == EXCHANGE_KEYS | EVALUATION_EXTRAS | EXCHANGE_EXTRAS
    assert finished.keys() == ROUND_KEYS | EVALUATION_EXTRAS | ROUND_EXTRAS
    assert exchange["client_scores"] == finished["client_scores"] == finished["scores"] == {}
    null = EVALUATION_EXTRAS - {"client_scores"} | {"loss"}
    assert {exchange[key] for key in null} == {None}
    assert {finished[key] for key in null | {"accuracy", "class_accuracy"}} == {None}


def test_the_resolved_configuration_reads_back(ledger: Ledger, tmp_path: Path) -> None:
    assert Config.load(tmp_path / "out" / "config.toml") == CONFIG


def test_the_record_of_another_run_is_not_overwritten(tmp_path: Path) -> None:
    with closing(Ledger(tmp_path, CONFIG)) as first:
        first.exchange_done(EXCHANGE)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(StateError, match="already holds the record of a run; choose another --out") as caught:
        Ledger(tmp_path, Config())
    assert str(tmp_path) in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_holds_other_things_will_do(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with closing(Ledger(tmp_path, CONFIG)) as ledger:
        ledger.exchange_done(EXCHANGE)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert lines(tmp_path / "exchanges.jsonl")


def test_a_run_that_never_began_leaves_its_folder_free_for_another(tmp_path: Path) -> None:
    Ledger(tmp_path, Config()).close()
    with closing(Ledger(tmp_path, CONFIG)) as ledger:
        ledger.exchange_done(EXCHANGE)
    assert Config.load(tmp_path / "config.toml") == CONFIG
    assert len(lines(tmp_path / "exchanges.jsonl")) == 1


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with closing(Ledger(tmp_path, CONFIG)), pytest.raises(StateError, match="already holds the record of a run"):
        Ledger(tmp_path, CONFIG)


def test_a_run_that_was_killed_before_its_first_exchange_leaves_its_folder_free(tmp_path: Path) -> None:
    for name in ("exchanges.jsonl", "rounds.jsonl"):
        (tmp_path / name).write_text("")
    with closing(Ledger(tmp_path, CONFIG)) as ledger:
        ledger.exchange_done(EXCHANGE)
    assert len(lines(tmp_path / "exchanges.jsonl")) == 1


MODEL = Tensors(Schema([TensorSpec("w", torch.float32, (3,))]))
WRITES: dict[str, Callable[[Ledger], None]] = {
    "exchanges.jsonl": lambda ledger: ledger.exchange_done(EXCHANGE),
    "rounds.jsonl": lambda ledger: ledger.round_done(ROUND),
    "summary.json": lambda ledger: ledger.run_done(RunRecord("abc", 2, MODEL, None, None, Traffic(), Traffic(), 1, 1.0, {}, {})),
    "partition.json": lambda ledger: ledger.partitioned({"client-0": [1, 2]}),
}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("file", WRITES)
def test_a_disk_that_is_full_is_said_in_one_line_that_names_the_file(file: str, tmp_path: Path) -> None:
    (tmp_path / file).symlink_to("/dev/full")
    with closing(Ledger(tmp_path, CONFIG)) as ledger, pytest.raises(StateError) as refused:
        WRITES[file](ledger)
    assert str(refused.value) == f"cannot write {tmp_path / file}: No space left on device"


def test_a_model_that_cannot_be_written_is_named_and_leaves_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with (
        closing(Ledger(tmp_path, CONFIG)) as ledger,
        pytest.raises(StateError, match=r"^cannot write .*/model\.safetensors: Is a directory$"),
    ):
        ledger.round_finished(1, MODEL)
    assert not (tmp_path / "model.safetensors.partial").exists()


def test_a_folder_that_cannot_be_made_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError) as caught:
        Ledger(tmp_path / "file" / "out", CONFIG)
    assert str(caught.value) == f"cannot write the record of the run to {tmp_path / 'file' / 'out'}: Not a directory"


def test_the_summary_counts_all_bytes_and_names_those_outside_exchanges(ledger: Ledger, tmp_path: Path) -> None:
    model = Tensors(Schema([TensorSpec("w", torch.float32, (3,))]))
    inside, outside = Traffic(1, 2, 300, 400), Traffic(0, 0, 5, 6)
    ledger.run_done(RunRecord("abc", 2, model, None, None, inside, outside, 4321, 1.23456, {"b": 1}, {"b": "gone"}))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["total_wire_bytes_down"], summary["total_wire_bytes_up"]) == (305, 406)
    assert (summary["other_wire_bytes_down"], summary["other_wire_bytes_up"]) == (5, 6)
    assert (summary["final_accuracy"], summary["best_accuracy"], summary["seconds"]) == (None, None, 1.235)
    assert summary["gradient_evaluations"] == 4321
    assert (summary["rounds_missed"], summary["not_delivered"]) == ({"b": 1}, {"b": "gone"})


def test_the_summary_counts_labels_by_client_and_names_doubtful_ones(ledger: Ledger, tmp_path: Path) -> None:
    record = RunRecord(
        *("abc", 2, MODEL, None, None, Traffic(), Traffic(), 1, 1.0, {}, {}),
        examples={"a": ExampleCounts(3, 40), "b": ExampleCounts(7)},
        doubtful_labels={"b": Doubt(0.5, 0.125, 4)},
        outliers={"c": 2},
    )
    ledger.run_done(record)
    summary = RunFolder.load(tmp_path / "out").summary
    assert summary is not None
    found = summary.model_dump()
    assert found["examples"] == {"a": {"labelled": 3, "unlabelled": 40}, "b": {"labelled": 7, "unlabelled": 0}}
    assert found["outliers"] == {"c": 2}
    assert found["doubtful_labels"] == {"b": {"disagreement": 0.5, "median": 0.125, "round": 4}}


def test_a_run_leaves_sites_numbers_that_average_to_the_record(run: Run) -> None:
    first = run.exchanges[0]
    counts = run.summary["examples"]
    assert counts.keys() == set(client_ids(3))
    assert all(line["labelled_examples"] == sum(own["labelled"] for own in counts.values()) for line in run.rounds)
    total = sum(own["labelled"] for own in counts.values())
    for name in ("teacher_accuracy", "loss"):
        mean = sum(counts[client]["labelled"] * value for client, value in first["by_client"][name].items()) / total
        assert mean == pytest.approx(first["metrics"][name] if name in first["metrics"] else first["loss"])
    assert first["by_client"]["client_accuracy"].keys() == counts.keys()
    assert {name for line in run.exchanges for name in line.get("by_client", {})} == set(SITE_NUMBERS)
    assert [line["exchange"] for line in run.exchanges if "label_disagreement" in line.get("by_client", {})] == ["dkd_step"] * 2


def test_a_run_leaves_lines_with_the_keys_of_the_design(run: Run) -> None:
    assert {name.name for name in run.out.iterdir() if name.is_file()} == {
        *("config.toml", "journal.jsonl", "exchanges.jsonl", "rounds.jsonl", "summary.json", "model.safetensors", "partition.json"),
        *("best.safetensors", "classes.json"),
    }
    for line in run.exchanges:
        assert line.keys() - {"by_client"} == EXCHANGE_KEYS | EVALUATION_EXTRAS | EXCHANGE_EXTRAS
    for line in run.rounds:
        assert line.keys() == ROUND_KEYS | EVALUATION_EXTRAS | ROUND_EXTRAS
    assert run.summary.keys() == SUMMARY_KEYS | SUMMARY_EXTRAS


def test_a_reader_knows_every_key_that_the_ledger_writes(run: Run) -> None:
    folder = RunFolder.load(run.out)
    for written, read in ((run.exchanges, folder.exchanges), (run.rounds, folder.rounds), ([run.summary], [folder.summary])):
        assert len(written) == len(read)
        for line, found in zip(written, read, strict=True):
            assert found is not None
            known = found.model_dump()
            if known.get("by_client") == {}:
                del known["by_client"]  # written only where a client said something
            assert line == known


def test_the_partition_on_record_is_the_one_that_the_clients_have(run: Run) -> None:
    recorded = json.loads((run.out / "partition.json").read_text())
    labels = load_train(CONFIG.data, CONFIG.seed).labels
    parts = partition(CONFIG.partition, labels, 10, CONFIG.seed)
    assert recorded == {
        client: [int((labels[part] == label).sum()) for label in range(10)] for client, part in zip(client_ids(3), parts, strict=True)
    }
    assert sum(map(sum, recorded.values())) == len(labels)
    (train,) = {line["gradient_evaluations"] for line in run.exchanges if line["exchange"] == "local_train"}
    # A tenth is held out; beside training, each client computes the loss of the model it got on one batch.
    assert train == sum(sum(counts) - round(0.1 * sum(counts)) + 64 for counts in recorded.values())


def test_a_partition_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    with closing(Ledger(tmp_path / "out", CONFIG)) as ledger:
        (tmp_path / "out" / "partition.json").mkdir()
        with pytest.raises(StateError) as caught:
            ledger.partitioned({"client-0": [1, 2]})
    assert str(caught.value) == f"cannot write {tmp_path / 'out' / 'partition.json'}: Is a directory"


def test_accuracy_by_class_averages_to_the_accuracy(run: Run) -> None:
    labels = load_test(CONFIG.data).labels
    counts = [int((labels == label).sum()) for label in range(10)]
    for line in run.rounds:
        assert len(line["class_accuracy"]) == 10
        correct = sum(accuracy * count for accuracy, count in zip(line["class_accuracy"], counts, strict=True))
        assert correct / len(labels) == pytest.approx(line["accuracy"])


def test_work_and_metrics_are_on_record(run: Run) -> None:
    for line in run.rounds:
        own = [exchange for exchange in run.exchanges if exchange["round"] == line["round"]]
        assert line["gradient_evaluations"] == sum(exchange["gradient_evaluations"] for exchange in own)
        assert line["metrics"]["drift_diversity"] == own[0]["metrics"]["drift_diversity"] >= 1
        assert 0 < line["metrics"]["teacher_entropy"] < math.log(10)
    steps = [line for line in run.exchanges if line["exchange"] == "dkd_step"]
    assert {line["gradient_evaluations"] for line in steps} == {3 * CONFIG.dkd.batch_size}
    assert [list(line["metrics"]) for line in steps] == [["label_disagreement", "teacher_entropy"], []] * 2
    assert run.summary["gradient_evaluations"] == sum(line["gradient_evaluations"] for line in run.rounds)
    assert all(line["client_seconds"] > 0 for line in run.exchanges)


def test_a_run_leaves_one_line_for_each_exchange_and_round(run: Run) -> None:
    steps = [("local_train", 0), ("dkd_step", 0), ("dkd_step", 1)]
    assert [(line["round"], line["exchange"], line["step"]) for line in run.exchanges] == [
        *((1, *step) for step in steps),
        *((2, *step) for step in steps),
        (2, "deliver", 0),
    ]
    assert [line["round"] for line in run.rounds] == [1, 2]
    assert all(line["clients_selected"] == line["clients_reported"] == 3 for line in run.exchanges)
    assert all(line["loss"] > 0 for line in run.exchanges if line["exchange"] != "deliver")
    assert all(line["seconds"] > 0 for line in run.exchanges + run.rounds)


def test_rounds_sum_their_exchanges_and_the_summary_sums_the_rounds(run: Run) -> None:
    cumulative = 0
    for line in run.rounds:
        own = [exchange for exchange in run.exchanges if exchange["round"] == line["round"]]
        for key in BYTES:
            assert line[key] == sum(exchange[key] for exchange in own) > 0
        for key in TENSOR_EXTRAS:
            assert line[key] == sum(exchange[key] for exchange in own)
        assert line["seconds"] >= sum(exchange["seconds"] for exchange in own if exchange["exchange"] != "deliver") - 1e-4
        cumulative += line["wire_bytes_down"] + line["wire_bytes_up"]
        assert line["cumulative_wire_bytes"] == cumulative
    for direction in ("up", "down"):
        inside = sum(line[f"wire_bytes_{direction}"] for line in run.rounds)
        assert run.summary[f"total_wire_bytes_{direction}"] == inside + run.summary[f"other_wire_bytes_{direction}"]
    for key in {"payload_bytes_down", "payload_bytes_up"} | TENSOR_EXTRAS:
        assert run.summary[key] == sum(line[key] for line in run.rounds)


def test_the_summary_has_the_bytes_of_each_kind_of_exchange(run: Run) -> None:
    assert list(run.summary["exchanges"]) == ["local_train", "dkd_step", "deliver"]
    for name, counts in run.summary["exchanges"].items():
        own = [line for line in run.exchanges if line["exchange"] == name]
        assert counts == {key: sum(line[key] for line in own) for key in (*BYTES, *TENSOR_EXTRAS)}


def test_without_a_codec_the_dense_bytes_are_those_of_the_payload(run: Run) -> None:
    for line in (*run.exchanges, *run.rounds, run.summary):
        assert line["dense_bytes_down"] == line["payload_bytes_down"]
        assert line["dense_bytes_up"] == line["payload_bytes_up"]
        assert line["snapshot_bytes_down"] == 0


def test_payload_bytes_are_those_of_the_tensors(run: Run) -> None:
    model = build_initial(CONFIG).model.schema
    for line in run.exchanges:
        assert line["payload_bytes_down"] == 3 * model.size_bytes
        # Beside its update, a client sends one float64: its loss at the model it got.
        answer = {"local_train": model.size_bytes + 8, "dkd_step": model.trainable.size_bytes, "deliver": 0}[line["exchange"]]
        assert line["payload_bytes_up"] == 3 * answer
        assert line["wire_bytes_down"] > line["payload_bytes_down"]
        assert line["wire_bytes_up"] > line["payload_bytes_up"]


def test_a_model_is_evaluated_by_the_broadcast_that_carries_it(run: Run) -> None:
    evaluated = [line for line in run.exchanges if line["client_accuracy"] is not None]
    assert [(line["round"], line["exchange"]) for line in evaluated] == [(1, "local_train"), (2, "local_train"), (2, "deliver")]
    # The first is of the initial model; the others are of the models that the rounds left.
    assert [line["client_accuracy"] for line in run.rounds] == [line["client_accuracy"] for line in evaluated[1:]]


def test_the_summary_says_how_the_run_ended(run: Run) -> None:
    summary, accuracies = run.summary, [line["accuracy"] for line in run.rounds]
    assert (summary["algorithm"], summary["rounds"], summary["seed"]) == ("feddkd", 2, 3)
    assert summary["run_id"] == run.record.run_id
    assert summary["final_accuracy"] == accuracies[-1]
    assert summary["best_accuracy"] == max(accuracies)
    assert summary["seconds"] >= sum(line["seconds"] for line in run.rounds) - 0.01
    assert {"feddkd", "python", "torch", "numpy", "grpcio", "protobuf"} <= summary["versions"].keys()


def test_the_final_model_loads_and_has_the_hash_of_the_summary(run: Run) -> None:
    tensors = load_file(run.out / "model.safetensors")
    schema = build_initial(CONFIG).model.schema
    assert set(tensors) == set(schema.by_name)
    model = Tensors.copy_of(schema, tensors)
    assert model.sha256() == run.summary["model_sha256"] == run.record.model.sha256()
    assert model.sha256() != build_initial(CONFIG).model.sha256()
