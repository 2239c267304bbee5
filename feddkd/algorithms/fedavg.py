"""FedAvg: the average of locally trained models.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas: Communication-Efficient Learning of Deep Networks from
Decentralized Data. AISTATS 2017, arXiv 1602.05629.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from feddkd.algorithms.base import Algorithm, ClientSide, Cohort
from feddkd.algorithms.local_training import train_locally
from feddkd.algorithms.site import Site
from feddkd.config import AlgorithmTable, Config, NamedTable
from feddkd.exchange import UPDATE_NORM_SQUARED, ExchangeKind, Reply, Task
from feddkd.registry import ALGORITHMS
from feddkd.tensors import Tensors


class FedAvgConfig(AlgorithmTable):
    """The average of locally trained models (arXiv 1602.05629)."""

    name: Literal["fedavg"] = "fedavg"


class FedAvgClient(ClientSide):
    """w_k = SGD(w_t, D_k, E epochs); uploads w_k - w_t."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.objective = site.new_objective(site.teacher)

    def local_train(self, task: Task) -> Reply:
        training = train_locally(self.site, task, self.objective)
        update = self.site.model() - task.payload.select(self.site.model_schema)
        contribution = self.contribution(update, training.steps)
        return Reply(
            contribution=contribution,
            loss=training.loss,
            gradient_evaluations=training.gradient_evaluations,
            metrics={**training.metrics, **self.metrics(contribution)},
        )

    def contribution(self, update: Tensors, steps: int) -> Tensors:
        """Make what is uploaded after `steps` local steps; here the update itself."""
        return update

    def metrics(self, contribution: Tensors) -> dict[str, float]:
        """Compute numbers for the record: the squared norm of what is averaged."""
        averaged = contribution.select(self.site.model_schema.trainable)
        return {UPDATE_NORM_SQUARED: averaged.norm() ** 2}


@ALGORITHMS.register("fedavg")
class FedAvg(Algorithm):
    """w_{t+1} = w_t + sum_k p_k (w_k - w_t)."""

    table: ClassVar[type[NamedTable]] = FedAvgConfig
    client_side: ClassVar[type[ClientSide]] = FedAvgClient

    @classmethod
    def exchanges(cls, config: Config) -> Mapping[str, ExchangeKind]:
        return {"local_train": ExchangeKind()}

    def run_round(self, cohort: Cohort, model: Tensors) -> Tensors:
        update = cohort.exchange("local_train", model)
        return cohort.sent + update
