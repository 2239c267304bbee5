"""Find and build algorithms: one file for each paper holds its server side and its client side.

An algorithm whose whole idea is a local loss is FedAvg with a `LocalObjective`, and any algorithm that leaves the
local loss alone can train with it: `algorithm.local_objective`.
"""

from __future__ import annotations

from collections.abc import Callable

from feddkd.algorithms.base import Algorithm, own_settings
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
from feddkd.algorithms.local_training import check_batch_size
from feddkd.algorithms.moon import MOON, ModelContrast
from feddkd.algorithms.scaffold import SCAFFOLD
from feddkd.algorithms.site import LocalObjective, Site
from feddkd.config import Config, CrossEntropyConfig, Table
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
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    algorithm = load_object(name, "algorithm.name")
    if not (isinstance(algorithm, type) and issubclass(algorithm, Algorithm)):
        raise ConfigError(f"algorithm.name = {name!r}: not a subclass of feddkd.algorithms.base.Algorithm")
    return algorithm


def build(config: Config) -> Algorithm:
    """Build the server side of the configured algorithm.

    Raises:
        ConfigError: something that it names is not there, or a setting is wrong, also one that only
            clients read.
    """
    objective_factory(config)
    return find(config.algorithm.name)(config)


def objective_factory(config: Config) -> Callable[[Site], LocalObjective]:
    """Choose what sites minimise in local training: the algorithm's or the configured objective.

    Returns:
        Builds the objective of a site; raises ConfigError if the site's network cannot train with
        these settings.

    Raises:
        ConfigError: `algorithm.local_objective` names something that is not there, or the algorithm
            has an objective that does not go with these settings.
    """
    settings = getattr(config.algorithm, "local_objective", CrossEntropyConfig())
    fixed = find(config.algorithm.name).local_objective
    if fixed is not None:
        if settings != CrossEntropyConfig():
            name = config.algorithm.name
            raise ConfigError(f"algorithm.local_objective: {name} has an objective of its own")
        return _builder(fixed, own_settings(config, fixed.table))
    objective = OBJECTIVES.get(settings.name)
    if objective is None:
        objective = load_object(settings.name, "algorithm.local_objective.name")
        if not (isinstance(objective, type) and issubclass(objective, LocalObjective)):
            key = f"algorithm.local_objective.name = {settings.name!r}"
            raise ConfigError(f"{key}: not a subclass of feddkd.algorithms.site.LocalObjective")
    return _builder(objective, settings)


def _builder(objective: type[LocalObjective], settings: Table) -> Callable[[Site], LocalObjective]:
    def build_objective(site: Site) -> LocalObjective:
        check_batch_size(site)
        return objective(site, settings)

    return build_objective
