"""What a client keeps between exchanges so that fewer bytes travel: models that steps lead from, and what codecs left out."""

from __future__ import annotations

from feddkd.compression.replica import Replica
from feddkd.tensors import Schema, Tensors


class Held:
    """Models and leftovers of one client, in memory: a client that is started again receives a whole model.

    Attributes:
        replicas: what was received last, by its schema.
    """

    def __init__(self) -> None:
        self.replicas: dict[Schema, Replica] = {}
        self._leftovers: dict[str, Tensors] = {}
        self._unsettled: tuple[str, Tensors] | None = None
        self._attempt = (0, 0)
        self._at_start: dict[str, Tensors] = {}

    def enter(self, round_number: int, attempt: int) -> None:
        """Take in which attempt at a round begins or goes on: another one starts from what was left before the round.

        A reply of which nothing was heard did not count, so a later receipt must not settle it.
        """
        self._unsettled = None
        if round_number != self._attempt[0]:
            self._at_start = dict(self._leftovers)
        elif attempt != self._attempt[1]:
            self._leftovers = dict(self._at_start)
        self._attempt = round_number, attempt

    def with_leftover(self, exchange: str, contribution: Tensors) -> Tensors:
        """Add to a contribution what the codec left out of the last one to an exchange of that name."""
        leftover = self._leftovers.get(exchange)
        if leftover is None or leftover.schema != contribution.schema:
            return contribution
        return contribution.replace({name: contribution[name] + leftover[name] for name in _lossy(contribution)})

    def leave(self, exchange: str, contribution: Tensors, decoded: Tensors) -> None:
        """Note what is left of `contribution` if the server counts `decoded`."""
        self._unsettled = exchange, contribution - decoded

    def settle(self, *, counted: bool) -> None:
        """Keep what the last code left out if it was counted; if not, what was left before stays."""
        if self._unsettled is not None and counted:
            exchange, leftover = self._unsettled
            self._leftovers[exchange] = leftover
        self._unsettled = None


def _lossy(tensors: Tensors) -> list[str]:
    return [spec.name for spec in tensors.schema.specs if spec.lossy]
