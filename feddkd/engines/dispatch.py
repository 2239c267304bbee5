"""Decides which host computes next for which client."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import NamedTuple

FEW = 1
"""So many clients are left to wait for their own host: to move one costs about as much."""


class Turn(NamedTuple):
    """A client whose turn it is.

    Attributes:
        held_by: another host, which has to let go of it first; None where there is none.
    """

    client: str
    held_by: int | None = None


class Dispatch:
    """Clients that wait for a host, and the host at which each of them computed last.

    A client goes where it was: its worker and its teacher are there. One that was nowhere goes to the host that asks
    first. A host that has nothing else to do takes one from the host with the most clients waiting, if they may move.
    """

    def __init__(self, *, movable: bool) -> None:
        """Begin with nobody waiting.

        Args:
            movable: a client's state can go from one host to another.
        """
        self._movable = movable
        self._homes: dict[str, int] = {}
        self._new: deque[str] = deque()
        self._waiting: dict[int, deque[str]] = {}

    def add(self, clients: Collection[str]) -> None:
        """Let clients wait, in this order; none of them is waiting already."""
        for client in clients:
            home = self._homes.get(client)
            queue = self._new if home is None else self._waiting.setdefault(home, deque())
            queue.append(client)

    def next(self, host: int) -> Turn | None:
        """Return the client that a host computes for next; from now on it is that host's."""
        mine = self._waiting.get(host)
        if mine:
            return Turn(mine.popleft())
        if self._new:
            return self._moved(self._new.popleft(), host)
        longest = max(self._waiting, key=lambda other: len(self._waiting[other]), default=None)
        if longest is None or not self._movable or len(self._waiting[longest]) <= FEW:
            return None
        return self._moved(self._waiting[longest].pop(), host)

    def _moved(self, client: str, host: int) -> Turn:
        before = self._homes.get(client)
        self._homes[client] = host
        return Turn(client, before)

    def home(self, client: str) -> int | None:
        """Return the host at which a client computed last, if that is still there."""
        return self._homes.get(client)

    def lose(self, host: int) -> None:
        """Take in that a host is gone: its clients are nowhere, and those that wait go to any other."""
        self._new.extend(self._waiting.pop(host, ()))
        self._homes = {client: home for client, home in self._homes.items() if home != host}

    def withdraw(self, clients: Collection[str]) -> None:
        """Let clients wait no more."""
        gone = set(clients)
        self._new = deque(client for client in self._new if client not in gone)
        self._waiting = {host: deque(client for client in queue if client not in gone) for host, queue in self._waiting.items()}
