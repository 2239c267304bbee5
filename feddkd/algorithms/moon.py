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
from feddkd.dkd import frozen
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
    round, so their features are computed once; where reads of the examples are random, both are copied and compute
    them for each batch.
    """

    table = MOONConfig
    needs_labels = True
    compares_with_broadcast = True

    def __init__(self, site: Site, settings: MOONConfig) -> None:
        super().__init__(site, settings)
        self._mu = settings.mu
        self._temperature = settings.temperature
        self._features = Features(site.module, site.learning_task)
        self._memory = RoundMemory(site.store, "moon-local-model")
        self._global: Tensor | Features = torch.empty(0)
        self._previous: Tensor | Features | None = None

    def begin(self, task: Task) -> None:
        site = self.site
        self._global = self._kept_features(task)
        previous = self._memory.recall(task.id, site.model_schema)
        self._previous = None
        if previous is not None:
            previous.load_into(site.module)
            self._previous = self._kept_features(task)
            task.payload.load_into(site.module)

    def _kept_features(self, task: Task) -> Tensor | Features:
        """Keep of the network as it is now what training needs: its features of all examples, or a copy of it."""
        site = self.site
        if site.labelled.is_random:
            return Features(frozen(site.module), site.learning_task)
        return self._features.of_all(site.labelled, site.device, check=task.check_cancelled, batch_size=site.eval_batch_size)

    def loss(self, index: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
        logits, features = self._features.forward(inputs)
        cross_entropy = self.site.learning_task.loss(logits, labels)
        if self._previous is None:
            return cross_entropy
        towards, away = _features_of(self._global, index, inputs), _features_of(self._previous, index, inputs)
        return cross_entropy + self._mu * contrast(features, towards, away, self._temperature)

    def end(self, task: Task, steps: int) -> None:
        self._memory.keep(task.id, self.site.model())
        self._global, self._previous = torch.empty(0), None


def _features_of(kept: Tensor | Features, index: Tensor, inputs: Tensor) -> Tensor:
    """Look features [B, D] up, or compute them for the inputs at hand."""
    if isinstance(kept, Tensor):
        return kept[index].to(inputs.device)
    with torch.no_grad():
        return kept.forward(inputs)[1]


def contrast(features: Tensor, towards: Tensor, away: Tensor, temperature: float) -> Tensor:
    """Compute the mean contrastive loss of features [B, D] with a positive and a negative each."""
    similarities = torch.stack([F.cosine_similarity(features, towards), F.cosine_similarity(features, away)], dim=1)
    return -F.log_softmax(similarities / temperature, dim=1)[:, 0].mean()


@ALGORITHMS.register("moon")
class MOON(FedAvg):
    """FedAvg whose clients minimise `ModelContrast`. With mu = 0 it is FedAvg."""

    table = MOONConfig
    local_objective: ClassVar[type[LocalObjective] | None] = ModelContrast
