"""Says how many exchanges a round has, for everything that shows how far a round is."""

from __future__ import annotations

from feddkd.algorithms import ALGORITHMS
from feddkd.algorithms.feddkd import FedDKD
from feddkd.config import Config


def stepping_of(config: Config) -> type[FedDKD] | None:
    """Return the algorithm's class if its rounds take `dkd.steps` steps, else None."""
    algorithm = ALGORITHMS.get(config.algorithm.name)
    return algorithm if algorithm is not None and issubclass(algorithm, FedDKD) else None


def exchanges_a_round(config: Config) -> int | None:
    """Return how many exchanges a round has; None for a user's own algorithm, which does not say."""
    if stepping_of(config) is not None:
        return config.dkd.steps + (config.dkd.start != "previous")
    algorithm = ALGORITHMS.get(config.algorithm.name)
    return len(algorithm.exchanges(config)) if algorithm is not None else None
