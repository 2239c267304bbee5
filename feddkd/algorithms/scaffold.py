"""SCAFFOLD: local training corrected by control variates, which estimate how each client's gradient differs from all.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh: SCAFFOLD: Stochastic Controlled Averaging for Federated Learning.
ICML 2020, arXiv 1910.06378.

With momentum rho, K local steps go as far as K' = (K - rho (1 - rho^K) / (1 - rho)) / (1 - rho)
plain ones (`effective_steps`). With K, (w_t - w_k) / (K lr) would overestimate the mean gradient
1 / (1 - rho) times and the variates would diverge, so K' is used. Where a schedule changes the
learning rate, lr is that of the round, and K' counts a step by its share of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from feddkd.algorithms.base import Algorithm, Cohort, own_settings
from feddkd.algorithms.fedavg import FedAvgClient
from feddkd.algorithms.learning_rate import LearningRate
from feddkd.algorithms.local_optimizer import require_sgd
from feddkd.algorithms.local_training import local_steps
from feddkd.algorithms.memory import RoundMemory
from feddkd.algorithms.site import LocalObjective, Site
from feddkd.config import Config, NamedTable, TrainingConfig
from feddkd.errors import ConfigError
from feddkd.exchange import ExchangeKind, Task, model_and, trainable_parameters
from feddkd.registry import ALGORITHMS
from feddkd.tensors import Tensors


class SCAFFOLDConfig(NamedTable):
    """Local training corrected by control variates (arXiv 1910.06378)."""

    name: Literal["scaffold"] = "scaffold"
    server_lr: float = Field(1.0, gt=0, description="how far the server follows the mean update")


class ControlVariates(LocalObjective):
    """g <- g - c_k + c in every local step; then c_k+ = c_k - c + (w_t - w_k) / (K' lr) (option II of the paper)."""

    table = SCAFFOLDConfig
    is_repeatable = True

    def __init__(self, site: Site, settings: SCAFFOLDConfig) -> None:
        super().__init__(site, settings)
        self._memory = RoundMemory(site.store, "scaffold-control")
        self._variate: Tensors | None = None
        self._correction: Tensors | None = None
        self._there: dict[str, Tensor] = {}
        self.change = Tensors(site.model_schema.trainable)

    def begin(self, task: Task) -> None:
        schema = self.site.model_schema.trainable
        self._variate = self._memory.recall(task.id, schema) or Tensors(schema)
        self._correction = task.payload.part("control", schema) - self._variate
        self._there = {name: change.to(self.site.device) for name, change in self._correction.items()}

    @torch.no_grad()
    def add_to_gradients(self, parameters: Mapping[str, nn.Parameter]) -> None:
        for name, parameter in parameters.items():
            assert parameter.grad is not None
            parameter.grad.add_(self._there[name])

    def end(self, task: Task, steps: int) -> None:
        """Store c_k+ before the reply is sent, and set `change` to c_k+ - c_k for the reply."""
        assert self._variate is not None
        assert self._correction is not None
        schema, config, number = self.site.model_schema.trainable, self.site.config, task.id.round
        way_back = task.payload.select(schema) - self.site.model().select(schema)
        rate, planned = LearningRate(config), local_steps(config.training, len(self.site.examples))
        mean_gradient = way_back.scaled(1 / (rate.effective_steps(number, planned, steps) * rate.of_round(number)))
        self.change = mean_gradient - self._correction - self._variate
        self._memory.keep(task.id, self._variate + self.change)
        self._variate, self._correction, self._there = None, None, {}


class SCAFFOLDClient(FedAvgClient):
    """Uploads w_k - w_t and c_k+ - c_k."""

    objective: ControlVariates

    def contribution(self, update: Tensors, steps: int) -> Tensors:
        return update.beside(control=self.objective.change)


@ALGORITHMS.register("scaffold")
class SCAFFOLD(Algorithm):
    """w_{t+1} = w_t + lr_server sum_k p_k (w_k - w_t); c <- c + s sum_k p_k (c_k+ - c_k), s the cohort's share of all clients.

    With the weights p_k in both sums, c stays sum_k p_k c_k over all clients, which is the gradient of the
    weighted objective; with `scheduler.weights = "uniform"` it is the paper's 1/N. The paper's |S|/N is s.
    c lacks the change of a client whose reply did not count in its round (`RoundMemory`).
    """

    table = SCAFFOLDConfig
    no_piggyback = "its control variates already correct the drift, and double what travels"
    needs_mean = "its control variate has to be the mean of those of all clients"
    client_side = SCAFFOLDClient
    local_objective: ClassVar[type[LocalObjective] | None] = ControlVariates

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._server_lr = own_settings(config, SCAFFOLDConfig).server_lr
        self._control: dict[str, Tensor] = {}

    @classmethod
    def check_training(cls, training: TrainingConfig) -> None:
        reason = "its control variates are mean gradients, found from the way that SGD went"
        require_sgd(training, "scaffold", reason)
        if training.clip_norm is not None:
            raise ConfigError(
                f"training.clip_norm = {training.clip_norm:g}: scaffold needs gradients that are not clipped, because {reason}"
            )

    @classmethod
    def exchanges(cls, config: Config) -> Mapping[str, ExchangeKind]:
        with_control = model_and(control=trainable_parameters)
        return {"local_train": ExchangeKind(broadcast=with_control, reply=with_control)}

    def run_round(self, cohort: Cohort, model: Tensors) -> Tensors:
        trainable = model.schema.trainable
        control = Tensors.copy_of(trainable, self._control) if self._control else Tensors(trainable)
        mean = cohort.exchange("local_train", model.beside(control=control))
        received = cohort.sent.select(model.schema)
        control = cohort.sent.part("control", trainable)
        self._control = dict(control + mean.part("control", trainable).scaled(cohort.share))
        step = mean.select(trainable).scaled(self._server_lr)
        return (received + mean.select(model.schema)).replace(received.select(trainable) + step)

    def state_dict(self) -> Mapping[str, Tensor]:
        return dict(self._control)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._control = dict(state)
