"""FedAvg: the average of locally trained models.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas: Communication-Efficient Learning of Deep Networks from
Decentralized Data. AISTATS 2017, arXiv 1602.05629.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from feddkd.algorithms.base import Algorithm, ClientHalf, Cohort
from feddkd.algorithms.local_training import train_locally
from feddkd.algorithms.site import Site
from feddkd.config import Config
from feddkd.exchange import UPDATE_NORM_SQUARED, ExchangeKind, Reply, Task
from feddkd.tensors import Tensors


class FedAvgClient(ClientHalf):
    """w_k = SGD(w_t, D_k, E epochs); uploads w_k - w_t."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.objective = site.new_objective(site)

    def local_train(self, task: Task) -> Reply:
        training = train_locally(self.site, task, self.objective)
        update = Tensors.of_module(self.site.module) - task.payload.select(self.site.model_schema)
        contribution = self.contribution(update, training.steps)
        return Reply(
            contribution=contribution,
            loss=training.loss,
            gradient_evaluations=training.gradient_evaluations,
            metrics=self.metrics(contribution),
        )

    def contribution(self, update: Tensors, steps: int) -> Tensors:  # noqa: ARG002
        """What is uploaded after `steps` local steps: the update, or what an algorithm makes of it."""
        return update

    def metrics(self, contribution: Tensors) -> dict[str, float]:
        """Numbers for the record: the squared norm of what is averaged, to be compared with that of the mean."""
        return {UPDATE_NORM_SQUARED: contribution.select(self.site.model_schema.trainable).norm() ** 2}


class FedAvg(Algorithm):
    """w_{t+1} = w_t + sum_k p_k (w_k - w_t)."""

    client_half: ClassVar[type[ClientHalf]] = FedAvgClient

    @classmethod
    def exchanges(cls, config: Config) -> Mapping[str, ExchangeKind]:  # noqa: ARG003
        return {"local_train": ExchangeKind()}

    def run_round(self, cohort: Cohort, model: Tensors) -> Tensors:
        return model + cohort.exchange("local_train", model)
