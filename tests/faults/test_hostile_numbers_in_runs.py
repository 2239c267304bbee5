"""No number of a client's reply breaks a run or its record, on either engine."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from either_engine import ENGINES, Zeros, run_on
from harness import Recorder, small_config
from prometheus_client import generate_latest

from feddkd.exchange import DELIVER, UPDATE_NORM_SQUARED, Evaluation, Reply, Task
from feddkd.observability.ledger import Ledger
from feddkd.observability.prometheus import PrometheusMetrics
from feddkd.observability.run_folder import EXCHANGES, ROUNDS, SUMMARY
from feddkd.transport.messages import LARGEST_NUMBER, MAX_COUNT

CONFIG = small_config(
    "rounds=2",
    "dkd.steps=2",
    "data.holdout=0.5",
    "scheduler.min_clients=2",
    "scheduler.wait_for_clients=3",
)
EXCHANGES_OF_A_ROUND = ("local_train", "dkd_step", "dkd_step")

HUGE = 1.7e308
"""Finite, but not twice of it."""


def metric(value: float, name: str = "x") -> dict[str, Any]:
    return {"metrics": {name: value}}


def evaluation(examples: int, correct: int, loss_sum: float) -> dict[str, Any]:
    return {"evaluation": Evaluation(examples, correct, loss_sum)}


REFUSED: dict[str, dict[str, Any]] = {
    "metric": metric(HUGE),
    "negative metric": metric(-HUGE),
    "nan metric": metric(math.nan),
    "norm": metric(HUGE, UPDATE_NORM_SQUARED),
    "loss": {"loss": HUGE},
    "negative loss": {"loss": -HUGE},
    "nan loss": {"loss": math.nan},
    "infinite loss": {"loss": math.inf},
    "seconds": {"compute_s": HUGE},
    "negative seconds": {"compute_s": -1.0},
    "nan seconds": {"compute_s": math.nan},
    "gradients": {"gradient_evaluations": 2**64 - 1},
    "evaluated": evaluation(2**64 - 1, 2**64 - 1, 1.0),
    "evaluated loss": evaluation(1, 1, HUGE),
    "nan evaluated loss": evaluation(1, 1, math.nan),
    "negative evaluated loss": evaluation(1, 1, -1.0),
    "more than all correct": evaluation(1, 2, 1.0),
}
"""What no honest client sends."""

ACCEPTED: dict[str, dict[str, Any]] = {
    "metric": metric(LARGEST_NUMBER),
    "opposite metrics": metric(-LARGEST_NUMBER),
    "norm": metric(LARGEST_NUMBER, UPDATE_NORM_SQUARED),
    "negative norm": metric(-1.0, UPDATE_NORM_SQUARED),
    "tiny norm": metric(5e-324, UPDATE_NORM_SQUARED),
    "loss": {"loss": LARGEST_NUMBER},
    "negative loss": {"loss": -LARGEST_NUMBER},
    "seconds": {"compute_s": LARGEST_NUMBER},
    "gradients": {"gradient_evaluations": MAX_COUNT},
    "evaluated loss": evaluation(1, 0, LARGEST_NUMBER),
}
"""The largest numbers that are let in."""


def with_numbers(numbers: dict[str, Any], exchange: str | None) -> Callable[[Task, Reply], Reply]:
    """Change the numbers of every reply, or of those in one exchange."""

    def change(task: Task, reply: Reply) -> Reply:
        if exchange not in (None, task.id.name):
            return reply
        if "evaluation" in numbers and not task.evaluate and exchange is None:
            return reply  # nobody asked
        return dataclasses.replace(reply, **numbers)

    return change


def no_constant(name: str) -> NoReturn:
    raise AssertionError(f"{name} is no JSON")


class StrictMetrics(PrometheusMetrics):
    """Ends the run with what it raises, which would otherwise only be logged."""

    essential = True


class Observed:
    """A run with all that watches one, and its record read again."""

    def __init__(self, folder: Path) -> None:
        self.recorder = Recorder()
        self.metrics = StrictMetrics(CONFIG)
        self._folder = folder

    def run(self, engine: str, change: Callable[[Task, Reply], Reply], *hostile: str) -> None:
        """Run with three clients, of which some change their replies."""
        zeros = Zeros(CONFIG)
        workers = {name: zeros.worker(examples=50) for name in ("a", "b", "c")}
        workers |= {name: zeros.worker(change, examples=50) for name in hostile}
        with contextlib.closing(Ledger(self._folder, CONFIG)) as ledger:
            run_on(engine, CONFIG, workers, [ledger, self.metrics, self.recorder])

    def check_record(self) -> None:
        """All of it is JSON, and the metrics can be scraped."""
        lines = [
            json.loads(line, parse_constant=no_constant)
            for name in (EXCHANGES, ROUNDS)
            for line in (self._folder / name).read_text().splitlines()
        ]
        summary = (self._folder / SUMMARY).read_text()
        json.loads(summary, parse_constant=no_constant)
        per_round = len(EXCHANGES_OF_A_ROUND)
        assert len(lines) == CONFIG.rounds * per_round + 1 + CONFIG.rounds
        assert b"feddkd_" in generate_latest(self.metrics.registry)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("numbers", REFUSED.values(), ids=REFUSED)
def test_a_number_that_no_honest_client_sends_costs_its_client_the_exchange(
    engine: str,
    numbers: dict[str, Any],
    tmp_path: Path,
) -> None:
    observed = Observed(tmp_path)
    observed.run(engine, with_numbers(numbers, None), "c")
    observed.check_record()
    assert observed.recorder.failures == []
    for record in observed.recorder.exchanges:
        if record.id.name in ("local_train", DELIVER):
            assert list(record.clients_missing) == ["c"]
            assert record.clients_missing["c"].startswith("refused: ")
        assert record.clients_reported == 2


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("exchange", ["dkd_step", DELIVER])
@pytest.mark.parametrize("name", ["metric", "loss", "seconds", "evaluated"])
def test_a_number_that_no_honest_client_sends_may_come_in_any_exchange(
    engine: str,
    exchange: str,
    name: str,
    tmp_path: Path,
) -> None:
    observed = Observed(tmp_path)
    observed.run(engine, with_numbers(REFUSED[name], exchange), "c")
    observed.check_record()
    for record in observed.recorder.exchanges:
        expected = ["c"] if record.id.name == exchange else []
        assert list(record.clients_missing) == expected


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("numbers", ACCEPTED.values(), ids=ACCEPTED)
def test_the_largest_numbers_of_two_clients_break_no_sum(
    engine: str,
    numbers: dict[str, Any],
    tmp_path: Path,
) -> None:
    observed = Observed(tmp_path)
    observed.run(engine, with_numbers(numbers, None), "b", "c")
    observed.check_record()
    assert all(record.clients_missing == {} for record in observed.recorder.exchanges)
