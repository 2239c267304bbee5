"""FedAdagrad, FedAdam and FedYogi: the mean update as the gradient of an adaptive optimizer on the server.

Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan: Adaptive Federated Optimization. ICLR 2021,
arXiv 2003.00295.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from feddkd.algorithms.base import Cohort, own_settings
from feddkd.algorithms.fedavg import FedAvg
from feddkd.config import AlgorithmTable, Config
from feddkd.registry import ALGORITHMS
from feddkd.tensors import Tensors


class _FedOptConfig(AlgorithmTable):
    server_lr: float = Field(0.01, gt=0, description="learning rate of the server")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    tau: float = Field(1e-3, gt=0, description="adaptivity: added to the root of the second moment")


class FedAdagradConfig(_FedOptConfig):
    """Adagrad on the server (arXiv 2003.00295)."""

    name: Literal["fedadagrad"] = "fedadagrad"
    beta1: float = Field(0.0, ge=0, lt=1, description="decay of the first moment")


class FedAdamConfig(_FedOptConfig):
    """Adam on the server (arXiv 2003.00295)."""

    name: Literal["fedadam"] = "fedadam"
    beta2: float = Field(0.99, ge=0, lt=1, description="decay of the second moment")


class FedYogiConfig(_FedOptConfig):
    """Yogi on the server (arXiv 2003.00295)."""

    name: Literal["fedyogi"] = "fedyogi"
    beta2: float = Field(0.99, ge=0, lt=1, description="decay of the second moment")


class _FedOpt(FedAvg):
    """With D = sum_k p_k (w_k - w_t):  m <- b1 m + (1 - b1) D;  v <- as below;  w_{t+1} = w_t + lr m / (sqrt(v) + tau).

    As in the paper's algorithm 2, moments are not corrected for their start at m = 0 and v = tau². Buffers follow D.
    """

    table: ClassVar[type[FedAdagradConfig | FedAdamConfig | FedYogiConfig]]

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._settings = own_settings(config, self.table)
        self._state: dict[str, dict[str, Tensor]] = {}

    @abstractmethod
    def second_moment(self, v: Tensor, squared_update: Tensor) -> Tensor:
        """Compute the new v from the old one and D², element by element."""

    def run_round(self, cohort: Cohort, model: Tensors) -> Tensors:
        update = cohort.exchange("local_train", model)
        received = cohort.sent
        moved = {}
        for name in model.schema.trainable.by_name:
            moved[name] = received[name] + self._step(name, update[name])
        return (received + update).replace(moved)

    def _step(self, name: str, update: Tensor) -> Tensor:
        settings = self._settings
        start = {"m": torch.zeros_like(update), "v": torch.full_like(update, settings.tau**2)}
        state = self._state.get(name, start)
        m = settings.beta1 * state["m"] + (1 - settings.beta1) * update
        v = self.second_moment(state["v"], update.square())
        self._state[name] = {"m": m, "v": v}
        return settings.server_lr * m / (v.sqrt() + settings.tau)

    def state_dict(self) -> Mapping[str, Tensor]:
        return {f"{moment}/{name}": value for name, state in self._state.items() for moment, value in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._state = {}
        for path, value in state.items():
            moment, _, name = path.partition("/")
            self._state.setdefault(name, {})[moment] = value


@ALGORITHMS.register("fedadagrad")
class FedAdagrad(_FedOpt):
    """v <- v + D²."""

    table = FedAdagradConfig

    def second_moment(self, v: Tensor, squared_update: Tensor) -> Tensor:
        return v + squared_update


@ALGORITHMS.register("fedadam")
class FedAdam(_FedOpt):
    """v <- b2 v + (1 - b2) D²."""

    table = FedAdamConfig

    def second_moment(self, v: Tensor, squared_update: Tensor) -> Tensor:
        assert isinstance(self._settings, FedAdamConfig)
        return self._settings.beta2 * v + (1 - self._settings.beta2) * squared_update


@ALGORITHMS.register("fedyogi")
class FedYogi(_FedOpt):
    """v <- v - (1 - b2) D² sign(v - D²)."""

    table = FedYogiConfig

    def second_moment(self, v: Tensor, squared_update: Tensor) -> Tensor:
        assert isinstance(self._settings, FedYogiConfig)
        return v - (1 - self._settings.beta2) * squared_update * torch.sign(v - squared_update)
