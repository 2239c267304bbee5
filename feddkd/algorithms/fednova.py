"""FedNova: updates averaged per local step, so clients that take more steps do not weigh more.

Wang, Liu, Liang, Joshi, Poor: Tackling the Objective Inconsistency Problem in Heterogeneous Federated
Optimization. NeurIPS 2020, arXiv 2007.07481.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from feddkd.algorithms.base import Algorithm, Cohort, within
from feddkd.algorithms.fedavg import FedAvgClient
from feddkd.algorithms.learning_rate import LearningRate
from feddkd.algorithms.local_optimizer import require_sgd
from feddkd.algorithms.local_training import local_steps
from feddkd.config import AlgorithmTable, Config, TrainingConfig
from feddkd.errors import ConfigError
from feddkd.exchange import ExchangeKind, as_scalar, model_and, read_scalar, scalar
from feddkd.registry import ALGORITHMS
from feddkd.tensors import Tensors

MOST_EXAMPLES = 1_000_000
"""The examples of the largest client, where weights do not say how many it has."""


class FedNovaConfig(AlgorithmTable):
    """Updates averaged per local step, for clients that take different numbers of them (arXiv 2007.07481)."""

    name: Literal["fednova"] = "fednova"


class FedNovaClient(FedAvgClient):
    """Uploads (w_k - w_t) / a_k and a_k, the length of its local steps (`effective_steps`); buffers are not divided.

    a_k is in steps at the learning rate of the round, because a factor that all clients share cancels out.
    """

    def contribution(self, update: Tensors, steps: int) -> Tensors:
        length = _length(self.site.config, local_steps(self.site.config.training, len(self.site.examples)), steps)
        per_step = update.select(update.schema.trainable).scaled(1 / length)
        return update.replace(per_step).beside(effective_steps=as_scalar(length))


@ALGORITHMS.register("fednova")
class FedNova(Algorithm):
    """w_{t+1} = w_t + (sum_k p_k a_k) sum_k p_k (w_k - w_t) / a_k.

    Clients report the lengths a_k, and the server cannot check them. Their mean is limited to what
    the client with the most examples takes, and is at least the first step. With uniform weights the
    server does not know how many examples that is; `MOST_EXAMPLES` stands in.
    """

    table = FedNovaConfig
    client_side = FedNovaClient

    @classmethod
    def check_training(cls, training: TrainingConfig) -> None:
        require_sgd(training, "fednova", "it divides updates by the steps of SGD that go equally far")
        if training.has_own_schedule:
            raise ConfigError(f"training.schedule = {training.schedule!r}: fednova needs a built-in schedule, to bound what clients report")

    @classmethod
    def exchanges(cls, config: Config) -> Mapping[str, ExchangeKind]:
        return {"local_train": ExchangeKind(reply=model_and(effective_steps=scalar))}

    def run_round(self, cohort: Cohort, model: Tensors) -> Tensors:
        mean = cohort.exchange("local_train", model)
        received = cohort.sent
        trainable = model.schema.trainable
        reported = read_scalar(mean, "effective_steps")
        length = within("effective_steps", reported, *self._bounds(cohort))
        step = mean.select(trainable).scaled(length)
        return (received + mean.select(model.schema)).replace(received.select(trainable) + step)

    def _bounds(self, cohort: Cohort) -> tuple[float, float]:
        """Compute the effective steps of a client that takes one, and of the client with the most examples."""
        known = self.config.scheduler.weights == "examples"
        steps = local_steps(self.config.training, cohort.most_examples if known else MOST_EXAMPLES)
        # A mean may be rounded down or up.
        return (1 - 1e-9) * _length(self.config, steps, 1), (1 + 1e-9) * _length(self.config, steps, steps)


def _length(config: Config, steps: int, taken: int) -> float:
    """Compute a_k of a client that has taken some of the steps it planned; it is the same in every round."""
    return LearningRate(config).effective_steps(1, steps, taken)
