"""What crosses Ray's object store, and what an actor does without it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import small_config
from hypothesis import given
from hypothesis import strategies as st

from feddkd.client.simulated import Simulation
from feddkd.client.state_dir import StateDir
from feddkd.data.examples import MemoryExamples
from feddkd.engines import ray as ray_engine
from feddkd.engines import ray_host
from feddkd.engines.ray_host import CONFIG, Frames, Packed, RayHost, patiently
from feddkd.engines.simulation import run_federation
from feddkd.errors import ConfigError, RunError, StateError, StateHeldError


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_messages_end_to_end_are_the_same_messages(messages: list[bytes]) -> None:
    assert [bytes(message) for message in Frames.of(messages).messages()] == messages


TENSORS = {
    "float32": torch.arange(6.0).reshape(2, 3),
    "not contiguous": torch.arange(6).reshape(2, 3).t(),
    "empty": torch.empty(0, 3),
    "scalar": torch.tensor(7),
    "bool": torch.tensor([True, False]),
    "bfloat16": torch.ones(3, dtype=torch.bfloat16),
    "parameter": torch.nn.Parameter(torch.ones(2)),
}


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS)
def test_a_tensor_comes_out_as_it_went_in(tensor: torch.Tensor) -> None:
    found = Packed.of({"a": [tensor]}).unpack()["a"][0]
    assert type(found) is type(tensor)
    assert found.dtype == tensor.dtype
    assert found.equal(tensor)


def test_examples_share_the_memory_of_the_object_store() -> None:
    images = torch.randint(0, 255, (500, 4), dtype=torch.uint8)
    packed = Packed.of(MemoryExamples(images, torch.arange(500) % 3))
    assert len(packed.pickled) < images.numel()
    first, second = packed.unpack(), packed.unpack()
    assert first.inputs.equal(images)
    assert first.inputs.data_ptr() == second.inputs.data_ptr()
    assert any(np.shares_memory(array, first.inputs.numpy()) for array in packed.arrays)


def test_a_node_without_the_folder_of_the_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"this node does not see .*: the record of the run must be on a file system that all nodes share"):
        RayHost().prepare(str(tmp_path / "nowhere"), None, {})


@pytest.mark.parametrize("given", [True, False], ids=["data of the object store", "data of the disk"])
def test_a_host_prepares_with_the_clients_of_the_configuration(given: bool, tmp_path: Path) -> None:
    config = small_config()
    (tmp_path / CONFIG).write_text(config.to_toml())
    host = RayHost()
    host.prepare(str(tmp_path), Packed.of(Simulation(config, tmp_path).examples) if given else None, {})
    assert host.has_constants("client-3", b"")
    assert not (tmp_path / "client-3" / "lock").exists(), "nobody has computed"


def test_a_host_waits_until_another_process_has_let_go_of_a_state_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def work() -> str:
        asked.append(1)
        if len(asked) < 3:
            raise StateHeldError("held")
        return "done"

    monkeypatch.setattr(ray_host, "LOCK_PAUSE_S", 0.0)
    assert patiently(work) == "done"
    monkeypatch.setattr(ray_host, "LOCK_PATIENCE_S", -1.0)
    asked.clear()
    with pytest.raises(StateHeldError):
        patiently(work)


def test_a_directory_that_is_held_is_told_from_one_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def held(path: Path) -> None:
        raise BlockingIOError

    monkeypatch.setattr("feddkd.locking.DirectoryLock.of_this_process", held)
    with pytest.raises(StateHeldError, match="another process holds"):
        StateDir(tmp_path / "client", "client")


def test_without_ray_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"^--engine ray needs the package ray: .*install.* ray$"):
        ray_engine.check(small_config())


@pytest.mark.parametrize("overrides", [["runtime.device=cuda"], ["runtime.ray_gpus=0.5"]])
def test_a_device_that_no_actor_has_is_refused(overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine, "require", lambda: None)
    with pytest.raises(ConfigError, match=r"runtime\.device = .* and runtime\.ray_gpus = "):
        ray_engine.check(small_config(*overrides))
    ray_engine.check(small_config())
    ray_engine.check(small_config("runtime.device=cuda", "runtime.ray_gpus=0.5"))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:99999", "nowhere.invalid:6379"])
def test_a_cluster_that_is_not_there_is_named_at_once(address: str) -> None:
    with pytest.raises(RunError, match=f"^runtime.ray_address = '{address}': no Ray cluster can be reached there: "):
        ray_engine._check_reachable(address)


@pytest.mark.parametrize("address", ["auto", "local"])
def test_an_address_that_ray_knows_is_left_to_it(address: str) -> None:
    ray_engine._check_reachable(address)


def test_without_ray_a_run_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="needs the package ray"):
        run_federation(small_config(), "ray", tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Resources:
    """What a cluster says that it has."""

    def __init__(self, **resources: float) -> None:
        self.resources = resources

    def cluster_resources(self) -> dict[str, float]:
        return self.resources


@pytest.mark.parametrize(
    ("resources", "overrides", "expected"),
    [
        ({"CPU": 8.0}, [], 4),
        ({"CPU": 3.0}, [], 3),
        ({"CPU": 8.0}, ["scheduler.cohort=2"], 2),
        ({"CPU": 3.0}, ["runtime.threads=2"], 1),
        ({"CPU": 0.0}, [], 1),
        ({"CPU": 8.0}, ["runtime.client_processes=3"], 3),
        ({"CPU": 8.0, "GPU": 1.0}, ["runtime.device=cuda", "runtime.ray_gpus=0.5"], 2),
    ],
)
def test_there_are_as_many_hosts_as_there_is_room_for_and_use_of(resources: dict[str, Any], overrides: list[str], expected: int) -> None:
    config = small_config("runtime.client_processes=64", *overrides)
    if "runtime.client_processes=3" not in overrides:
        config = config.model_copy(update={"runtime": config.runtime.model_copy(update={"client_processes": None})})
    assert ray_engine._num_hosts(Resources(**resources), config) == expected
