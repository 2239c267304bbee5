"""FedNova: updates averaged per local step, so that clients that take more of them do not pull harder.

Wang, Liu, Liang, Joshi, Poor: Tackling the Objective Inconsistency Problem in Heterogeneous Federated
Optimization. NeurIPS 2020, arXiv 2007.07481.
"""

from __future__ import annotations

from collections.abc import Mapping

from feddkd.algorithms.base import Algorithm, Cohort
from feddkd.algorithms.fedavg import FedAvgClient
from feddkd.algorithms.local_training import effective_steps
from feddkd.config import Config
from feddkd.exchange import ExchangeKind, as_scalar, model_and, read_scalar, scalar
from feddkd.tensors import Tensors


class FedNovaClient(FedAvgClient):
    """Uploads (w_k - w_t) / a_k and a_k, the length of its local steps (`effective_steps`); buffers are not divided."""

    def contribution(self, update: Tensors, steps: int) -> Tensors:
        length = effective_steps(steps, self.site.config.training.momentum)
        per_step = update.select(update.schema.trainable).scaled(1 / length)
        return update.replace(per_step).beside(effective_steps=as_scalar(length))


class FedNova(Algorithm):
    """w_{t+1} = w_t + (sum_k p_k a_k) sum_k p_k (w_k - w_t) / a_k."""

    client_half = FedNovaClient

    @classmethod
    def exchanges(cls, config: Config) -> Mapping[str, ExchangeKind]:  # noqa: ARG003
        return {"local_train": ExchangeKind(answer=model_and(effective_steps=scalar))}

    def run_round(self, cohort: Cohort, model: Tensors) -> Tensors:
        mean = cohort.exchange("local_train", model)
        trainable = model.schema.trainable
        length = read_scalar(mean, "effective_steps")
        step = mean.select(trainable).scaled(length)
        return (model + mean.select(model.schema)).replace(model.select(trainable) + step)
