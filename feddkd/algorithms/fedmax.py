"""FedMAX: local training that keeps the activations before the classifier spread out.

Chen, Bhardwaj, Marculescu: FedMAX: Mitigating Activation Divergence for Accurate and Communication-Efficient
Federated Learning. ECML-PKDD 2020, arXiv 2004.03657.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from feddkd.algorithms.features import Features
from feddkd.algorithms.fedavg import FedAvg
from feddkd.algorithms.site import LocalObjective, Site
from feddkd.config import NamedTable
from feddkd.registry import ALGORITHMS, OBJECTIVES


class FedMAXConfig(NamedTable):
    """Local training that keeps the activations before the classifier spread out (arXiv 2004.03657)."""

    name: Literal["fedmax"] = "fedmax"
    beta: float = Field(10.0, ge=0, description="weight of KL(uniform || softmax(activations))")


@OBJECTIVES.register("fedmax")
class MaximumEntropy(LocalObjective):
    """CE + beta KL( uniform || softmax(a) ), a being the inputs of the last linear layer, D of them.

    The KL is a mean over the batch. The authors' code divides by D as well, so its beta is D times this one.
    """

    table = FedMAXConfig
    is_repeatable = True
    needs_labels = True

    def __init__(self, site: Site, settings: FedMAXConfig) -> None:
        super().__init__(site, settings)
        self._beta = settings.beta
        self._features = Features(site.module, site.learning_task)

    def loss(self, index: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
        logits, activations = self._features.forward(inputs)
        return self.site.learning_task.loss(logits, labels) + self._beta * kl_from_uniform(activations)


def kl_from_uniform(activations: Tensor) -> Tensor:
    """Compute KL( uniform || softmax(a) ) = -log D - mean_d log softmax(a)_d, mean over [B, D]."""
    return -math.log(activations.shape[1]) - F.log_softmax(activations, dim=1).mean()


@ALGORITHMS.register("fedmax")
class FedMAX(FedAvg):
    """FedAvg whose clients minimise `MaximumEntropy`. With beta = 0 it is FedAvg."""

    table = FedMAXConfig
    local_objective: ClassVar[type[LocalObjective] | None] = MaximumEntropy
