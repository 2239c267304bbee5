"""Keep what a client carries from round to round: a control variate, its last local model."""

from __future__ import annotations

import logging
import re
from typing import NamedTuple

from feddkd.algorithms.site import Store
from feddkd.exchange import ExchangeId
from feddkd.tensors import Schema, Tensors

logger = logging.getLogger(__name__)

ROUNDS_KEPT = 3
"""A server that finds its newest checkpoint damaged repeats the round before the one that a client may be in: that
begins from what the client had after yet another one."""

SLOTS = tuple(str(number) for number in range(1, ROUNDS_KEPT + 1))
_LABEL = re.compile(r"(.*)/(\d+)/(\d+)/(\d+)")


class _Kept(NamedTuple):
    """What a slot holds.

    Attributes:
        first: the first round of the run that was kept.
        serial: how many were kept before this one, those that are overwritten included.
    """

    slot: str
    first: int
    round: int
    serial: int


class RoundMemory:
    """Keeps one named set of tensors in the client's state directory, where it survives a restart.

    A round that is run again must begin from the tensors before its first attempt: because it failed,
    or because the server lost what came of it. So the last `ROUNDS_KEPT` rounds are kept, each in a slot.
    Where a round is kept after a later one, the server went back to it, and the later one is of no use.

    The tensors of a round stay even if the server did not count the reply: it came too late, or the
    attempt failed and was repeated without this client. A sum over all clients at the server then
    lacks this client's change.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = name

    def recall(self, exchange: ExchangeId, schema: Schema) -> Tensors | None:
        """Load the tensors of this run's latest round before that of `exchange`, or None.

        Where those are damaged, the ones of the round before are the next best. Where there were some
        once, and none are left, the log says so.

        Raises:
            StateError: they cannot be read, or are of another model.
        """
        kept = _alive(self._kept(exchange.run_id))
        for each in reversed(kept):
            if each.round < exchange.round:
                found = self._store.load(each.slot, schema, _label(exchange.run_id, each))
                if found is not None:
                    return found
        if any(each.first < exchange.round for each in kept):
            logger.warning(
                "%s of the rounds before round %d is not known any more: this client begins without, as if it were new",
                self._name,
                exchange.round,
            )
        return None

    def keep(self, exchange: ExchangeId, tensors: Tensors) -> None:
        """Store `tensors` as this round's; they survive a crash once this returns."""
        found = self._kept(exchange.run_id)
        before = [each for each in _alive(found) if each.round < exchange.round]
        needed = {each.slot for each in before[1 - ROUNDS_KEPT :]}
        slot = next(slot for slot in self._slots if slot not in needed)
        first = min((each.first for each in found), default=exchange.round)
        serial = 1 + max((each.serial for each in found), default=0)
        kept = _Kept(slot, min(first, exchange.round), exchange.round, serial)
        self._store.save(slot, tensors, label=_label(exchange.run_id, kept))

    @property
    def _slots(self) -> tuple[str, ...]:
        return tuple(f"{self._name}-{slot}" for slot in SLOTS)

    def _kept(self, run_id: str) -> list[_Kept]:
        """What is there of a run, in the order in which it was kept."""
        found = []
        for slot in self._slots:
            label = _LABEL.fullmatch(self._store.label(slot) or "")
            if label is not None and label[1] == run_id:
                found.append(_Kept(slot, int(label[2]), int(label[3]), int(label[4])))
        return sorted(found, key=lambda kept: kept.serial)


def _alive(kept: list[_Kept]) -> list[_Kept]:
    """Leave out what was kept before a round that is not later; the rest is in the order of rounds."""
    alive: list[_Kept] = []
    for each in kept:
        alive = [*(earlier for earlier in alive if earlier.round < each.round), each]
    return alive


def _label(run_id: str, kept: _Kept) -> str:
    return f"{run_id}/{kept.first}/{kept.round}/{kept.serial}"
