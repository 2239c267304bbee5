"""Counts in which rounds each client took part, and when."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Presence:
    """When a client took part in a run.

    Attributes:
        rounds: whose first exchange it replied to.
        first_s: seconds since 1970 when the first of these exchanges was done, by the server's clock.
        last_s: likewise of the last one.
    """

    rounds: int
    first_s: float
    last_s: float


class Attendance:
    """What is known of each client that replied, by id."""

    def __init__(self) -> None:
        self.known: dict[str, Presence] = {}
        self._last_round: dict[str, int] = {}

    def see(self, round_number: int, clients: Iterable[str], time_s: float) -> None:
        """Take in who replied to the first exchange of a round; a round that is repeated counts once.

        Args:
            time_s: seconds since 1970.
        """
        for client in clients:
            before = self.known.get(client, Presence(0, time_s, time_s))
            is_new = self._last_round.get(client) != round_number
            self._last_round[client] = round_number
            self.known[client] = Presence(before.rounds + is_new, before.first_s, time_s)
