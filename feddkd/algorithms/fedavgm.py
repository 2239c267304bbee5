"""FedAvgM: server momentum on the mean update.

Hsu, Qi, Brown: Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification.
arXiv 1909.06335, 2019.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import Tensor

from feddkd.algorithms.base import Cohort, own_settings
from feddkd.algorithms.fedavg import FedAvg
from feddkd.config import AlgorithmTable, Config
from feddkd.registry import ALGORITHMS
from feddkd.tensors import Tensors


class FedAvgMConfig(AlgorithmTable):
    """Server momentum on the mean update (arXiv 1909.06335)."""

    name: Literal["fedavgm"] = "fedavgm"
    server_lr: float = Field(1.0, gt=0, description="learning rate of the server")
    server_momentum: float = Field(0.9, ge=0, lt=1, description="momentum of the server")
    nesterov: bool = Field(False, description="look ahead along the momentum")


@ALGORITHMS.register("fedavgm")
class FedAvgM(FedAvg):
    """m <- beta m + sum_k p_k (w_k - w_t); w_{t+1} = w_t + lr m, or w_t + lr (mean update + beta m) with Nesterov.

    Buffers follow the mean update. With beta = 0 and lr = 1 it is FedAvg.
    """

    table = FedAvgMConfig

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._settings = own_settings(config, FedAvgMConfig)
        self._momentum: dict[str, Tensor] = {}

    def run_round(self, cohort: Cohort, model: Tensors) -> Tensors:
        update, trainable = cohort.exchange("local_train", model), model.schema.trainable
        received = cohort.sent
        mean, beta = update.select(trainable), self._settings.server_momentum
        momentum = mean + Tensors.copy_of(trainable, self._momentum).scaled(beta) if self._momentum else mean
        self._momentum = dict(momentum)
        direction = mean + momentum.scaled(beta) if self._settings.nesterov else momentum
        return (received + update).replace(received.select(trainable) + direction.scaled(self._settings.server_lr))

    def state_dict(self) -> Mapping[str, Tensor]:
        return dict(self._momentum)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._momentum = dict(state)
