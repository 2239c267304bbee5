"""FedAvg: the average of locally trained models.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas: Communication-Efficient Learning of Deep Networks from
Decentralized Data. AISTATS 2017, arXiv 1602.05629.
"""

from __future__ import annotations

from typing import ClassVar

from feddkd.algorithms.base import Algorithm, ClientHalf, Cohort
from feddkd.algorithms.local_training import train_locally
from feddkd.algorithms.site import Site
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
            # Of what is averaged, so that the norm of the mean is comparable to it whatever `contribution` makes of the update.
            metrics={UPDATE_NORM_SQUARED: contribution.select(update.schema.trainable).norm() ** 2},
        )

    def contribution(self, update: Tensors, steps: int) -> Tensors:
        """What is uploaded after `steps` local steps: the update, or what an algorithm makes of it."""
        return update


class FedAvg(Algorithm):
    """w_{t+1} = w_t + sum_k p_k (w_k - w_t)."""

    exchanges = {"local_train": ExchangeKind()}
    client_half: ClassVar[type[ClientHalf]] = FedAvgClient

    def run_round(self, cohort: Cohort, model: Tensors) -> Tensors:
        return model + cohort.exchange("local_train", model)
