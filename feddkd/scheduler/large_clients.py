"""Warns about clients whose weight dominates every mean."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

from feddkd.exchange import ExampleCounts
from feddkd.scheduler.plan import ExchangePlan

logger = logging.getLogger(__name__)

LARGE_SHARE = 0.5
"""A client with more than this share of the weight decides every mean."""

TIMES_ITS_PART = 1.5
"""Of two clients of about the same size, one always has more than half: a large one has much more than its part."""


class LargeClients:
    """Warns once about each client that has most of the weight, because clients report their own weight."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def warn(self, plan: ExchangePlan, available: Mapping[str, ExampleCounts]) -> None:
        """Look at the clients that a round can draw from.

        With three clients or more, more than half of the weight is large; with two, more than three quarters.
        """
        for name, kind in plan.kinds.items():
            weights = {client: plan.weight(name, counts) for client, counts in available.items()}
            total = math.fsum(weights.values())
            large = max(LARGE_SHARE, TIMES_ITS_PART / len(available)) * total
            for client, weight in weights.items():
                if len(available) > 1 and weight > large and client not in self._known:
                    self._known.add(client)
                    claimed = kind.examples(available[client])
                    logger.warning("%s claims %d examples, %.0f %% of all", client, claimed, 100 * weight / total)
