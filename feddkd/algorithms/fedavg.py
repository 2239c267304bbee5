"""FedAvg: the average of locally trained models.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas: Communication-Efficient Learning of Deep Networks from
Decentralized Data. AISTATS 2017, arXiv 1602.05629.
"""

from __future__ import annotations

from feddkd.algorithms.base import Algorithm, ClientHalf, Cohort
from feddkd.algorithms.local_training import train_locally
from feddkd.exchange import ExchangeKind, Reply, Task
from feddkd.tensors import Tensors


class FedAvgClient(ClientHalf):
    """w_k = SGD(w_t, D_k, E epochs); uploads w_k - w_t."""

    def local_train(self, task: Task) -> Reply:
        task.payload.load_into(self.site.module)
        loss = train_locally(self.site, task)
        return Reply(contribution=Tensors.of_module(self.site.module) - task.payload, loss=loss)


class FedAvg(Algorithm):
    """w_{t+1} = w_t + sum_k p_k (w_k - w_t)."""

    exchanges = {"local_train": ExchangeKind()}
    client_half = FedAvgClient

    def run_round(self, cohort: Cohort, model: Tensors) -> Tensors:
        return model + cohort.exchange("local_train", model)
