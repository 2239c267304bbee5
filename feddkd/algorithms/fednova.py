"""FedNova: updates averaged per local step, so clients that take more steps do not weigh more.

Wang, Liu, Liang, Joshi, Poor: Tackling the Objective Inconsistency Problem in Heterogeneous Federated
Optimization. NeurIPS 2020, arXiv 2007.07481.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from feddkd.algorithms.base import Algorithm, Cohort, within
from feddkd.algorithms.fedavg import FedAvgClient
from feddkd.algorithms.local_training import effective_steps, local_steps
from feddkd.config import AlgorithmTable, Config
from feddkd.exchange import ExchangeKind, as_scalar, model_and, read_scalar, scalar
from feddkd.registry import ALGORITHMS
from feddkd.tensors import Tensors

MOST_EXAMPLES = 1_000_000
"""The examples of the largest client, where weights do not say how many it has."""


class FedNovaConfig(AlgorithmTable):
    """Updates averaged per local step, for clients that take different numbers of them (arXiv 2007.07481)."""

    name: Literal["fednova"] = "fednova"


class FedNovaClient(FedAvgClient):
    """Uploads (w_k - w_t) / a_k and a_k, the length of its local steps (`effective_steps`); buffers are not divided."""

    def contribution(self, update: Tensors, steps: int) -> Tensors:
        length = effective_steps(steps, self.site.config.training.momentum)
        per_step = update.select(update.schema.trainable).scaled(1 / length)
        return update.replace(per_step).beside(effective_steps=as_scalar(length))


@ALGORITHMS.register("fednova")
class FedNova(Algorithm):
    """w_{t+1} = w_t + (sum_k p_k a_k) sum_k p_k (w_k - w_t) / a_k.

    Clients report the lengths a_k, and the server cannot check them. Their mean is limited to what
    the client with the most examples takes, and is at least one step. With uniform weights the
    server does not know how many examples that is; `MOST_EXAMPLES` stands in.
    """

    table = FedNovaConfig
    client_side = FedNovaClient

    @classmethod
    def exchanges(cls, config: Config) -> Mapping[str, ExchangeKind]:
        return {"local_train": ExchangeKind(reply=model_and(effective_steps=scalar))}

    def run_round(self, cohort: Cohort, model: Tensors) -> Tensors:
        mean = cohort.exchange("local_train", model)
        received = cohort.sent
        trainable = model.schema.trainable
        reported = read_scalar(mean, "effective_steps")
        length = within("effective_steps", reported, 1.0, self._longest(cohort))
        step = mean.select(trainable).scaled(length)
        return (received + mean.select(model.schema)).replace(received.select(trainable) + step)

    def _longest(self, cohort: Cohort) -> float:
        """Compute the effective steps of the client with the most examples."""
        training, known = self.config.training, self.config.scheduler.weights == "examples"
        steps = local_steps(training, cohort.most_examples if known else MOST_EXAMPLES)
        return (1 + 1e-9) * effective_steps(steps, training.momentum)  # a mean may be rounded up
