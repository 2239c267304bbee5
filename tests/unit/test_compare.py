"""The rows of a comparison, which of them share a run, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from report_records import write_record

from feddkd.bench.runs import Job, is_complete
from feddkd.bench.side_by_side import Run, make_rows, read_run, results
from feddkd.cli.comparison_tables import comparison_tables
from feddkd.config import Config
from feddkd.errors import ConfigError, StateError
from feddkd.observability.budgets import Curve


def config(*overrides: str) -> Config:
    return Config.load(None, ["rounds=2", "dkd.steps=3", *overrides])


def labels(*configs: tuple[str, Config]) -> dict[str, int]:
    return {row.label: row.rounds for row in make_rows(configs)}


def test_controls_are_added_to_feddkd() -> None:
    assert labels(("mine", config())) == {"mine": 2, "fedavg": 2, "fedavg_sgd": 2, "fedavg x4": 8}


def test_controls_that_are_given_are_not_added() -> None:
    given = [
        ("a", config()),
        ("b", config("algorithm.name=fedavg")),
        ("c", config("algorithm.name=fedavg_sgd")),
        ("d", config("algorithm.name=fedavg", "rounds=8")),
    ]
    assert labels(*given) == {"a": 2, "b": 2, "c": 2, "d": 8}


def test_the_longer_fedavg_has_the_settings_of_the_given_one() -> None:
    rows = make_rows([("a", config()), ("b", config("algorithm.name=fedavg", "training.lr=0.1"))])
    assert [row.config.training.lr for row in rows if row.label == "fedavg x4"] == [0.1]


@pytest.mark.parametrize("name", ["fedavg_sgd", "fedprox"])
def test_feddkd_is_added_to_what_is_compared_without_it(name: str) -> None:
    added = {"feddkd": 2, "fedavg": 2, **({} if name == "fedavg_sgd" else {"fedavg_sgd": 2}), "fedavg x4": 8}
    assert labels(("a", config(f"algorithm.name={name}"))) == {"a": 2, **added}


def test_an_algorithm_that_extends_feddkd_stands_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "extended.py").write_text("from feddkd.algorithms.feddkd import FedDKD\n\nclass Mine(FedDKD):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert labels(("a", config("algorithm.name=extended:Mine"))) == {"a": 2, "fedavg": 2, "fedavg_sgd": 2, "fedavg x4": 8}


def test_controls_train_with_the_cross_entropy_whatever_feddkd_does() -> None:
    assert list(labels(("a", config("algorithm.local_objective=fedntd")))) == [
        "a",
        "fedavg",
        "fedavg_sgd",
        "fedavg x4",
    ]


def test_fedavg_with_a_local_objective_does_not_stand_for_plain_fedavg() -> None:
    given = [("a", config()), ("prox", config("algorithm.name=fedavg", "algorithm.local_objective=fedprox"))]
    assert labels(*given) == {"a": 2, "prox": 2, "fedavg": 2, "fedavg_sgd": 2, "fedavg x4": 8}


def test_without_baselines_only_what_is_given_is_compared_and_the_first_sets_the_budgets() -> None:
    given = [("a", config("algorithm.name=fedprox")), ("b", config("algorithm.name=scaffold"))]
    rows = make_rows(given, baselines=False)
    assert [row.label for row in rows] == ["a", "b"]
    runs = {label: [Run(0, curve(0.8, rounds=2, bytes_a_round=10), None)] for label in "ab"}
    assert results(rows, runs, 0.5)["equal_wire_bytes"]["anchor"] == "a"


def test_the_verdict_is_on_feddkd_at_equal_rounds_and_bytes() -> None:
    rows = make_rows([("mine", config())])
    tops = {"mine": (0.9, 40), "fedavg": (0.4, 10), "fedavg_sgd": (0.9, 40), "fedavg x4": (0.5, 10)}
    runs = {}
    for row in rows:
        top, size = tops[row.label]
        curves = [curve(top + 0.01 * seed, rounds=row.rounds, bytes_a_round=size) for seed in (0, 1)]
        runs[row.label] = [Run(seed, own, None) for seed, own in enumerate(curves)]
    found = results(rows, runs, 0.5)["verdicts"]
    assert found["of"] == "mine"
    assert found["equal_rounds"] == {
        "fedavg": {"outcome": "ahead", "points": 50.0},
        "fedavg_sgd": {"outcome": "level", "points": 0.0},
    }
    assert found["equal_wire_bytes"]["fedavg x4"] == {"outcome": "ahead", "points": 40.0}


def test_labels_are_unique() -> None:
    assert list(labels(("fedavg", config()), ("fedavg", config("dkd.lr=0.1"))))[:3] == ["fedavg", "fedavg-2", "fedavg-3"]


def test_no_two_rows_have_the_same_folder(tmp_path: Path) -> None:
    rows = make_rows([("a", config()), ("fedavg-x4", config("algorithm.name=fedprox"))])
    folders = {row.label: row.job(0, tmp_path, "in-process").folder.name for row in rows}
    assert folders["fedavg-x4"] == "fedavg-x4-seed0"
    assert folders["fedavg x4-2"] == "fedavg-x4-2-seed0"


def test_fedavg_is_read_from_its_longer_run(tmp_path: Path) -> None:
    rows = {row.label: row for row in make_rows([("a", config())])}
    jobs = {label: row.job(7, tmp_path, "in-process") for label, row in rows.items()}
    assert jobs["fedavg"] == jobs["fedavg x4"]
    assert len(set(map(str, (job.folder for job in jobs.values())))) == 3
    assert jobs["fedavg"].config.rounds == 8
    assert {job.config.seed for job in jobs.values()} == {7}


def test_fedavg_with_other_settings_is_a_run_of_its_own(tmp_path: Path) -> None:
    given = [("a", config()), ("b", config("algorithm.name=fedavg")), ("c", config("algorithm.name=fedavg", "training.lr=0.1"))]
    rows = {row.label: row for row in make_rows(given)}
    assert rows["b"].reads_another_run
    assert not rows["c"].reads_another_run


@pytest.mark.parametrize(
    "override", ["data.holdout=0.2", "data.subset=100", "partition.labels=2", "partition.clients=5", "model.name=mcmahan_cnn"]
)
def test_what_cannot_be_compared_is_refused_by_name(override: str) -> None:
    with pytest.raises(ConfigError, match=rf"b and a cannot be compared: {override.partition('=')[0]} = "):
        make_rows([("a", config()), ("b", config(override))])


@pytest.mark.parametrize("override", ["training.lr=0.3", "data.root=elsewhere", "rounds=9", "dkd.steps=1", "algorithm.name=fedavg"])
def test_settings_of_training_may_differ(override: str) -> None:
    assert make_rows([("a", config()), ("b", config(override))])


def curve(top: float, *, rounds: int, bytes_a_round: int) -> Curve:
    accuracy = [top * number / rounds for number in range(1, rounds + 1)]
    return Curve(
        accuracy,
        [bytes_a_round * n for n in range(1, rounds + 1)],
        [10 * n for n in range(1, rounds + 1)],
        [1.0 * n for n in range(1, rounds + 1)],
    )


def test_results_read_every_row_at_the_same_budget() -> None:
    rows = make_rows([("feddkd", config())])
    long = curve(0.8, rounds=8, bytes_a_round=10)
    found = {
        "feddkd": curve(0.9, rounds=2, bytes_a_round=40),
        "fedavg": long.first(2, delivery_bytes=5),
        "fedavg_sgd": curve(0.7, rounds=2, bytes_a_round=40),
        "fedavg x4": long,
    }
    document = results(rows, {label: [Run(seed, each, None) for seed in (0, 1)] for label, each in found.items()}, target=0.75)

    def means(table: str) -> dict[str, float | None]:
        return {label: row["accuracy"] and round(row["accuracy"]["mean"], 3) for label, row in document[table]["rows"].items()}

    assert means("equal_rounds") == {"feddkd": 0.9, "fedavg": 0.2, "fedavg_sgd": 0.7}
    assert means("equal_wire_bytes") == {"feddkd": 0.9, "fedavg_sgd": 0.7, "fedavg x4": 0.8}
    assert document["equal_wire_bytes"]["budget"] == 80
    assert means("equal_gradient_evaluations") == {"feddkd": 0.9, "fedavg_sgd": 0.7, "fedavg x4": 0.2}
    assert document["to_target"]["fedavg_sgd"] == {"reached": 0, "of": 2, "rounds": None, "wire_bytes": None, "seconds": None}
    assert document["to_target"]["fedavg x4"]["wire_bytes"] == {"mean": 80, "deviation": 0, "min": 80, "max": 80}
    assert document["summary"]["fedavg"]["wire_bytes"]["mean"] == 25  # two rounds, and the delivery that they have not paid
    assert [run["round_seconds"] for run in document["runs"] if run["algorithm"] == "feddkd"] == [[1.0, 1.0]] * 2


def test_a_cheap_row_does_not_set_the_budget_but_says_what_share_it_spent() -> None:
    rows = make_rows([("feddkd", config()), ("fedavg", config("algorithm.name=fedavg", "training.lr=0.1", "rounds=8"))])
    found = {row.label: curve(0.9, rounds=2, bytes_a_round=100 if row.label == "feddkd" else 10) for row in rows}
    table = results(rows, {label: [Run(0, each, None)] for label, each in found.items()}, target=0.9)["equal_wire_bytes"]
    assert table["budget"] == 200
    assert table["rows"]["feddkd"]["rounds"] == [2]
    assert table["rows"]["feddkd"]["share_spent"] == pytest.approx(1, rel=0.01)
    cheap = next(row for label, row in table["rows"].items() if label != "feddkd" and row["rounds"] == [2] and row["share_spent"] < 1)
    assert cheap["share_spent"] == pytest.approx(20 / 200, rel=0.01)


def test_message_headers_do_not_cost_a_row_its_last_round() -> None:
    rows = make_rows([("feddkd", config())])
    found = {row.label: curve(0.9, rounds=2, bytes_a_round=10_005 if row.label == "fedavg_sgd" else 10_000) for row in rows}
    table = results(rows, {label: [Run(0, each, None)] for label, each in found.items()}, target=0.9)["equal_wire_bytes"]
    assert table["budget"] == 20_000
    assert table["rows"]["fedavg_sgd"]["rounds"] == [2]


def test_a_run_that_counted_no_gradients_has_no_accuracy_at_equal_gradients_and_the_table_says_why() -> None:
    rows = make_rows([("feddkd", config()), ("mine", config("algorithm.name=fedprox"))], baselines=False)
    counted = curve(0.9, rounds=2, bytes_a_round=10)
    found = {"feddkd": counted, "mine": replace(counted, gradient_evaluations=[0, 0])}
    document = results(rows, {label: [Run(0, each, None)] for label, each in found.items()}, target=0.9)
    names = {"feddkd": "FedDKD", "mine": "FedProx"}
    (table,) = (table for table in comparison_tables(document, names, None, short=True) if table.name == "equal_budgets")
    assert table.rows[1] == ["FedProx", "90.00", "90.00", "-"]
    assert (
        table.caption
        == "One run each (n = 1). Nothing at equal gradients for FedProx: its client side sets no gradient_evaluations in its Reply."
    )


def test_a_record_without_all_of_its_rounds_is_named(tmp_path: Path) -> None:
    (row, *_) = make_rows([("mine", config())])
    folder = write_record(tmp_path / "mine-seed0", rounds=2)
    assert read_run(row, 0, tmp_path, "in-process").curve.scores
    (folder / "rounds.jsonl").write_text("")
    with pytest.raises(StateError, match=r"mine-seed0 holds 0 of 2 rounds; delete it to run it again$"):
        read_run(row, 0, tmp_path, "in-process")


def test_a_record_in_which_nothing_was_spent_is_compared(tmp_path: Path) -> None:
    rows = make_rows([("mine", config())])
    curve = Curve([0.5, 0.5], [0, 0], [0, 0], [0.0, 0.0])
    found = results(rows, {row.label: [Run(0, curve, None)] for row in rows}, target=0.9)
    assert found["equal_wire_bytes"]["rows"]["mine"]["share_spent"] == 1.0


def test_a_record_is_complete_with_its_summary_and_only_for_its_own_configuration(tmp_path: Path) -> None:
    job = Job(config(), tmp_path / "run")
    assert not is_complete(job)
    job.folder.mkdir()
    (job.folder / "config.toml").write_text(job.config.to_toml())
    assert not is_complete(job)
    (job.folder / "summary.json").write_text("{}")
    assert is_complete(job)
    with pytest.raises(ConfigError, match=r"run holds the record of another configuration: dkd.steps = 3 there, 4 here"):
        is_complete(Job(config("dkd.steps=4"), job.folder))
    (job.folder / "config.toml").write_text("dkd.step = 3")
    with pytest.raises(ConfigError, match="cannot be read"):
        is_complete(job)
