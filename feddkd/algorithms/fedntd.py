"""FedNTD: local training that keeps the global model's logits of the classes that are not true.

Lee, Jeong, Shin, Bae, Yun: Preservation of the Global Knowledge by Not-True Distillation in Federated Learning.
NeurIPS 2022, arXiv 2106.03097.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from feddkd.algorithms.fedavg import FedAvg
from feddkd.algorithms.site import LocalObjective, Site
from feddkd.config import NamedTable
from feddkd.dkd import frozen, kl, soft_labels, without_true_class
from feddkd.exchange import Task
from feddkd.registry import ALGORITHMS, OBJECTIVES


class FedNTDConfig(NamedTable):
    """Local training that keeps what the global model says of the classes that are not true (arXiv 2106.03097)."""

    name: Literal["fedntd"] = "fedntd"
    beta: float = Field(1.0, ge=0, description="weight of the not-true distillation loss")
    temperature: float = Field(1.0, gt=0, description="softens both sides of the not-true distillation")


@OBJECTIVES.register("fedntd")
class NotTrueDistillation(LocalObjective):
    """CE + beta T² KL( softmax of the global model's logits without the true class || the local model's ).

    The global model is frozen for the round, so its logits are computed once, for all examples, before training; where
    reads of the examples are random, it is copied and computes them for each batch.
    """

    table = FedNTDConfig
    needs_labels = True
    compares_with_broadcast = True

    def __init__(self, site: Site, settings: FedNTDConfig) -> None:
        super().__init__(site, settings)
        self._beta = settings.beta
        self._temperature = settings.temperature
        self._global: Tensor | nn.Module = torch.empty(0)

    def begin(self, task: Task) -> None:
        site = self.site
        if site.labelled.is_random:
            self._global = frozen(site.module)
        else:
            self._global = site.outputs_of(site.module, site.labelled, task)

    def loss(self, index: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
        task = self.site.learning_task
        logits = task.outputs(self.site.module, inputs)
        teacher = soft_labels(self._global, index, inputs, task)
        not_true = kl(without_true_class(teacher, labels), without_true_class(logits, labels), self._temperature)
        return task.loss(logits, labels) + self._beta * not_true

    def end(self, task: Task, steps: int) -> None:
        self._global = torch.empty(0)


@ALGORITHMS.register("fedntd")
class FedNTD(FedAvg):
    """FedAvg whose clients minimise `NotTrueDistillation`. With beta = 0 it is FedAvg."""

    table = FedNTDConfig
    local_objective: ClassVar[type[LocalObjective] | None] = NotTrueDistillation
