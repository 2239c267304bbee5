"""Holds what a client needs for codecs between exchanges: the base models of steps, and leftovers."""

from __future__ import annotations

import dataclasses
from typing import Self

from feddkd.client.leftovers import Leftovers
from feddkd.client.replicas import Place, Replicas
from feddkd.client.state_dir import StateDir
from feddkd.exchange import ExchangeId
from feddkd.tensors import Tensors

_NOWHERE = ExchangeId("", 0, 0, "", 0)


class Held:
    """Models and leftovers of one client in one run.

    The models are in memory, unless they are put away: a client that is started again receives a whole one. What codecs
    left out survives it, where there is a state directory (`Leftovers`).

    Attributes:
        replicas: what was received last, by its schema.
        leftovers: of the replies that counted.
        unsettled: what the code of the reply in hand left out, if that is added to the next contribution
            should the reply count.
    """

    def __init__(self, leftovers: Leftovers | None = None, replicas: Replicas | None = None) -> None:
        """Begin with nothing, or with what an earlier process of the client had left over.

        Args:
            leftovers: where that is found; by default they are kept in memory.
            replicas: what was put away; by default nothing.
        """
        self.replicas = replicas if replicas is not None else Replicas()
        self.leftovers = leftovers if leftovers is not None else Leftovers()
        self.unsettled: Tensors | None = None
        self._exchange = _NOWHERE

    @classmethod
    def of_run(cls, state: StateDir | None, run_id: str) -> Self:
        """Take up what is left of a run, in a state directory if there is one. Raises StateError if it cannot be read."""
        return cls(Leftovers(state, run_id), Replicas(Place(state, run_id) if state is not None else None))

    def put_away(self) -> None:
        """Let go of the memory of everything that is found again in the state directory."""
        self.replicas.put_away()
        self.leftovers.put_away()

    def enter(self, exchange: ExchangeId) -> None:
        """Take in which exchange the client computes its reply to.

        A reply of which nothing was heard did not count, so a later receipt must not settle it.

        Raises:
            StateError: what does not count any more cannot be removed.
        """
        self.unsettled, self._exchange = None, exchange
        self.leftovers.enter(exchange)

    def resume(self, exchange: ExchangeId, leftover: Tensors) -> None:
        """Take up the reply of an earlier process, which left this over and is not settled."""
        self.unsettled, self._exchange = leftover, exchange

    def with_leftover(self, exchange: str, contribution: Tensors) -> Tensors:
        """Add to a contribution what the codec left out of the last one to an exchange of that name.

        Raises:
            StateError: what an earlier process left cannot be read.
        """
        leftover = self.leftovers.find(exchange)
        if leftover is None or leftover.schema != contribution.schema:
            return contribution
        return contribution.replace({name: contribution[name] + leftover[name] for name in _lossy(contribution)})

    def leave(self, exchange: str, contribution: Tensors, decoded: Tensors) -> None:
        """Note what is left of `contribution` if the server counts `decoded`."""
        self._exchange = dataclasses.replace(self._exchange, name=exchange)
        self.unsettled = contribution - decoded

    def settle(self, *, counted: bool) -> None:
        """Keep what the last code left out if it was counted; if not, what was left before stays."""
        if self.unsettled is not None and counted:
            self.leftovers.add(self._exchange, self.unsettled)
        self.unsettled = None


def _lossy(tensors: Tensors) -> list[str]:
    return [spec.name for spec in tensors.schema.specs if spec.lossy]
