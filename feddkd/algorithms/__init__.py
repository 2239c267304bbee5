"""One file for each paper, server half and client half side by side; `find` looks an algorithm up by name.

An algorithm whose whole idea is a local loss is FedAvg with a `LocalObjective`, and any algorithm that leaves the
local loss alone can train with it: `algorithm.local_objective`.
"""

from __future__ import annotations

from collections.abc import Callable

from feddkd.algorithms.base import Algorithm
from feddkd.algorithms.fedavg import FedAvg
from feddkd.algorithms.fedavg_sgd import FedAvgSGD
from feddkd.algorithms.fedavgm import FedAvgM
from feddkd.algorithms.feddkd import FedDKD
from feddkd.algorithms.feddyn import DynamicRegularizer, FedDyn
from feddkd.algorithms.fedexp import FedExP
from feddkd.algorithms.fedmax import FedMAX, MaximumEntropy
from feddkd.algorithms.fednova import FedNova
from feddkd.algorithms.fedntd import FedNTD, NotTrueDistillation
from feddkd.algorithms.fedopt import FedAdagrad, FedAdam, FedYogi
from feddkd.algorithms.fedprox import FedProx, Proximal
from feddkd.algorithms.local_training import LocalObjective
from feddkd.algorithms.moon import MOON, ModelContrast
from feddkd.algorithms.scaffold import SCAFFOLD, ControlVariates
from feddkd.algorithms.site import Site
from feddkd.config import Config
from feddkd.errors import ConfigError
from feddkd.imports import load_object

ALGORITHMS: dict[str, type[Algorithm]] = {
    "fedavg": FedAvg,
    "feddkd": FedDKD,
    "fedavg_sgd": FedAvgSGD,
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

OBJECTIVES: dict[str, Callable[..., LocalObjective]] = {
    "cross_entropy": LocalObjective,
    "fedprox": Proximal,
    "fedntd": NotTrueDistillation,
    "fedmax": MaximumEntropy,
    "moon": ModelContrast,
    "scaffold": ControlVariates,
    "feddyn": DynamicRegularizer,
}
"""What clients minimise, by the name of a local objective or of an algorithm that brings its own."""


def find(name: str) -> type[Algorithm]:
    """The algorithm class of a built-in name or of an import path `package.module:Class`.

    Raises:
        ConfigError: there is none.
    """
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    found = load_object(name, "algorithm.name")
    if not (isinstance(found, type) and issubclass(found, Algorithm)):
        raise ConfigError(f"algorithm.name = {name!r}: not a subclass of feddkd.algorithms.base.Algorithm")
    return found


def objective_factory(config: Config) -> Callable[[Site], LocalObjective]:
    """Builds what a site minimises in local training: its algorithm's own objective, or the one that it is told to use.

    Raises:
        ConfigError: `algorithm.local_objective` names something that is not there.
    """
    settings = config.algorithm if config.algorithm.name in OBJECTIVES else getattr(config.algorithm, "local_objective", None)
    assert settings is not None
    objective = OBJECTIVES.get(settings.name)
    if objective is None:
        objective = load_object(settings.name, "algorithm.local_objective.name")
        if not (isinstance(objective, type) and issubclass(objective, LocalObjective)):
            raise ConfigError(
                f"algorithm.local_objective.name = {settings.name!r}: not a subclass of feddkd.algorithms.local_training.LocalObjective"
            )
    return lambda site: objective(site, settings)
