"""The measurement of attacks: what hostile clients send, what is kept, and what the page says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from harness import RUN_ID, FakeWorker, answering, filled

from feddkd.config import Config
from feddkd.exchange import ExchangeId, Reply, Task
from feddkd.tensors import Schema, Tensors, TensorSpec

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import attack_cells  # noqa: E402
from attack_cells import Cell, run_cell  # noqa: E402
from attackers import ATTACKS, LARGEST_CLAIM, Attacker  # noqa: E402
from attacks import Measured, all_cells, limits_of  # noqa: E402

SCHEMA = Schema([TensorSpec("w", torch.float32, (4, 5)), TensorSpec("b", torch.float32, (5,))])
HONEST = filled(SCHEMA, 1)


def task(exchange: str) -> Task:
    return Task(ExchangeId(RUN_ID, 1, 0, exchange, 0), filled(SCHEMA, 0))


def reply_of(attack: str, exchange: str = "local_train") -> Reply:
    return Attacker(answering(HONEST), ATTACKS[attack], Config()).carry_out(task(exchange))


def sent_by(attack: str, exchange: str = "local_train") -> Tensors:
    contribution = reply_of(attack, exchange).contribution
    assert contribution is not None
    return contribution


@pytest.mark.parametrize(
    ("attack", "exchange", "factor"),
    [
        ("none", "local_train", 1),
        ("times_-10", "dkd_step", -10),
        ("times_-1", "local_train", -1),
        ("times_1e6", "local_train", 1e6),
        ("gradients_-10", "dkd_step", -10),
        ("gradients_-10", "local_train", 1),
        ("local_train_-10", "dkd_step", 1),
        ("local_train_-10", "local_train", -10),
    ],
)
def test_an_attacker_multiplies_what_it_says(attack: str, exchange: str, factor: float) -> None:
    assert sent_by(attack, exchange).sha256() == HONEST.scaled(factor).sha256()


def test_an_attacker_fills_its_contribution() -> None:
    assert torch.equal(sent_by("filled_1e38")["w"], torch.full((4, 5), 1e38))


def test_an_attacker_reports_huge_numbers() -> None:
    assert reply_of("metric").metrics == {"x": 1.7e308}
    assert reply_of("loss").loss == 1e300


def test_an_attacker_claims_as_many_examples_as_it_may() -> None:
    config = Config()
    largest = config.model_dump()["scheduler"].get("max_examples", LARGEST_CLAIM)
    worker = answering(HONEST, examples=7)
    assert Attacker(worker, ATTACKS["examples"], config).counts.total == largest
    assert Attacker(worker, ATTACKS["none"], config).counts.total == 7


def test_a_client_without_tensors_is_left_as_it_is() -> None:
    worker = FakeWorker(lambda _: Reply())
    assert Attacker(worker, ATTACKS["times_-10"], Config()).carry_out(task("deliver")) == Reply()


@pytest.fixture
def one_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attack_cells, "SEEDS", (0,))


@pytest.mark.usefixtures("one_seed")
def test_a_cell_says_what_the_attack_costs() -> None:
    undisturbed = run_cell(Cell("fedavg", "iid", "none"), [])
    attacked = run_cell(Cell("fedavg", "iid", "times_-10"), ["aggregation.rule.longest=0", "aggregation.outlier_ratio=0"])
    assert undisturbed["accuracy"][0] > 0.9 > 0.3 > attacked["accuracy"][0]
    assert undisturbed["failure"] == attacked["failure"] == [None]
    assert undisturbed["honest_left_out"] == [0.0]
    assert undisturbed["largest_norms"][0]["local_train"] > 1


def test_limits_are_a_little_more_than_honest_clients_need() -> None:
    honest = {"largest_norms": [{"a": 1.0, "b": 2.0}, {"a": 3.0}], "largest_count": [100, 120]}
    assert limits_of(honest) == [
        "aggregation.max_norm.a=4.5",
        "aggregation.max_norm.b=3",
        "scheduler.max_examples=180",
    ]


def test_cells_are_kept_in_the_order_of_the_table(tmp_path: Path) -> None:
    path = tmp_path / "attacks.json"
    first, *_, last = all_cells()
    for cell in (last, first):
        measured = Measured("now", path)
        assert measured.of(cell) is None
        fields = (cell.algorithm, cell.partition, cell.attack, cell.limited)
        names = ("algorithm", "partition", "attack", "limited")
        measured.store({**dict(zip(names, fields, strict=True)), "accuracy": [0.5]})
    kept = Measured("now", path)
    assert [found["limited"] for found in kept.cells] == [False, True]
    assert kept.of(first) == kept.cells[0]
    assert Measured("before", path).cells == []


def test_the_page_is_what_the_results_say() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "attacks.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
