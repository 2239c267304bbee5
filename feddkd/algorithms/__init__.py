"""One file for each paper, server half and client half side by side; `find` looks an algorithm up by name."""

from __future__ import annotations

from feddkd.algorithms.base import Algorithm
from feddkd.algorithms.fedavg import FedAvg
from feddkd.algorithms.fedavg_sgd import FedAvgSGD
from feddkd.algorithms.feddkd import FedDKD
from feddkd.errors import ConfigError
from feddkd.imports import load_object

ALGORITHMS: dict[str, type[Algorithm]] = {"fedavg": FedAvg, "feddkd": FedDKD, "fedavg_sgd": FedAvgSGD}


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
