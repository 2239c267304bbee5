"""FedProx: local training held near the global model.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith: Federated Optimization in Heterogeneous Networks. MLSys 2020,
arXiv 1812.06127.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from feddkd.algorithms.fedavg import FedAvg
from feddkd.algorithms.site import LocalObjective, Site
from feddkd.config import NamedTable
from feddkd.exchange import Task
from feddkd.registry import ALGORITHMS, OBJECTIVES


class FedProxConfig(NamedTable):
    """Local training held near the global model (arXiv 1812.06127)."""

    name: Literal["fedprox"] = "fedprox"
    mu: float = Field(0.01, ge=0, description="weight of the proximal term (mu/2) ||w - w_t||²")


@OBJECTIVES.register("fedprox")
class Proximal(LocalObjective):
    """F_k(w) + (mu/2) ||w - w_t||², over the parameters that take gradients."""

    table = FedProxConfig
    is_repeatable = True
    compares_with_broadcast = True

    def __init__(self, site: Site, settings: FedProxConfig) -> None:
        super().__init__(site, settings)
        self._mu = settings.mu
        self._global: dict[str, Tensor] = {}

    def begin(self, task: Task) -> None:
        self._global = {name: parameter.detach().clone() for name, parameter in self.site.module.named_parameters()}

    @torch.no_grad()
    def add_to_gradients(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Add the gradient of the proximal term, mu (w - w_t)."""
        for name, parameter in parameters.items():
            assert parameter.grad is not None
            parameter.grad.add_(parameter - self._global[name], alpha=self._mu)

    def end(self, task: Task, steps: int) -> None:
        self._global = {}


@ALGORITHMS.register("fedprox")
class FedProx(FedAvg):
    """FedAvg whose clients minimise `Proximal`. With mu = 0 it is FedAvg."""

    table = FedProxConfig
    local_objective: ClassVar[type[LocalObjective] | None] = Proximal
