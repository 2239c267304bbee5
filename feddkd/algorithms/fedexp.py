"""FedExP: the server extrapolates along the mean update, the more the clients' updates disagree.

Jhunjhunwala, Wang, Joshi: FedExP: Speeding Up Federated Averaging via Extrapolation. ICLR 2023, arXiv 2301.09604.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import Tensor

from feddkd.algorithms.base import Algorithm, Cohort, own_settings, within
from feddkd.algorithms.fedavg import FedAvgClient
from feddkd.config import AlgorithmTable, Config
from feddkd.exchange import (
    UPDATE_NORM_SQUARED,
    ExchangeKind,
    as_scalar,
    model_and,
    read_scalar,
    scalar,
)
from feddkd.registry import ALGORITHMS
from feddkd.tensors import Tensors

MAX_RATE_PER_CLIENT = 10.0


class FedExPConfig(AlgorithmTable):
    """A server step that is the longer, the more the updates disagree (arXiv 2301.09604)."""

    name: Literal["fedexp"] = "fedexp"
    epsilon: float = Field(1e-3, gt=0, description="added to the squared norm of the mean update")


class FedExPClient(FedAvgClient):
    """Uploads w_k - w_t and its squared norm over the trainable parameters."""

    def contribution(self, update: Tensors, steps: int) -> Tensors:
        norm_squared = update.select(update.schema.trainable).norm() ** 2
        return update.beside(**{UPDATE_NORM_SQUARED: as_scalar(norm_squared)})

    def metrics(self, contribution: Tensors) -> dict[str, float]:
        """Return none: the squared norm travels beside the update."""
        return {}


@ALGORITHMS.register("fedexp")
class FedExP(Algorithm):
    """x_{t+1} = x_t + lr sum_k p_k D_k,  lr = max(1, sum_k p_k ||D_k||² / (2 (||sum_k p_k D_k||² + epsilon))).

    The iterates x oscillate, so the paper evaluates the mean of the last two: that mean is this algorithm's global
    model. Clients train from x, which is what a round broadcasts; so what they hold out is evaluated on x as well.

    Clients report the norms, and the server cannot check them. For updates of equal norm that do
    not oppose each other, lr is at most half the number of clients; here lr is limited to
    `MAX_RATE_PER_CLIENT` times their number.
    """

    table = FedExPConfig
    no_piggyback = "the model that it broadcasts is not the one that a round returns"
    client_side = FedExPClient
    broadcasts_model = False

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._epsilon = own_settings(config, FedExPConfig).epsilon
        self._iterate: dict[str, Tensor] = {}

    @classmethod
    def exchanges(cls, config: Config) -> Mapping[str, ExchangeKind]:
        return {"local_train": ExchangeKind(reply=model_and(**{UPDATE_NORM_SQUARED: scalar}))}

    def run_round(self, cohort: Cohort, model: Tensors) -> Tensors:
        trainable = model.schema.trainable
        iterate = model.replace(self._iterate)
        mean = cohort.exchange("local_train", iterate)
        received = cohort.sent
        update = mean.select(trainable)
        norm_squared = read_scalar(mean, UPDATE_NORM_SQUARED)
        server_lr = max(1.0, norm_squared / (2 * (update.norm() ** 2 + self._epsilon)))
        limit = MAX_RATE_PER_CLIENT * len(cohort.weights)
        server_lr = within("FedExP's learning rate", server_lr, 1.0, limit)
        following = received.select(trainable) + update.scaled(server_lr)
        self._iterate = dict(following)
        halfway = received.select(trainable).scaled(0.5) + following.scaled(0.5)
        return (received + mean.select(model.schema)).replace(halfway)

    def state_dict(self) -> Mapping[str, Tensor]:
        return dict(self._iterate)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._iterate = dict(state)
