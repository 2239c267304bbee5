"""Keeps what codecs left out of the replies that counted; with a state directory, across restarts."""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass

from feddkd.algorithms.memory import ROUNDS_KEPT, SLOTS
from feddkd.client.kept_reply import exchange_of, read_reply
from feddkd.client.state_dir import StateDir
from feddkd.exchange import ExchangeId
from feddkd.tensors import Tensors

logger = logging.getLogger(__name__)

PREFIX = "leftover-"
_PLAIN = re.compile(r"[a-z0-9_-]{1,64}")


@dataclass(slots=True)
class _Leftover:
    """What one reply left over.

    Attributes:
        tensors: None where they are in the file alone.
        file: its name in the state directory; None where it is in memory alone.
    """

    exchange: ExchangeId
    tensors: Tensors | None = None
    file: str | None = None


class Leftovers:
    """The last replies of one run that counted and left something over, by the names of their exchanges.

    As `RoundMemory` does, it keeps the last `ROUNDS_KEPT` rounds, because a server may repeat a round. It
    notices that by an exchange that comes although its reply counted, or before one of its attempt and
    name whose reply counted: the replies of this round count no more, and it begins from what was left
    before it. So it does where another attempt at a round begins, or a round before the last one.
    """

    def __init__(self, state: StateDir | None = None, run_id: str = "") -> None:
        """Take in what an earlier process left over in this run; what is left of others is removed.

        Args:
            state: where it is; None keeps everything in memory.

        Raises:
            StateError: it cannot be read or removed.
        """
        self._state = state
        self._known: list[_Leftover] = []
        for name in state.names(PREFIX) if state is not None else ():
            assert state is not None
            stored = exchange_of(state, name)
            if stored is not None and stored.run_id == run_id:
                self._known.append(_Leftover(stored, file=name))
            else:
                state.remove(name)

    def enter(self, exchange: ExchangeId) -> None:
        """Take in that an exchange begins: what does not count before it is removed. Raises StateError if it cannot be."""
        repeated = any(_is_repeated_by(left.exchange, exchange) for left in self._known)
        gone = [left for left in self._known if not _is_before(left.exchange, exchange, repeated=repeated)]
        for left in gone:
            if left.file is not None and self._state is not None:
                self._state.remove(left.file)
            self._known.remove(left)
        if exchange.round > 1 and not self._known and len({left.exchange.round for left in gone}) >= ROUNDS_KEPT:
            logger.warning("leftovers of replies before round %d, if any, are lost", exchange.round)

    def find(self, name: str) -> Tensors | None:
        """Return what the last reply to an exchange of this name left over; None if nothing is. Raises StateError."""
        left = max(self._of(name), key=_position, default=None)
        if left is None:
            return None
        tensors = left.tensors
        if tensors is None and left.file is not None and self._state is not None:
            stored = read_reply(self._state, left.file)
            tensors = left.tensors = stored.reply.leftover if stored is not None else None
        return tensors

    def put_away(self) -> None:
        """Let go of the tensors that are in files."""
        for left in self._known:
            if left.file is not None:
                left.tensors = None

    def add(self, exchange: ExchangeId, leftover: Tensors) -> None:
        """Keep what a reply left over that counted; in memory, until `store` is told of its file."""
        before = sorted((left for left in self._of(exchange.name) if left.exchange.round != exchange.round), key=_position)
        for left in before:
            if left.file is not None:
                left.tensors = None  # of use only if the server goes back
        others = [left for left in self._known if left.exchange.name != exchange.name]
        self._known = [*others, *before[1 - ROUNDS_KEPT :], _Leftover(exchange, leftover)]

    def store(self, exchange: ExchangeId, file: str) -> None:
        """Make a file of the state directory, with a reply that was added, the record of what that left over. Raises StateError."""
        left = next((left for left in self._of(exchange.name) if left.exchange == exchange), None)
        if left is None or self._state is None:
            return
        used = {each.file for each in self._known}
        name = next(name for name in _files(exchange.name) if name not in used)
        self._state.rename(file, name)
        left.file = name

    def _of(self, name: str) -> list[_Leftover]:
        return [left for left in self._known if left.exchange.name == name]


def _is_repeated_by(counted: ExchangeId, now: ExchangeId) -> bool:
    """Whether an exchange shows that its round begins again, since a reply to this one counted."""
    same = (counted.round, counted.attempt, counted.name) == (now.round, now.attempt, now.name)
    return same and counted.step >= now.step


def _is_before(counted: ExchangeId, now: ExchangeId, *, repeated: bool) -> bool:
    """Whether an exchange builds on a reply that counted."""
    if counted.round == now.round:
        return counted.attempt == now.attempt and not repeated
    return counted.round < now.round


def _position(left: _Leftover) -> tuple[int, int]:
    return left.exchange.round, left.exchange.step


def _files(name: str) -> tuple[str, ...]:
    """Name the files of an exchange's name, which may hold what no file name can."""
    safe = name if _PLAIN.fullmatch(name) else hashlib.sha256(name.encode()).hexdigest()[:16]
    return tuple(f"{PREFIX}{safe}-{slot}" for slot in SLOTS)
