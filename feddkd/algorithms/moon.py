"""MOON: local training that pulls features towards the global model's and away from the last local model's.

Li, He, Song: Model-Contrastive Federated Learning. CVPR 2021, arXiv 2103.16257.

The paper adds a projection head before the classifier. Here the features are the inputs of the last
linear layer, so all algorithms train the same network.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from feddkd.algorithms.features import Features
from feddkd.algorithms.fedavg import FedAvg
from feddkd.algorithms.memory import RoundMemory
from feddkd.algorithms.site import LocalObjective, Site
from feddkd.config import NamedTable
from feddkd.exchange import Task
from feddkd.registry import ALGORITHMS, OBJECTIVES


class MOONConfig(NamedTable):
    """Local training that pulls features to the global model's and away from the last local model's (arXiv 2103.16257)."""

    name: Literal["moon"] = "moon"
    mu: float = Field(1.0, ge=0, description="weight of the contrastive loss")
    temperature: float = Field(0.5, gt=0, description="temperature of the contrastive loss")


@OBJECTIVES.register("moon")
class ModelContrast(LocalObjective):
    """CE - mu log( e^{sim(z, z_global)/T} / (e^{sim(z, z_global)/T} + e^{sim(z, z_previous)/T}) ), sim the cosine.

    z_previous comes from the local model of the client's last round, kept in its state directory; a client that
    takes part for the first time has none and minimises the cross-entropy. Both other models are frozen for the
    round, so their features are computed once.
    """

    table = MOONConfig

    def __init__(self, site: Site, settings: MOONConfig) -> None:
        super().__init__(site, settings)
        self._mu = settings.mu
        self._temperature = settings.temperature
        self._features = Features(site.module)
        self._memory = RoundMemory(site.store, "moon-local-model")
        self._global_features = torch.empty(0)
        self._previous_features: Tensor | None = None

    def begin(self, task: Task) -> None:
        site, check = self.site, task.check_cancelled
        self._global_features = self._features.of_all(site.labelled, site.device, check=check)
        previous = self._memory.recall(task.id, site.model_schema)
        self._previous_features = None
        if previous is not None:
            previous.load_into(site.module)
            self._previous_features = self._features.of_all(site.labelled, site.device, check=check)
            task.payload.load_into(site.module)

    def loss(self, index: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
        logits, features = self._features.forward(inputs)
        cross_entropy = F.cross_entropy(logits, labels)
        if self._previous_features is None:
            return cross_entropy
        towards = self._global_features[index].to(features.device)
        away = self._previous_features[index].to(features.device)
        return cross_entropy + self._mu * contrast(features, towards, away, self._temperature)

    def end(self, task: Task, steps: int) -> None:
        self._memory.keep(task.id, self.site.model())


def contrast(features: Tensor, towards: Tensor, away: Tensor, temperature: float) -> Tensor:
    """Compute the mean contrastive loss of features [B, D] with a positive and a negative each."""
    similarities = torch.stack([F.cosine_similarity(features, towards), F.cosine_similarity(features, away)], dim=1)
    return -F.log_softmax(similarities / temperature, dim=1)[:, 0].mean()


@ALGORITHMS.register("moon")
class MOON(FedAvg):
    """FedAvg whose clients minimise `ModelContrast`. With mu = 0 it is FedAvg."""

    table = MOONConfig
    local_objective: ClassVar[type[LocalObjective] | None] = ModelContrast
