"""FedDyn: local losses changed so that their minima agree with the global one's.

Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama: Federated Learning Based on Dynamic Regularization.
ICLR 2021, arXiv 2111.04263.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from feddkd.algorithms.base import Cohort, own_settings
from feddkd.algorithms.fedavg import FedAvg
from feddkd.algorithms.memory import RoundMemory
from feddkd.algorithms.site import LocalObjective, Site
from feddkd.config import Config, NamedTable
from feddkd.exchange import Task
from feddkd.registry import ALGORITHMS
from feddkd.tensors import Tensors


class FedDynConfig(NamedTable):
    """Local losses whose minima agree with the global one's (arXiv 2111.04263)."""

    name: Literal["feddyn"] = "feddyn"
    alpha: float = Field(0.01, gt=0, description="weight of the dynamic regularizer")


class DynamicRegularizer(LocalObjective):
    """F_k(w) - <h_k, w> + (alpha/2) ||w - w_t||²; then h_k <- h_k - alpha (w_k - w_t)."""

    table = FedDynConfig
    is_repeatable = True

    def __init__(self, site: Site, settings: FedDynConfig) -> None:
        super().__init__(site, settings)
        self._alpha = settings.alpha
        self._memory = RoundMemory(site.store, "feddyn-gradient")
        self._global: Tensors | None = None
        self._linear_term: Tensors | None = None
        self._there: dict[str, tuple[Tensor, Tensor]] = {}

    def begin(self, task: Task) -> None:
        schema = self.site.model_schema.trainable
        self._global = task.payload.select(schema)
        self._linear_term = self._memory.recall(task.id, schema) or Tensors(schema)
        device = self.site.device
        self._there = {name: (self._global[name].to(device), self._linear_term[name].to(device)) for name in schema.by_name}

    @torch.no_grad()
    def add_to_gradients(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Add the gradient of both terms, alpha (w - w_t) - h_k."""
        for name, parameter in parameters.items():
            assert parameter.grad is not None
            start, linear_term = self._there[name]
            parameter.grad.add_(parameter - start, alpha=self._alpha)
            parameter.grad.sub_(linear_term)

    def end(self, task: Task, steps: int) -> None:
        assert self._global is not None
        assert self._linear_term is not None
        moved = self.site.model().select(self._global.schema) - self._global
        self._memory.keep(task.id, self._linear_term - moved.scaled(self._alpha))
        self._global, self._linear_term, self._there = None, None, {}


@ALGORITHMS.register("feddyn")
class FedDyn(FedAvg):
    """h <- h - alpha s sum_k p_k (w_k - w_t); w_{t+1} = sum_k p_k w_k - h / alpha, s the cohort's share of all clients.

    The paper's (1/N) sum over the cohort is s times the cohort's mean. Buffers follow the mean update. h lacks
    the change of a client whose reply did not count in its round (`RoundMemory`).
    """

    table = FedDynConfig
    no_piggyback = "its correction h and its model have to move together"
    local_objective: ClassVar[type[LocalObjective] | None] = DynamicRegularizer

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._alpha = own_settings(config, FedDynConfig).alpha
        self._h: dict[str, Tensor] = {}

    def run_round(self, cohort: Cohort, model: Tensors) -> Tensors:
        update, trainable = cohort.exchange("local_train", model), model.schema.trainable
        h = Tensors.copy_of(trainable, self._h) if self._h else Tensors(trainable)
        h = h - update.select(trainable).scaled(self._alpha * cohort.share)
        self._h = dict(h)
        average = cohort.sent + update
        return average.replace(average.select(trainable) - h.scaled(1 / self._alpha))

    def state_dict(self) -> Mapping[str, Tensor]:
        return dict(self._h)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._h = dict(state)
