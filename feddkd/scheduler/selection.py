"""Which clients take part in a round."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from feddkd.config import SchedulerConfig


def select_cohort(config: SchedulerConfig, available: Sequence[str], seed: int, round_number: int, attempt: int) -> list[str]:
    """Draw the cohort of a round from the clients that are there, in client order.

    The draw depends on the seed, the round, the attempt and the sorted ids alone. A fraction is of the
    clients available, rounded up; at least `min_clients` are drawn where there are so many.
    """
    clients = sorted(available)
    if config.cohort == "all":
        return clients
    wanted = config.cohort if isinstance(config.cohort, int) else math.ceil(round(config.cohort * len(clients), 9))
    count = min(max(wanted, config.min_clients), len(clients))
    generator = np.random.default_rng([seed, round_number, attempt])
    return sorted(clients[index] for index in generator.choice(len(clients), size=count, replace=False))
