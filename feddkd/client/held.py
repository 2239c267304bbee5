"""What a client keeps between exchanges so that fewer bytes travel: models that steps lead from, and what codecs left out."""

from __future__ import annotations

import dataclasses

from feddkd.client.leftovers import Leftovers
from feddkd.compression.replica import Replica
from feddkd.exchange import ExchangeId
from feddkd.tensors import Schema, Tensors

_NOWHERE = ExchangeId("", 0, 0, "", 0)


class Held:
    """Models and leftovers of one client in one run.

    The models are in memory: a client that is started again receives a whole one. What codecs left
    out survives it, where there is a state directory (`Outbox`).

    Attributes:
        replicas: what was received last, by its schema.
    """

    def __init__(self, stored: Leftovers | None = None) -> None:
        """Begin with nothing, or with what an earlier process of the client had left over.

        Args:
            stored: where that is found.
        """
        self.replicas: dict[Schema, Replica] = {}
        self._stored = stored
        self._leftovers: dict[str, Tensors] = {}
        self._unsettled: tuple[str, Tensors] | None = None
        self._exchange = _NOWHERE
        self._at_start: dict[str, Tensors] = {}

    @property
    def unsettled(self) -> Tensors | None:
        """What the code of the reply in hand left out, if that is added to the next contribution should the reply count."""
        return self._unsettled[1] if self._unsettled is not None else None

    def enter(self, exchange: ExchangeId) -> None:
        """Take in which exchange begins: another attempt at its round starts from what was left before the round.

        A reply of which nothing was heard did not count, so a later receipt must not settle it.

        Raises:
            StateError: what an earlier process left cannot be read.
        """
        self._unsettled = None
        if self._stored is not None and (exchange.round, exchange.attempt) != (self._exchange.round, self._exchange.attempt):
            self._stored.enter(exchange)
        if exchange.round != self._exchange.round:
            self._at_start = dict(self._leftovers)
        elif exchange.attempt != self._exchange.attempt:
            self._leftovers = dict(self._at_start)
        self._exchange = exchange

    def resume(self, exchange: ExchangeId, leftover: Tensors) -> None:
        """Take up the reply of an earlier process, which left this over and is not settled."""
        self.enter(exchange)
        self._unsettled = exchange.name, leftover

    def with_leftover(self, exchange: str, contribution: Tensors) -> Tensors:
        """Add to a contribution what the codec left out of the last one to an exchange of that name.

        Raises:
            StateError: what an earlier process left cannot be read.
        """
        leftover = self._leftovers.get(exchange)
        if leftover is None and self._stored is not None:
            leftover = self._stored.find(dataclasses.replace(self._exchange, name=exchange))
        if leftover is None or leftover.schema != contribution.schema:
            return contribution
        self._leftovers[exchange] = leftover
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
