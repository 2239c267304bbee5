"""Models that steps lead from are found again where they were put away."""

from pathlib import Path

import pytest
import torch
from harness import filled

from feddkd.client.replicas import Place, Replicas
from feddkd.client.state_dir import StateDir
from feddkd.compression.replica import Replica
from feddkd.tensors import Schema, TensorSpec

SCHEMA = Schema([TensorSpec("w", torch.float32, (3, 2)), TensorSpec("count", torch.int64, (), trainable=False)])
OTHER = Schema([TensorSpec("v", torch.float64, (5,))])


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(StateDir(tmp_path / "client", "client", durable=False), "run")


@pytest.mark.parametrize("in_mean", [0, 1, 2])
def test_a_replica_comes_back_with_its_version_and_its_mean(in_mean: int, place: Place) -> None:
    replica = Replica(filled(SCHEMA, 1))
    for seed in range(in_mean):
        replica.advance(filled(SCHEMA, seed), in_mean=True)
    expected = replica.version, replica.mean_count, replica.mean.sha256()
    replicas = Replicas(place)
    replicas[SCHEMA], replicas[OTHER] = replica, Replica(filled(OTHER, 2))
    replicas.put_away()
    for found in (replicas, Replicas(place)):
        again = found[SCHEMA]
        assert again is not replica
        assert (again.version, again.mean_count, again.mean.sha256()) == expected
        again.advance(filled(SCHEMA, 7), in_mean=True)
    replica.advance(filled(SCHEMA, 7), in_mean=True)
    assert again.mean.sha256() == replica.mean.sha256()
    assert len(place.state.names("replica-")) == 2


def test_what_was_put_away_in_another_run_is_not_found(place: Place) -> None:
    replicas = Replicas(place)
    replicas[SCHEMA] = Replica(filled(SCHEMA, 1))
    replicas.put_away()
    assert SCHEMA in Replicas(place)
    assert SCHEMA not in Replicas(Place(place.state, "another run"))


def test_what_was_deleted_does_not_come_back(place: Place) -> None:
    replicas = Replicas(place)
    replicas[SCHEMA] = Replica(filled(SCHEMA, 1))
    replicas.put_away()
    del replicas[SCHEMA]
    assert SCHEMA not in replicas
    assert place.state.names("replica-") == []


def test_a_damaged_file_is_one_that_was_never_written(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    replicas = Replicas(place)
    replicas[SCHEMA] = Replica(filled(SCHEMA, 1))
    replicas.put_away()
    (name,) = place.state.names("replica-")
    (place.state.path / f"{name}.safetensors").write_bytes(b"no tensors")
    assert SCHEMA not in replicas
    assert "is damaged" in caplog.text


def test_a_full_disk_costs_a_whole_model_and_not_the_run(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    replicas = Replicas(place)
    replicas[SCHEMA] = Replica(filled(SCHEMA, 1))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("feddkd.client.state_dir.write_tensors", full)
    replicas.put_away()
    assert "it will need a whole model next" in caplog.text
    assert SCHEMA not in replicas


def test_without_a_place_everything_stays_in_memory() -> None:
    replicas = Replicas()
    replicas[SCHEMA] = replica = Replica(filled(SCHEMA, 1))
    replicas.put_away()
    assert replicas[SCHEMA] is replica
