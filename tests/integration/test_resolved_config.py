"""A simulation has one configuration, and insists on the clients that it names."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import Recorder

from feddkd.config import Config
from feddkd.engines.resolve import resolve
from feddkd.engines.simulation import run_federation
from feddkd.errors import RunError

SMALL = [
    *("algorithm.name=fedavg", "rounds=2", "training.epochs=1", "data.subset=100", "data.test_set=false"),
    *("partition.clients=2", "partition.labels=5", "runtime.client_processes=2", "scheduler.reconnect_grace_s=0", "scheduler.retries=0"),
]

DIES_IN_TRAINING = """
import os, sys
from torch import nn

class Net(nn.Sequential):
    def forward(self, x):
        whole_batch = len(x) == 32  # no check before a client joins has as many examples
        if self.training and whole_batch and sys.argv[-2:] == ["--clients", "1"]:
            os._exit(3)
        return super().forward(x)

def net(shape, classes):
    return Net(nn.Flatten(), nn.Linear(64, classes))
"""


def test_clients_read_the_configuration_that_the_run_has_and_need_no_record(tmp_path: Path) -> None:
    config = Config.load(overrides=SMALL)
    record = run_federation(config, "grpc", tmp_path)
    assert record.rounds == 2
    assert Config.load(tmp_path / "clients" / "config.toml") == resolve(config)


@pytest.fixture
def dying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    (tmp_path / "dies_in_training.py").write_text(DIES_IN_TRAINING)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return [*SMALL, "model.name=dies_in_training:net"]


def test_a_run_ends_when_too_few_client_processes_are_left(dying: list[str], tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"a client process ended with exit code 3: 1 clients are left, 2 are needed"):
        run_federation(Config.load(overrides=dying), "grpc", tmp_path)


def test_a_run_goes_on_with_fewer_where_it_is_asked_to(dying: list[str], tmp_path: Path) -> None:
    recorder = Recorder()
    run_federation(Config.load(overrides=[*dying, "scheduler.min_clients=1"]), "grpc", tmp_path, [recorder])
    assert [record.clients_reported for record in recorder.rounds] == [1, 1]
