"""Finite contributions whose model is of no use: refused, or the run fails and says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from either_engine import ENGINES, Zeros, run_on
from harness import Recorder, small_config

from feddkd.client.simulated import simulated_workers
from feddkd.client.work import TaskRunner
from feddkd.config import Config
from feddkd.engines.simulation import make_evaluator
from feddkd.errors import PausedError
from feddkd.exchange import Reply, Task
from feddkd.models.initial import build_initial
from feddkd.scheduler.records import RunRecord

ALGORITHMS = ["fedavg", "feddkd"]
WITHOUT_TEST_SET = "data.test_set=false"
EVERYONE = "scheduler.min_clients=2"
PLAIN_MEAN = ("aggregation.rule.longest=0", "aggregation.outlier_ratio=0", "aggregation.weight_cap=0")
BATCH_NORM = 'model.name="gated:batch_norm_mlp"'

Change = Callable[[Task, Reply], Reply]


def filled_with(value: float, name: str = "") -> Change:
    """Fill the floating-point tensors of a reply whose names end like this."""

    def change(_: Task, reply: Reply) -> Reply:
        for tensor_name, tensor in (reply.contribution or {}).items():
            if tensor.dtype.is_floating_point and tensor_name.endswith(name):
                tensor.fill_(value)
        return reply

    return change


def counting_to(value: int) -> Change:
    """Fill the integers of a reply."""

    def change(_: Task, reply: Reply) -> Reply:
        for tensor in (reply.contribution or {}).values():
            if tensor.dtype == torch.int64:
                tensor.fill_(value)
        return reply

    return change


class Attacked:
    """A run of some honest clients, and one that has nearly all of the weight and lies."""

    def __init__(self, algorithm: str, *overrides: str) -> None:
        self.recorder = Recorder()
        self.config: Config = small_config(
            f"algorithm.name={algorithm}",
            "partition.clients=2",
            "partition.labels=5",
            "scheduler.wait_for_clients=2",
            *overrides,
        )

    def run(self, engine: str, folder: Path, lie: Change, honest: int = 1) -> RunRecord:
        indices = range(honest)
        workers: dict[str, TaskRunner] = dict(simulated_workers(self.config, folder, indices))
        workers["liar"] = Zeros(self.config).worker(lie, examples=100_000)
        evaluator = make_evaluator(self.config, build_initial(self.config))
        return run_on(engine, self.config, workers, [self.recorder], evaluator=evaluator)

    def left_out(self) -> set[str]:
        """The clients that are missing from any exchange."""
        return {client for record in self.recorder.exchanges for client in record.clients_missing}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_absurd_contribution_is_refused_and_the_honest_go_on(
    engine: str,
    algorithm: str,
    tmp_path: Path,
) -> None:
    attacked = Attacked(algorithm)
    record = attacked.run(engine, tmp_path, filled_with(1e38))
    assert attacked.left_out() == {"liar"}
    assert record.final_evaluation is not None
    assert record.final_evaluation.worth > 0.3


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("value", [1e16, 1e12])
def test_a_huge_contribution_whose_model_is_useless_fails_the_run(
    engine: str,
    algorithm: str,
    value: float,
    tmp_path: Path,
) -> None:
    attacked = Attacked(algorithm)
    with pytest.raises(PausedError, match="the new model's loss on the test set is nan"):
        attacked.run(engine, tmp_path, filled_with(value))
    assert [(number, attempt) for number, attempt, _ in attacked.recorder.failures] == [
        (1, 0),
        (1, 1),
        (1, 2),
    ]
    assert attacked.recorder.rounds == []


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_without_a_test_set_the_quorum_keeps_a_liar_from_going_on_alone(
    engine: str,
    algorithm: str,
    tmp_path: Path,
) -> None:
    attacked = Attacked(algorithm, WITHOUT_TEST_SET, EVERYONE)
    with pytest.raises(PausedError) as stopped:
        attacked.run(engine, tmp_path, filled_with(1e16))
    assert "client-0: refused: " in str(stopped.value)
    assert "2 are needed" in str(stopped.value)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_without_a_test_set_the_clients_say_that_the_model_is_useless(
    engine: str,
    algorithm: str,
    tmp_path: Path,
) -> None:
    attacked = Attacked(algorithm, WITHOUT_TEST_SET, *PLAIN_MEAN)
    with pytest.raises(PausedError, match="most clients cannot use the model"):
        attacked.run(engine, tmp_path, filled_with(1e16), honest=2)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_of_three_clients_the_one_that_is_too_long_ruins_nothing(engine: str, algorithm: str, tmp_path: Path) -> None:
    attacked = Attacked(algorithm, WITHOUT_TEST_SET)
    attacked.run(engine, tmp_path, filled_with(1e16), honest=2)
    assert attacked.left_out() == set()
    assert all(record.outliers.keys() == {"liar"} for record in attacked.recorder.exchanges if record.id.name == "local_train")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("value", [1e16, 1e6])
def test_a_bound_on_the_norm_keeps_the_honest_clients_going(
    engine: str,
    value: float,
    tmp_path: Path,
) -> None:
    attacked = Attacked("fedavg", WITHOUT_TEST_SET, "aggregation.max_norm.local_train=100")
    attacked.run(engine, tmp_path, filled_with(value))
    assert attacked.left_out() == {"liar"}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_small_number_that_ruins_a_buffer_fails_the_run(engine: str, tmp_path: Path) -> None:
    """A negative variance: every element is harmless, and the model's output is NaN."""
    attacked = Attacked("fedavg", BATCH_NORM, *PLAIN_MEAN)
    with pytest.raises(PausedError, match="the new model's loss on the test set is nan"):
        attacked.run(engine, tmp_path, filled_with(-1000.0, "running_var"))
    assert attacked.left_out() == set()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("value", [-1000.0, -3.0])
def test_by_default_a_variance_that_becomes_negative_is_left_out(engine: str, value: float, tmp_path: Path) -> None:
    attacked = Attacked("fedavg", BATCH_NORM)
    record = attacked.run(engine, tmp_path, filled_with(value, "running_var"))
    assert record.rounds == attacked.config.rounds


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("count", [2**63 - 1, -(2**63)])
def test_a_counter_at_the_end_of_its_range_harms_nobody(
    engine: str,
    count: int,
    tmp_path: Path,
) -> None:
    attacked = Attacked("fedavg", BATCH_NORM)
    record = attacked.run(engine, tmp_path, counting_to(count))
    assert attacked.left_out() == set()
    assert record.rounds == attacked.config.rounds
