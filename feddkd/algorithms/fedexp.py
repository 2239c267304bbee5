"""FedExP: the server extrapolates along the mean update, the further the more the clients' updates disagree.

Jhunjhunwala, Wang, Joshi: FedExP: Speeding Up Federated Averaging via Extrapolation. ICLR 2023, arXiv 2301.09604.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from feddkd.algorithms.base import Algorithm, Cohort, own_settings
from feddkd.algorithms.fedavg import FedAvgClient
from feddkd.config import Config, FedExPConfig
from feddkd.exchange import ExchangeKind, as_scalar, model_and, read_scalar, scalar
from feddkd.tensors import Tensors


class FedExPClient(FedAvgClient):
    """Uploads w_k - w_t and its squared norm over the trainable parameters."""

    def contribution(self, update: Tensors, steps: int) -> Tensors:
        return update.beside(norm_squared=as_scalar(update.select(update.schema.trainable).norm() ** 2))


class FedExP(Algorithm):
    """x_{t+1} = x_t + lr sum_k p_k D_k,  lr = max(1, sum_k p_k ||D_k||² / (2 (||sum_k p_k D_k||² + epsilon))).

    The iterates x oscillate, so the paper evaluates the mean of the last two: that mean is this algorithm's global
    model. Clients train from x, which is what a round broadcasts; so what they hold out is evaluated on x as well.
    """

    exchanges = {"local_train": ExchangeKind(reply=model_and(norm_squared=scalar))}
    client_half = FedExPClient

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._epsilon = own_settings(config, FedExPConfig).epsilon
        self._iterate: dict[str, Tensor] = {}

    def run_round(self, cohort: Cohort, model: Tensors) -> Tensors:
        trainable = model.schema.trainable
        iterate = model.replace(self._iterate)
        mean = cohort.exchange("local_train", iterate)
        update = mean.select(trainable)
        norm_squared = read_scalar(mean, "norm_squared")
        server_lr = max(1.0, norm_squared / (2 * (update.norm() ** 2 + self._epsilon)))
        following = iterate.select(trainable) + update.scaled(server_lr)
        self._iterate = dict(following)
        halfway = iterate.select(trainable).scaled(0.5) + following.scaled(0.5)
        return (iterate + mean.select(model.schema)).replace(halfway)

    def state_dict(self) -> dict[str, Any]:
        return dict(self._iterate)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._iterate = dict(state)
