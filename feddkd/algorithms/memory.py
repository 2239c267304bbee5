"""Keep what a client carries from round to round: a control variate, its last local model."""

from __future__ import annotations

from feddkd.algorithms.site import Store
from feddkd.exchange import ExchangeId
from feddkd.tensors import Schema, Tensors

SLOTS = ("even", "odd")


class RoundMemory:
    """Keeps one named set of tensors in the client's state directory, where it survives a restart.

    A round that failed is run again, and must begin from the tensors before its first attempt. So
    the last two rounds are kept, in two slots, and an attempt overwrites only the slot of its own
    round.

    The tensors of a round stay even if the server did not count the reply: it came too late, or the
    attempt failed and was repeated without this client. A sum over all clients at the server then
    lacks this client's change.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = name

    def recall(self, exchange: ExchangeId, schema: Schema) -> Tensors | None:
        """Load the tensors of this run's latest round before that of `exchange`, or None.

        Where those are damaged, the ones of the round before are the next best.

        Raises:
            StateError: they cannot be read, or are of another model.
        """
        for slot in self._slots_before(exchange):
            found = self._store.load(slot, schema, self._store.label(slot) or "")
            if found is not None:
                return found
        return None

    def keep(self, exchange: ExchangeId, tensors: Tensors) -> None:
        """Store `tensors` as this round's; they survive a crash once this returns."""
        before = self._slots_before(exchange)[:1]
        slot = next(slot for slot in self._slots if slot not in before)
        self._store.save(slot, tensors, label=f"{exchange.run_id}/{exchange.round}")

    @property
    def _slots(self) -> tuple[str, ...]:
        return tuple(f"{self._name}-{slot}" for slot in SLOTS)

    def _slots_before(self, exchange: ExchangeId) -> list[str]:
        """The slots of earlier rounds of this run, the latest first."""
        rounds: dict[int, str] = {}
        for slot in self._slots:
            run_id, _, number = (self._store.label(slot) or "").rpartition("/")
            if run_id == exchange.run_id and int(number) < exchange.round:
                rounds[int(number)] = slot
        return [rounds[number] for number in sorted(rounds, reverse=True)]
