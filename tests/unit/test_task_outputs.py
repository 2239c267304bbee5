"""What a task says a network's outputs are holds wherever an algorithm calls the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from feddkd.algorithms.registry import find_objective
from feddkd.algorithms.semifl import FixAndMix, SemiFLConfig
from feddkd.algorithms.site import LocalObjective, Site
from feddkd.client.state_dir import StateDir
from feddkd.config import Config
from feddkd.data.examples import MemoryExamples
from feddkd.exchange import ExchangeId, Task
from feddkd.structures import Structure
from feddkd.tasks.classification import Classification, ClassificationConfig
from feddkd.tasks.metrics import TaskMetrics
from feddkd.tensors import Tensors


class Wrapped(nn.Module):
    """Returns its logits in a dict, as many libraries do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.layers(x)}


class FromDict(Classification):
    """Takes the logits out of the dict."""

    def outputs(self, module: nn.Module, inputs: Structure) -> Tensor:
        logits: Tensor = module(inputs)["logits"]
        return logits


EXAMPLES = MemoryExamples(torch.rand(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3)
TASK = FromDict(ClassificationConfig())


def plain(site: Site) -> LocalObjective:
    return LocalObjective(site, find_objective("cross_entropy").table())


def semifl(site: Site) -> LocalObjective:
    return FixAndMix(site, SemiFLConfig(augment=False), EXAMPLES)


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("name", ["fedntd", "moon", "fedmax", "fedprox", "semifl"])
def test_an_objective_takes_the_outputs_that_the_task_says(name: str, rounds: int, tmp_path: Path) -> None:
    module = Wrapped()
    metrics = TaskMetrics(TASK, num_classes=3)
    device, store = torch.device("cpu"), StateDir(tmp_path, "a")
    site = Site("a", Config(), EXAMPLES, EXAMPLES, module, device, store, plain, metrics=metrics)
    settings: dict[str, Any] = {} if name == "semifl" else {"name": name}
    objective = semifl(site) if name == "semifl" else find_objective(name)(site, find_objective(name).table(**settings))
    inputs, labels = EXAMPLES.gather(torch.arange(6))
    for number in range(1, rounds + 1):
        task = Task(ExchangeId("run", number, 0, "local_train", 0), Tensors.of_module(module))
        objective.begin(task)
        assert objective.loss(torch.arange(6), inputs, labels).isfinite()
        objective.end(task, 1)
