"""One client of ten is hostile: with the defaults the model is as good as without it, and the record names the client."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from feddkd import algorithms
from feddkd.client.simulated import simulated_workers
from feddkd.client.worker import Worker
from feddkd.config import Config
from feddkd.engines.in_process import InProcessEngine
from feddkd.engines.resolve import resolve
from feddkd.engines.simulation import make_evaluator
from feddkd.exchange import ExampleCounts, Reply, Task
from feddkd.models.initial import build_initial
from feddkd.observability.ledger import Ledger
from feddkd.scheduler.rounds import Scheduler

HOSTILE = "client-3"


class Hostile(Worker):
    """Sends what it computes times a factor from a round on, and claims a number of examples."""

    def __init__(self, worker: Worker, factor: float, claim: int | None, since: int) -> None:
        self.__dict__.update(worker.__dict__)
        self._factor, self._claim, self._since = factor, claim, since

    @property
    def counts(self) -> ExampleCounts:
        return super().counts if self._claim is None else ExampleCounts(self._claim)

    def carry_out(self, task: Task) -> Reply:
        reply = super().carry_out(task)
        if reply.contribution is None or task.id.round < self._since:
            return reply
        return dataclasses.replace(reply, contribution=reply.contribution.scaled(self._factor))


def run(
    out: Path, algorithm: str, factor: float = 1.0, claim: int | None = None, since: int = 1, more: Sequence[str] = ()
) -> dict[str, Any]:
    """The summary of a federation on digits of which one client may be hostile."""
    config = resolve(Config.load(overrides=[f"algorithm.name={algorithm}", "rounds=6", "partition.name=iid", "dkd.steps=5", *more]))
    initial = build_initial(config)
    workers = simulated_workers(config, out / "states")
    hostile = sorted(workers)[3]
    workers = {**workers, hostile: Hostile(workers[hostile], factor, claim, since)}
    with closing(Ledger(out, config)) as ledger, InProcessEngine(workers, 1 << 20, holdout=config.data.holdout) as engine:
        scheduler = Scheduler(
            config, algorithms.build(config), engine, run_id="run", observers=[ledger], evaluator=make_evaluator(config, initial)
        )
        scheduler.run(initial.model)
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


@pytest.mark.parametrize("algorithm", ["feddkd", "fedavg"])
def test_a_client_that_scales_costs_little_and_is_named(algorithm: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    honest = run(tmp_path / "honest", algorithm)
    assert honest["outliers"] == {}
    for factor in (10.0, -10.0):
        out = tmp_path / str(factor)
        with caplog.at_level(logging.WARNING):
            attacked = run(out, algorithm, factor)
        assert attacked["final_accuracy"] > honest["final_accuracy"] - 0.05
        assert attacked["outliers"].keys() == {HOSTILE}
        assert [message for message in caplog.messages if HOSTILE in message and "stood out" in message]
        lines = [json.loads(line) for line in (out / "exchanges.jsonl").read_text().splitlines()]
        counts = [line["outliers"][HOSTILE] for line in lines if line["exchange"] == "local_train" and "outliers" in line]
        assert counts[:3] == [1, 2, 3]


@pytest.mark.parametrize("algorithm", ["feddkd", "fedavg"])
@pytest.mark.parametrize(("factor", "claim"), [(-10.0, None), (-1e6, 2**53)])
def test_a_client_that_is_honest_at_first_costs_little(algorithm: str, factor: float, claim: int | None, tmp_path: Path) -> None:
    honest = run(tmp_path / "honest", algorithm, more=["rounds=8"])
    attacked = run(tmp_path / "late", algorithm, factor, claim, since=4, more=["rounds=8"])
    assert attacked["final_accuracy"] > honest["final_accuracy"] - 0.05
    assert attacked["outliers"].keys() == {HOSTILE}


def test_a_client_that_scales_costs_little_where_a_round_asks_few(tmp_path: Path) -> None:
    few = ["partition.clients=20", "scheduler.cohort=5", "rounds=12"]
    honest = run(tmp_path / "honest", "fedavg", more=few)
    for factor in (-10.0, -31.0):
        assert run(tmp_path / str(factor), "fedavg", factor, more=few)["final_accuracy"] > honest["final_accuracy"] - 0.05


def test_a_client_that_claims_all_examples_costs_little(tmp_path: Path) -> None:
    honest = run(tmp_path / "honest", "feddkd")
    assert run(tmp_path / "claims", "feddkd", claim=2**53)["final_accuracy"] > honest["final_accuracy"] - 0.05
