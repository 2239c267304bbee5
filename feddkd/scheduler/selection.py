"""Selects the clients of a round."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from feddkd.config import SchedulerConfig
from feddkd.config.scheduler import cohort_size


def select_cohort(config: SchedulerConfig, available: Sequence[str], seed: int, round_number: int, attempt: int) -> list[str]:
    """Draw the cohort of a round from the clients that are there, in client order.

    The draw depends on the seed, the round, the attempt and the sorted ids alone. A fraction is of the
    clients available, rounded up; at least the quorum is drawn where there are so many.
    """
    clients = sorted(available)
    if config.cohort == "all":
        return clients
    count = min(max(cohort_size(config.cohort, len(clients)), config.quorum), len(clients))
    generator = np.random.default_rng([seed, round_number, attempt])
    return sorted(clients[index] for index in generator.choice(len(clients), size=count, replace=False))
