"""Remembers how far the contributions of each client stood out in the last exchanges.

A single contribution that is far longer than the others says little: the local training of an honest client
goes wrong now and then. A client whose contributions are longer in every exchange is another matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

WINDOW = 40
"""Exchanges of one name that are looked at: two rounds of DKD steps. Where local training went wrong at an honest
client, its gradients are long for a whole round."""

FEWEST = 3
"""Fewer contributions have no median that one of them differs from."""

MOST_CLIENTS = 1000
"""Of more clients no history is kept."""


@dataclass(frozen=True, slots=True)
class History:
    """The ratios of the last exchanges of one name; a ratio below 1 counts as 1, so nobody can make up for a long one.

    Attributes:
        exchanges: how many of them are looked at, at most `WINDOW` - 1.
        logs: the natural logarithms of each client's ratios there, the newest last; 0 where it was not there.
            Clients whose logarithms are all 0 are left out.
    """

    exchanges: int = 0
    logs: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def usual(self, client: str, ratio: float) -> float:
        """Return the geometric mean of a client's ratios, that of the exchange that is under way included."""
        total = math.fsum(self.logs.get(client, ())) + _log(ratio)
        return math.exp(total / (self.exchanges + 1))

    def after(self, ratios: Mapping[str, float]) -> History:
        """Return the history after another exchange.

        Args:
            ratios: of each client that replied.
        """
        if not ratios:
            return self
        exchanges = min(self.exchanges + 1, WINDOW - 1)
        logs = {}
        for client in sorted(self.logs.keys() | ratios.keys()):
            before = self.logs.get(client, (0.0,) * self.exchanges)
            found = (*before, _log(ratios.get(client, 1.0)))[-exchanges:]
            if any(found):
                logs[client] = found
        return History(exchanges, logs) if len(logs) <= MOST_CLIENTS else History(exchanges)


def _log(ratio: float) -> float:
    return math.log(ratio) if ratio > 1 else 0.0
