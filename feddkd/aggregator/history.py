"""Remembers how far the contributions of each client stood out so far.

A single contribution that is longer than the others says little: the local training of an honest client goes wrong
now and then. A client whose contributions go on being longer is another matter. What is summed up is the CUSUM
statistic of Page (Continuous Inspection Schemes, Biometrika 1954) of the logarithms of the ratios: a client that was
honest for long has no more room than one that has just come, and exchanges that it is not in change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

ContributionKind = Literal["update", "gradient"]
"""What clients contribute: the change of a trained model, or the gradient of a model that all have."""

FEWEST = 3
"""Fewer contributions have no median that one of them differs from."""

MOST_CLIENTS = 1000
"""Of more clients no history is kept."""

LEEWAY = 5.0
"""By this factor in all a client may be above the usual limit: once, or by less in several exchanges."""

_MOST_EXCESS = 2 * math.log(LEEWAY)
"""No excess grows further, so that an outlier whose contributions become usual is none soon after."""

_HEAD_START = math.log(LEEWAY) / 2
"""What a client that has not come before begins with (Lucas, Crosier: Fast Initial Response for CUSUM, Technometrics
1982): models differ least in the first rounds, and a hostile client has no room of its own in the first exchange."""

UPDATE_SHARE = 0.6
"""The limits of updates are lower than those of gradients: where the local training of an honest client goes wrong, its
update is long once, and its gradients are for all steps of a round (benchmarks/honest_lengths.py)."""


@dataclass(frozen=True, slots=True)
class LengthLimits:
    """When a client is an outlier.

    Attributes:
        usual: the ratio that a client may have in every exchange; 0 for no limit.
        single: the ratio that it may have in one; 0 for no limit.
    """

    usual: float = 0.0
    single: float = 0.0

    def of(self, contribution: ContributionKind) -> LengthLimits:
        """Return the limits of what an exchange has clients contribute."""
        share = UPDATE_SHARE if contribution == "update" else 1.0
        return LengthLimits(self.usual * share, self.single * share)

    def excess(self, before: float, ratio: float) -> float:
        """Add a ratio to an excess: max(0, before + ln(ratio / usual)); a ratio below 1 counts as 1."""
        return min(max(0.0, before + math.log(max(1.0, ratio) / self.usual)), _MOST_EXCESS) if self.usual > 0 else 0.0


@dataclass(frozen=True, slots=True)
class History:
    """How far the clients' contributions to the exchanges of one name were above the usual limit.

    Attributes:
        excess: by client; one that is not there has not come before.
    """

    excess: Mapping[str, float] = field(default_factory=dict)

    def is_outlier(self, client: str, ratio: float, limits: LengthLimits) -> bool:
        """Tell whether a client is an outlier in the exchange that is under way."""
        if 0 < limits.single < ratio:
            return True
        return limits.excess(self.excess.get(client, _HEAD_START), ratio) > math.log(LEEWAY)

    def after(self, ratios: Mapping[str, float], limits: LengthLimits) -> History:
        """Return the history after another exchange.

        Args:
            ratios: of each client that replied.
        """
        found = {client: limits.excess(self.excess.get(client, _HEAD_START), ratio) for client, ratio in ratios.items()}
        excess = dict(sorted({**self.excess, **found}.items()))
        return History(excess) if len(excess) <= MOST_CLIENTS else History()
