"""Finds what codecs left out of earlier contributions, in a client's state directory."""

from __future__ import annotations

import hashlib
import re

from feddkd.client.kept_reply import exchange_of, read_reply
from feddkd.client.state_dir import StateDir
from feddkd.exchange import ExchangeId
from feddkd.tensors import Tensors

PREFIX = "leftover-"
SLOTS = ("even", "odd")
_PLAIN = re.compile(r"[a-z0-9_-]{1,64}")


class Leftovers:
    """The last replies of one run that counted and left something over, by the names of their exchanges.

    As `RoundMemory` does, it keeps the last two rounds, in two slots for each name: an attempt at a
    round begins from what was left before the round, and overwrites only the slot of its own round.
    """

    def __init__(self, state: StateDir, run_id: str) -> None:
        self._state = state
        self._run_id = run_id

    def enter(self, exchange: ExchangeId) -> None:
        """Remove what other attempts at this round, and other runs, left over: nothing begins from that any more.

        Raises:
            StateError: it cannot be read or removed.
        """
        for name in self._state.names(PREFIX):
            stored = exchange_of(self._state, name)
            if stored is None or not self._is_valid(stored, exchange):
                self._state.remove(name)

    def _is_valid(self, stored: ExchangeId, now: ExchangeId) -> bool:
        return stored.run_id == self._run_id and (stored.round != now.round or stored.attempt == now.attempt)

    def find(self, exchange: ExchangeId) -> Tensors | None:
        """Load what is left over from this attempt at a round, or else from the round before; None if nothing is.

        The attempt must have been entered.

        Raises:
            StateError: it cannot be read.
        """
        rounds = {stored.round: slot for slot, stored in self._stored(exchange.name).items() if stored.round <= exchange.round}
        stored_reply = read_reply(self._state, rounds[max(rounds)]) if rounds else None
        return stored_reply.reply.leftover if stored_reply is not None else None

    def slot(self, exchange: ExchangeId) -> str:
        """Return the name of the file for what is left over from an exchange. Raises StateError."""
        before = {stored.round: slot for slot, stored in self._stored(exchange.name).items() if stored.round < exchange.round}
        kept = before[max(before)] if before else None
        return next(slot for slot in _slots(exchange.name) if slot != kept)

    def _stored(self, name: str) -> dict[str, ExchangeId]:
        """What each slot holds of this run."""
        found = {slot: exchange_of(self._state, slot) for slot in _slots(name)}
        return {slot: exchange for slot, exchange in found.items() if exchange is not None and exchange.run_id == self._run_id}


def _slots(name: str) -> tuple[str, ...]:
    """Name the files of an exchange's name, which may hold what no file name can."""
    safe = name if _PLAIN.fullmatch(name) else hashlib.sha256(name.encode()).hexdigest()[:16]
    return tuple(f"{PREFIX}{safe}-{slot}" for slot in SLOTS)
