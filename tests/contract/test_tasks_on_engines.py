"""Every kind of task and of data trains to the same bits on all engines: in process, over gRPC, and in processes of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import Recorder, run_in_process, run_in_threads
from task_table import TASKS, config_of

from feddkd.engines.simulation import run_federation
from feddkd.models.initial import build_initial
from feddkd.scheduler.records import ExchangeRecord

pytestmark = pytest.mark.usefixtures("importable_tests")

IN_PROCESSES = ("structures",)
"""Run in processes even among the fast tests: what is sent to them is the hardest to send."""


@pytest.mark.parametrize("start", ["better", "previous"])
@pytest.mark.parametrize("name", TASKS)
def test_both_engines_train_to_the_same_bits_and_measure_the_same(name: str, start: str, tmp_path: Path) -> None:
    config = config_of(name)
    config = config.model_copy(update={"dkd": config.dkd.model_copy(update={"start": start})})
    local, remote = Recorder(), Recorder()
    here = run_in_process(config, tmp_path / "in-process", [local])
    there = run_in_threads(config, tmp_path / "grpc", [remote])
    assert here.model.sha256() == there.model.sha256() != build_initial(config).model.sha256()
    assert [record.loss for record in local.exchanges] == [record.loss for record in remote.exchanges]
    evaluations = [record.client_evaluation for record in local.exchanges]
    assert evaluations == [record.client_evaluation for record in remote.exchanges]
    assert any(evaluation is not None for evaluation in evaluations)
    assert all(record.clients_missing == {} for record in local.exchanges + remote.exchanges)


@pytest.mark.parametrize("name", [name if name in IN_PROCESSES else pytest.param(name, marks=pytest.mark.slow) for name in TASKS])
def test_real_client_processes_train_to_the_same_bits(name: str, tmp_path: Path) -> None:
    config = config_of(name)
    hashes = {engine: run_federation(config, engine, tmp_path / engine).model.sha256() for engine in ("in-process", "grpc")}
    assert hashes["in-process"] == hashes["grpc"]


def test_a_round_of_adapters_costs_the_bytes_of_what_is_trained(tmp_path: Path) -> None:
    config = config_of("adapters")
    module = build_initial(config).module
    trained, whole = (
        4 * sum(one.numel() for one in module.parameters() if one.requires_grad in which) for which in ({True}, {True, False})
    )
    assert trained < whole / 2
    for run in (run_in_process, run_in_threads):
        recorder = Recorder()
        run(config, tmp_path / run.__name__, [recorder])
        second = [record for record in recorder.exchanges if record.id.round == 2 and record.id.name != "deliver"]
        expected = 3 * 3 * trained  # three clients, and as many exchanges
        assert [record.id.name for record in second] == ["local_train", "dkd_step", "dkd_step"]
        assert 1 <= sum(payload(record)[0] for record in second) / expected <= 1.05
        assert 1 <= sum(payload(record)[1] for record in second) / expected <= 1.05


def payload(record: ExchangeRecord) -> tuple[int, int]:
    """The bytes of tensors that went down and came up."""
    return record.traffic.payload_bytes_down, record.traffic.payload_bytes_up
