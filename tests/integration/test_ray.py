"""Ray's actors give the bits and the bytes of the reference, on one node and on two, also where they die."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mortal
import pytest
from harness import Recorder, small_config

from feddkd.config import Config
from feddkd.engines.simulation import run_federation
from feddkd.errors import RunError
from feddkd.observability.ledger import Ledger
from feddkd.scheduler.records import ExchangeRecord, RoundRecord

ray = pytest.importorskip("ray")

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]

OBJECT_STORE_BYTES = 100 << 20
BATCH_NORM = ('model.name="gated:batch_norm_mlp"', "training.batch_size=50")

CONFIGURATIONS = {
    "feddkd": ["scheduler.cohort=0.5", "rounds=3"],
    "scaffold": ["algorithm.name=scaffold", "scheduler.cohort=0.5", "rounds=3"],
    "batch norm": [*BATCH_NORM, "model.local_buffers=true"],
    "unlike networks": ["dkd.start=previous", 'teacher.model=["mlp", "own_models:batch_norm", "student", "own_models:adapters"]'],
    "few labels": ["data.labelled_share=0.3", "dkd.teacher=auto"],
    "steps that lead from a model": ["communication.down=int8", "communication.up=int4", "scheduler.cohort=0.5", "rounds=3"],
    "what codecs leave out": ["communication.up=topk:0.1", "scheduler.cohort=0.5", "rounds=3"],
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


@pytest.fixture
def nodes(environment: None) -> Iterator[Any]:
    """Two nodes of one core each on this machine, by Ray's own utility."""
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        node.pop("include_dashboard")
        cluster.add_node(**node)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]


def ledger_of(folder: Path) -> list[Any]:
    """What the record says of every exchange, but for the seconds."""
    return [without_seconds(json.loads(line)) for line in (folder / "exchanges.jsonl").read_text().splitlines()]


def without_seconds(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    return {
        key: without_seconds(value)
        for key, value in entry.items()
        if key != "time" and not key.startswith(("seconds", "client_seconds", "codec_s_"))
    }


def recorded(config: Config, engine: Any, folder: Path) -> tuple[str, list[Any]]:
    """The hash of the final model, and the ledger."""
    ledger = Ledger(folder, config)
    record = run_federation(config, engine, folder, [ledger])
    ledger.close()
    return record.model.sha256(), ledger_of(folder)


@pytest.mark.usefixtures("environment")
def test_ray_on_this_machine_gives_the_bits_and_the_ledger_of_the_reference(tmp_path: Path) -> None:
    config = small_config("runtime.client_processes=1", "rounds=1")
    ray.init(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False, log_to_driver=False)
    try:
        assert recorded(config, "ray", tmp_path / "ray") == recorded(config, "in-process", tmp_path / "in-process")
    finally:
        ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("nodes", "importable_tests")
@pytest.mark.parametrize("overrides", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_two_nodes_give_the_bits_and_the_ledger_of_the_reference(overrides: list[str], tmp_path: Path) -> None:
    config = small_config(*overrides)
    assert recorded(config, "ray", tmp_path / "ray") == recorded(config, "in-process", tmp_path / "in-process")


class After(Recorder):
    """Does something once, after the first exchange of a name."""

    def __init__(self, name: str, action: Callable[[], None]) -> None:
        super().__init__()
        self._name = name
        self._action: Callable[[], None] | None = action

    def exchange_done(self, record: ExchangeRecord) -> None:
        super().exchange_done(record)
        if record.id.name == self._name and self._action is not None:
            self._action()
            self._action = None


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file that lets the next actor that computes die."""
    monkeypatch.setenv(mortal.VARIABLE, str(tmp_path / "order"))
    return tmp_path / "order"


def mortal_config(*overrides: str) -> Config:
    return small_config('model.name="mortal:network"', *overrides)


def give(order: Path) -> Callable[[], None]:
    """Let the next actor that computes die, and no evaluation in this process."""

    def write() -> None:
        order.write_text(str(os.getpid()))

    return write


def missing_in(recorder: Recorder) -> list[list[str]]:
    """Why clients are missing, for each exchange in which some are."""
    return [list(found.clients_missing.values()) for found in recorder.exchanges if found.clients_missing]


@pytest.mark.slow
@pytest.mark.usefixtures("importable_tests")
@pytest.mark.parametrize("name", ["local_train", "dkd_step"])
def test_the_client_of_a_killed_actor_is_missing_and_its_round_is_tried_again(name: str, order: Path, nodes: Any, tmp_path: Path) -> None:
    config, recorder = mortal_config(), After(name, give(order))
    expected = run_federation(config, "in-process", tmp_path / "in-process").model.sha256()
    record = run_federation(config, "ray", tmp_path / "ray", [recorder])
    assert not order.exists()
    assert missing_in(recorder) == [["not connected"]]
    assert [(round_number, attempt) for round_number, attempt, _ in recorder.failures] == [(1, 0)]
    assert record.model.sha256() == expected


@pytest.mark.slow
@pytest.mark.usefixtures("importable_tests")
def test_a_run_that_can_do_without_the_client_of_a_killed_actor_goes_on(order: Path, nodes: Any, tmp_path: Path) -> None:
    recorder = After("local_train", give(order))
    run_federation(mortal_config("scheduler.min_clients=3"), "ray", tmp_path, [recorder])
    assert missing_in(recorder) == [["not connected"]]
    assert recorder.failures == []
    assert [found.clients_reported for found in recorder.exchanges if found.id.round == 2] == [4] * 4  # with the delivery


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["scaffold", "feddkd"])
def test_a_run_goes_on_without_a_lost_node(rule: str, nodes: Any, tmp_path: Path) -> None:
    config = small_config(f"algorithm.name={rule}", "rounds=3")
    expected = run_federation(config, "in-process", tmp_path / "in-process").model.sha256()
    lost = next(iter(nodes.worker_nodes))
    recorder = After("local_train", lambda: nodes.remove_node(lost))
    assert run_federation(config, "ray", tmp_path / "ray", [recorder]).model.sha256() == expected


@pytest.mark.slow
@pytest.mark.usefixtures("nodes")
def test_a_run_that_began_in_process_goes_on_on_ray(tmp_path: Path) -> None:
    config = small_config("algorithm.name=scaffold", "rounds=3", "scheduler.cohort=0.5", "communication.up=topk:0.1")
    expected = run_federation(config, "in-process", tmp_path / "whole").model.sha256()
    with pytest.raises(RunError, match="enough for now"):
        run_federation(config, "in-process", tmp_path / "run", [Stopping()])
    assert run_federation(config, "ray", tmp_path / "run", resumed=True).model.sha256() == expected


class Stopping(Recorder):
    """Lets the run fail after its second round."""

    def round_done(self, record: RoundRecord) -> None:
        if record.round == 2:
            raise RunError("enough for now")
