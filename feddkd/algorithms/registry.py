"""Find algorithms and local objectives by their name in the configuration, or by an import path."""

from __future__ import annotations

from typing import TypeVar

from feddkd.algorithms.base import Algorithm
from feddkd.algorithms.fedavg import FedAvg
from feddkd.algorithms.fedavg_sgd import FedAvgSGD
from feddkd.algorithms.fedavgm import FedAvgM
from feddkd.algorithms.feddkd import FedDKD
from feddkd.algorithms.feddyn import FedDyn
from feddkd.algorithms.fedexp import FedExP
from feddkd.algorithms.fedmax import FedMAX, MaximumEntropy
from feddkd.algorithms.fednova import FedNova
from feddkd.algorithms.fedntd import FedNTD, NotTrueDistillation
from feddkd.algorithms.fedopt import FedAdagrad, FedAdam, FedYogi
from feddkd.algorithms.fedprox import FedProx, Proximal
from feddkd.algorithms.moon import MOON, ModelContrast
from feddkd.algorithms.scaffold import SCAFFOLD
from feddkd.algorithms.self_training import SelfTraining
from feddkd.algorithms.semifl import SemiFL
from feddkd.algorithms.site import LocalObjective
from feddkd.errors import ConfigError
from feddkd.imports import load_object

Base = TypeVar("Base")

ALGORITHMS: dict[str, type[Algorithm]] = {
    "fedavg": FedAvg,
    "feddkd": FedDKD,
    "fedavg_sgd": FedAvgSGD,
    "self_training": SelfTraining,
    "semifl": SemiFL,
    "fedprox": FedProx,
    "scaffold": SCAFFOLD,
    "fednova": FedNova,
    "fedavgm": FedAvgM,
    "fedadagrad": FedAdagrad,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "feddyn": FedDyn,
    "moon": MOON,
    "fedntd": FedNTD,
    "fedmax": FedMAX,
    "fedexp": FedExP,
}

OBJECTIVES: dict[str, type[LocalObjective]] = {
    "cross_entropy": LocalObjective,
    "fedprox": Proximal,
    "fedntd": NotTrueDistillation,
    "fedmax": MaximumEntropy,
    "moon": ModelContrast,
}
"""Local objectives by their name in the configuration, `algorithm.local_objective`."""


def find(name: str) -> type[Algorithm]:
    """Find an algorithm class by its built-in name or by an import path `package.module:Class`.

    Raises:
        ConfigError: there is none.
    """
    return ALGORITHMS.get(name) or _load(name, "algorithm.name", Algorithm)  # type: ignore[type-abstract]


def find_objective(name: str) -> type[LocalObjective]:
    """Find a local objective by its built-in name or by an import path.

    Raises:
        ConfigError: there is none.
    """
    return OBJECTIVES.get(name) or _load(name, "algorithm.local_objective.name", LocalObjective)


def _load(name: str, key: str, base: type[Base]) -> type[Base]:
    """Import a subclass of `base` that the configuration names under `key`. Raises ConfigError."""
    found = load_object(name, key)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"{key} = {name!r}: not a subclass of {base.__module__}.{base.__qualname__}")
    return found
