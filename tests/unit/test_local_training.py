"""Local SGD on awkward data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from feddkd.algorithms.local_training import LocalObjective, train_locally
from feddkd.algorithms.site import Site
from feddkd.client.state_dir import StateDir
from feddkd.config import Config
from feddkd.config.algorithm import CrossEntropyConfig
from feddkd.data.examples import MemoryExamples
from feddkd.exchange import ExchangeId, Task
from feddkd.tensors import Tensors


def site_with(module: nn.Module, folder: Path, examples: int) -> Site:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(examples, 3, generator=generator)
    data = MemoryExamples(inputs, torch.randint(2, (examples,), generator=generator))
    config = Config.parse({"training": {"batch_size": 4, "epochs": 2}})
    state, device = StateDir(folder, "a"), torch.device("cpu")
    return Site("a", config, data, data.subset(torch.arange(0)), module, device, state, plain_objective)


def plain_objective(site: Site) -> LocalObjective:
    return LocalObjective(site, CrossEntropyConfig())


def task_for(site: Site) -> Task:
    return Task(ExchangeId("run", 1, 0, "local_train", 0), Tensors.of_module(site.module))


def test_a_leftover_of_one_example_does_not_stop_batch_normalisation(tmp_path: Path) -> None:
    site = site_with(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), tmp_path, examples=9)
    before = Tensors.of_module(site.module)
    loss, taken, _ = train_locally(site, task_for(site), plain_objective(site))
    assert loss > 0
    assert taken == 2 * 2
    assert (Tensors.of_module(site.module) - before).norm() > 0
    assert int(site.module[1].num_batches_tracked) == 2 * 2  # type: ignore[index]


def test_a_leftover_of_one_example_is_trained_on_where_it_can_be(tmp_path: Path) -> None:
    torch.manual_seed(0)
    eight = site_with(nn.Linear(3, 2), tmp_path / "8", examples=8)
    steps = []
    for examples in (8, 9):
        site = site_with(nn.Linear(3, 2), tmp_path / str(examples), examples=examples)
        site.module.load_state_dict(eight.module.state_dict())
        site.module.register_forward_hook(lambda _, inputs, __: steps.append(len(inputs[0])))
        _, taken, _ = train_locally(site, task_for(site), plain_objective(site))
        assert taken == 2 * -(-examples // 4)
    assert steps == [4, 4] * 2 + [4, 4, 1] * 2


@pytest.mark.parametrize("epochs", [1, 3])
def test_the_loss_is_the_mean_over_the_last_epoch(tmp_path: Path, epochs: int) -> None:
    site = site_with(nn.Linear(3, 2), tmp_path, examples=8)
    site.config = Config.parse({"training": {"batch_size": 8, "epochs": epochs, "lr": 1e-9}})
    inputs, labels = site.examples.gather(torch.arange(8))
    expected = nn.functional.cross_entropy(site.module(inputs), labels).item()
    assert train_locally(site, task_for(site), plain_objective(site)).loss == pytest.approx(expected, rel=1e-5)
