"""Every algorithm and every kind of task on a device that is not the CPU: nothing mixes devices, and results are those of the CPU.

The device is pretended (`tagged_device`): it refuses what CUDA refuses, and computes on the CPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from model_hashes import ALGORITHMS
from safetensors.torch import load_file
from tagged_device import CUDA, MixedDevicesError, TaggedTensor, pretended_cuda
from task_table import TASKS, config_of
from torch import nn

from feddkd.client.memory_errors import named_memory_errors
from feddkd.config import Config
from feddkd.devices.resident import Residents
from feddkd.engines.simulation import run_federation
from feddkd.errors import ClientError

pytestmark = pytest.mark.usefixtures("importable_tests")

SMALL = ("rounds=2", "training.steps=2", "dkd.steps=2", "partition.clients=2", "partition.name=iid", "data.labelled_share=0.5")
"""Every client has examples without a label as well."""


def models_of(config: Config, folder: Path) -> tuple[str, dict[str, Any]]:
    """Run; return the final model's hash, and every tensor that clients keep on disk."""
    record = run_federation(config, "in-process", folder)
    kept = {f"{file.parent.name}/{file.stem}": load_file(file) for file in sorted(folder.glob("clients/*/*.safetensors"))}
    return record.model.sha256(), kept


def check_same(config: Config, folder: Path, *, exact: bool = True) -> None:
    """Run on the CPU and on the pretended device, and compare all that is left."""
    expected, kept = models_of(config, folder / "cpu")
    on_cuda = config.model_copy(update={"runtime": config.runtime.model_copy(update={"device": "cuda:0"})})
    with pretended_cuda() as cuda:
        found, kept_there = models_of(on_cuda, folder / "cuda")
    assert found == expected or not exact
    assert {name: sorted(tensors) for name, tensors in kept_there.items()} == {name: sorted(tensors) for name, tensors in kept.items()}
    for name, tensors in kept.items():
        assert all(kept_there[name][each].equal(tensor) for each, tensor in tensors.items()) or not exact, name
    assert min(cuda.crossings["to"], cuda.crossings["from"]) > 0


OTHERS: dict[str, tuple[str, ...]] = {
    "self_training": ("algorithm.name=self_training",),
    "semifl": ("algorithm.name=semifl",),
    "a chosen teacher": ("dkd.teacher=auto",),
    "a gradient that rides along": ("algorithm.name=fedavg", "dkd.piggyback=true"),
    "adam": ("training.optimizer=adam", "training.lr=0.001", "training.clip_norm=1"),
    "codecs": ("communication.preset=frugal",),
    "own teachers": ("teacher.model=mlp", "dkd.start=previous"),
}


VARIANTS = (
    *("feddkd from", "feddkd without", "feddkd clipped", "feddkd with fedntd", "feddkd with half"),
    *("fedavgm", "fedadagrad", "fedadam", "fedyogi", "fedexp", "fedavg with", "fedavg_sgd"),
)
"""Their clients compute what those of the others do."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name.startswith(VARIANTS) else name for name in [*ALGORITHMS, *OTHERS]]
)
def test_every_algorithm_computes_on_the_device_alone(name: str, tmp_path: Path) -> None:
    overrides = [part for part in {**ALGORITHMS, **OTHERS}[name] if not part.startswith("rounds=")]
    check_same(Config.load(overrides=[*SMALL, *overrides]), tmp_path)


@pytest.mark.parametrize("name", TASKS)
def test_every_kind_of_task_computes_on_the_device_alone(name: str, tmp_path: Path) -> None:
    # To torch the pretended device is another one, for which it draws dropout and attends in another way.
    check_same(config_of(name, partition={"name": "quantity_dirichlet", "clients": 2}), tmp_path, exact=name != "transformer")


@pytest.mark.parametrize("name", ["feddkd", "scaffold", "moon"])
def test_data_that_do_not_fit_give_the_same_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Residents, "of", lambda *_: None)
    check_same(Config.load(overrides=[*SMALL, f"algorithm.name={name}"]), tmp_path)


def test_adagrad_which_has_no_fused_kernel_there_trains_as_on_the_cpu(tmp_path: Path) -> None:
    config = Config.load(overrides=[*SMALL, "algorithm.name=fedavg", "training.optimizer=adagrad"])
    on_cuda = config.model_copy(update={"runtime": config.runtime.model_copy(update={"device": "cuda:0"})})
    expected = run_federation(config, "in-process", tmp_path / "cpu").model
    with pretended_cuda():
        found = run_federation(on_cuda, "in-process", tmp_path / "cuda").model
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor)


def test_the_pretended_device_refuses_what_cuda_refuses() -> None:
    with pretended_cuda():
        layer, here = nn.Linear(3, 2).to(CUDA), torch.ones(4, 3)
        there = here.to(CUDA)
        assert isinstance(layer.weight, TaggedTensor)
        assert layer(there).device == CUDA
        for mixed in (lambda: layer(here), lambda: there + here, lambda: torch.cat([there, here]), lambda: here[there.long()[0]]):
            with pytest.raises(MixedDevicesError):
                mixed()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert (there + torch.tensor(1.0)).cpu().equal(here + 1)  # numbers and indices of the CPU are taken
        assert there[torch.tensor([1, 2])].cpu().equal(here[:2])


def test_used_up_memory_names_the_keys_that_help() -> None:
    config = Config.load(overrides=["training.batch_size=512", "runtime.device=cuda:0"])
    told = r"runtime\.device = 'cuda:0': its memory is used up; lower training\.batch_size \(512\)"
    with pytest.raises(ClientError, match=told), named_memory_errors(config):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore")
