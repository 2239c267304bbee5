"""With `model.local_buffers` the statistics of BatchNorm stay at each client, and everything else is as before."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from own_models import batch_norm
from safetensors.torch import load_file

from feddkd.config import Config
from feddkd.engines.resolve import resolve
from feddkd.engines.simulation import EngineName, prepare, run_federation
from feddkd.exchange import Evaluation
from feddkd.failpoints import FailpointError, planned
from feddkd.observability.ledger import Ledger
from feddkd.scheduler.records import ExchangeRecord, Observer, RunRecord

STATISTICS = ("2.running_mean", "2.running_var", "2.num_batches_tracked")

SMALL = (
    "rounds=3",
    "data.subset=200",
    "data.holdout=0.2",
    "partition.clients=2",
    "partition.labels=5",
    "training.epochs=1",
    "dkd.steps=2",
    "runtime.client_processes=2",
    "model.name=own_models:batch_norm",
)


class Evaluations(Observer):
    """Keeps how each round's model did at the clients."""

    def __init__(self) -> None:
        self.found: list[Evaluation | None] = []

    def exchange_done(self, record: ExchangeRecord) -> None:
        self.found.append(record.client_evaluation)


def settings(*overrides: str) -> Config:
    return resolve(Config.load(overrides=[*SMALL, *overrides]))


def run(folder: Path, engine: EngineName, *overrides: str, resumed: bool = False) -> tuple[RunRecord, list[Evaluation | None]]:
    config, evaluations = settings("model.local_buffers=true", *overrides), Evaluations()
    ledger = Ledger(folder, config, again=resumed)
    try:
        return run_federation(config, engine, folder, [ledger, evaluations], resumed=resumed), evaluations.found
    finally:
        ledger.close()


def statistics(file: Path) -> torch.Tensor:
    found = load_file(file)
    return torch.cat([found[name].double().flatten() for name in STATISTICS])


def site(folder: Path, number: int) -> Path:
    return folder / "clients" / f"client-{number}" / "model.safetensors"


def test_both_engines_reach_the_same_model_and_the_same_statistics_at_each_site(tmp_path: Path) -> None:
    (here, found), (there, other) = (run(tmp_path / engine, engine) for engine in ("in-process", "grpc"))
    assert here.model.sha256() == there.model.sha256()
    assert found == other
    assert not any(name in here.model for name in STATISTICS)
    for number in range(2):
        assert site(tmp_path / "in-process", number).read_bytes()[8:].count(b"running_mean") == 1
        assert statistics(site(tmp_path / "in-process", number)).equal(statistics(site(tmp_path / "grpc", number)))


def test_each_site_keeps_statistics_of_its_own_data_and_the_server_the_first_ones(tmp_path: Path) -> None:
    run(tmp_path, "in-process", "algorithm.name=fedavg")
    own = [statistics(site(tmp_path, number)) for number in range(2)]
    assert not own[0].equal(own[1])
    network = batch_norm((1, 8, 8), 10)
    first = torch.cat([network.state_dict()[name].double().flatten() for name in STATISTICS])
    assert statistics(tmp_path / "model.safetensors").equal(first)
    assert all(not each.equal(first) for each in own)
    parameters = [
        {name: value for name, value in load_file(site(tmp_path, number)).items() if name not in STATISTICS} for number in range(2)
    ]
    assert all(parameters[0][name].equal(value) for name, value in parameters[1].items())
    network.load_state_dict(load_file(site(tmp_path, 0)))


@pytest.mark.parametrize("algorithm", ["feddkd", "fedavg"])
@pytest.mark.parametrize(
    "point", ["scheduler.exchange.before_append", "scheduler.exchange.after_append", "scheduler.round.after_checkpoint"]
)
def test_statistics_outlive_a_process_wherever_it_ends(point: str, algorithm: str, tmp_path: Path) -> None:
    overrides = (f"algorithm.name={algorithm}",)
    whole, found = run(tmp_path / "whole", "in-process", *overrides)
    with pytest.raises(FailpointError), planned(f"{point}=raise@2"):
        run(tmp_path / "cut", "in-process", *overrides)
    record, rest = run(tmp_path / "cut", "in-process", *overrides, resumed=True)
    assert record.model.sha256() == whole.model.sha256()
    assert rest[-1] == found[-1]
    for number in range(2):
        assert statistics(site(tmp_path / "cut", number)).equal(statistics(site(tmp_path / "whole", number)))


@pytest.mark.parametrize(
    ("overrides", "warnings"),
    [((), 1), (("model.local_buffers=true",), 0), (("model.name=own_models:plain",), 0), (("model.name=own_models:frozen_batch_norm",), 1)],
)
def test_averaged_statistics_are_warned_of_once_with_the_way_out(
    overrides: tuple[str, ...], warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        prepare(settings(*overrides))
    said = [message for message in caplog.messages if "BatchNorm1d" in message]
    assert len(said) == warnings
    assert all("nn.GroupNorm" in message and "model.local_buffers = true" in message for message in said)
