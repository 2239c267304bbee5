"""A simulation holds what a round needs, however many clients it has."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path

import pytest
from harness import Recorder, filled, run_in_process, small_config

from feddkd.algorithms.memory import ROUNDS_KEPT
from feddkd.client.simulated import Simulation, simulated_clients, simulated_workers
from feddkd.client.worker import Worker
from feddkd.compression.constants import Constants
from feddkd.config import Config
from feddkd.engines.simulation import run_federation
from feddkd.models.initial import build_initial
from feddkd.scheduler.records import ExchangeRecord

MANY = 40
COHORT = 4


def many_clients(*overrides: str) -> Config:
    settings = (f"partition.clients={MANY}", f"scheduler.cohort={COHORT}", "partition.name=iid", "rounds=3", "training.steps=2")
    return small_config(*settings, *overrides)


def workers_in_memory() -> int:
    return sum(issubclass(type(found), Worker) for found in gc.get_objects())


class Counting(Recorder):
    """Counts the workers that are in memory at the end of every exchange."""

    def __init__(self) -> None:
        super().__init__()
        self.workers: list[int] = []

    def exchange_done(self, record: ExchangeRecord) -> None:
        gc.collect()
        self.workers.append(workers_in_memory())


@pytest.mark.parametrize("name", ["feddkd", "scaffold"])
def test_a_run_of_many_clients_has_the_workers_of_a_cohort_in_memory(name: str, tmp_path: Path) -> None:
    gc.collect()
    before, counting = workers_in_memory(), Counting()
    run_federation(many_clients(f"algorithm.name={name}"), "in-process", tmp_path, [counting])
    assert 0 < max(counting.workers) - before <= COHORT


@pytest.mark.parametrize(("name", "models"), [("feddkd", 2), ("scaffold", 1 + ROUNDS_KEPT), ("moon", 1 + ROUNDS_KEPT)])
def test_the_state_of_a_client_on_disk_does_not_grow_with_the_rounds(name: str, models: int, tmp_path: Path) -> None:
    config = many_clients(f"algorithm.name={name}", "rounds=8", "communication.down=int8", "scheduler.cohort=20")
    run_federation(config, "in-process", tmp_path)
    model_bytes = build_initial(config).model.schema.size_bytes
    replicas = 3  # the models that steps lead from: SCAFFOLD sends its control variate beside the model
    for folder in (tmp_path / "clients").iterdir():
        if folder.is_dir():
            size_bytes = sum(file.stat().st_size for file in folder.iterdir())
            assert size_bytes <= 1.1 * (models + replicas) * model_bytes


CODECS = {
    "a step for each exchange": ["communication.down=int8"],
    "what codecs leave out": ["communication.up=topk:0.1"],
    "both": ["communication.down=int4", "communication.up=topk:0.1", "dkd.start=previous"],
}


def facts(recorder: Recorder) -> Sequence[object]:
    return [(found.id.round, found.id.name, found.id.step, found.traffic, found.loss) for found in recorder.exchanges]


@pytest.mark.parametrize("overrides", CODECS.values(), ids=CODECS)
def test_clients_that_are_put_away_between_exchanges_give_the_same_bits_and_bytes(overrides: list[str], tmp_path: Path) -> None:
    config = small_config("scheduler.cohort=0.5", "rounds=4", *overrides)
    kept, away = Recorder(), Recorder()
    workers = simulated_workers(config, tmp_path / "kept")
    expected = run_in_process(config, tmp_path / "kept", [kept], workers=workers).model.sha256()
    assert run_in_process(config, tmp_path / "away", [away]).model.sha256() == expected
    assert facts(kept) == facts(away)


@pytest.mark.usefixtures("importable_tests")
def test_workers_of_a_network_that_may_remember_something_stay(tmp_path: Path) -> None:
    config = small_config('model.name="own_models:adapters"', "scheduler.cohort=1")
    simulation = Simulation(config, tmp_path)
    assert not simulation.can_let_go
    assert simulation.most_kept is None
    clients = simulated_clients(simulation)
    assert simulation.worker(0, clients["client-0"].constants) is simulation.worker(0, clients["client-0"].constants)


def locks_held(folder: Path) -> int:
    opened = [file.readlink() for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
    return sum(file.is_relative_to(folder) and file.name == "lock" for file in opened)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="lists the open files of a process")
@pytest.mark.usefixtures("importable_tests")
@pytest.mark.parametrize("received", [False, True], ids=["built", "received"])
def test_a_client_that_does_not_compute_has_no_open_file_also_with_constants(received: bool, tmp_path: Path) -> None:
    simulation = Simulation(small_config('model.name="own_models:frozen_batch_norm"'), tmp_path)
    clients = simulated_clients(simulation)
    built = simulation.network.constants
    other = Constants.of(filled(built.schema, 1)) if received else built
    for client in clients.values():
        if received:
            client.constants.take(other.tensors, other.version)
        assert client.constants.has(other.version)
    assert locks_held(tmp_path) == 0
    again = simulated_clients(Simulation(small_config('model.name="own_models:frozen_batch_norm"'), tmp_path))
    assert all(client.constants.has(other.version) for client in again.values())


def test_clients_of_a_process_share_the_network_and_the_data(tmp_path: Path) -> None:
    simulation = Simulation(small_config(), tmp_path)
    first, second = simulation.build(0), simulation.build(1)
    assert first.site.module is second.site.module is simulation.network.module


def test_a_client_that_was_let_go_can_be_taken_up_by_another_process(tmp_path: Path) -> None:
    one, other = (Simulation(small_config(), tmp_path) for _ in range(2))
    client = simulated_clients(one)["client-0"]
    one.worker(0, client.constants)
    client.let_go()
    assert other.build(0).counts == client.counts
