"""Keeps what a live page shows of the clients: who is there, whom the run waits for, who is slow or lost."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from feddkd.scheduler.engine import Engine, client_state
from feddkd.scheduler.records import ExchangeRecord
from feddkd.scheduler.sites import COMPUTE_SECONDS, MOST_CLIENTS
from feddkd.text import printable

MOST_SHOWN = 60
"""Clients that a page lists: those that matter most; it counts the others."""

MOST_NAMES = 6
"""Names in one line of the log."""

FACTOR_OF_SLOW = 3.0
"""A client is slow where its last reply took longer than the median by this factor, and by `LEAST_SLOW_S`."""

LEAST_SLOW_S = 0.5
"""Less does not hold up a round."""

ORDER = ("lost", "working", "connected")


def some_names(clients: Collection[str]) -> str:
    """Name a few clients, and count the others."""
    names = sorted(clients)
    shown = ", ".join(names[:MOST_NAMES])
    return shown if len(names) <= MOST_NAMES else f"{shown} and {len(names) - MOST_NAMES} more"


@dataclass
class Seen:
    """What the engine said when it was asked last.

    Attributes:
        here: clients that are connected.
        awaited: clients whose reply is awaited.
        heard_s: how many seconds before that each joined client was heard.
        replies: the last exchange that each client replied to, and the seconds that this took.
    """

    here: frozenset[str] = frozenset()
    awaited: frozenset[str] = frozenset()
    heard_s: Mapping[str, float] = field(default_factory=dict)
    replies: Mapping[str, tuple[str, float]] = field(default_factory=dict)

    @property
    def lost(self) -> frozenset[str]:
        """Clients that joined and are not connected."""
        return frozenset(self.heard_s) - self.here


def look(engine: Engine) -> Seen | None:
    """Ask an engine how its clients are; None where it does not answer any more."""
    with contextlib.suppress(Exception):  # it was aborted or closed; whatever it is, the run goes on
        replies = {client: (exchange.name, seconds) for client, (exchange, seconds) in engine.last_replies().items()}
        return Seen(frozenset(engine.here()), frozenset(engine.waiting_for()), dict(engine.last_heard()), replies)
    return None


class ClientTable:
    """What is known of each client, for at most `MOST_CLIENTS` of them."""

    def __init__(self) -> None:
        self._computed: dict[str, tuple[str, float]] = {}
        self._misses: dict[str, int] = {}
        self._reasons: dict[str, str] = {}

    def add(self, record: ExchangeRecord) -> None:
        """Take in who computed for how long, and who is missing."""
        for client, seconds in record.by_client.get(COMPUTE_SECONDS, {}).items():
            _put(self._computed, client, (record.id.name, seconds))
            self._reasons.pop(client, None)
        for client, reason in record.clients_missing.items():
            _put(self._misses, client, self._misses.get(client, 0) + 1)
            _put(self._reasons, client, printable(reason))

    def shown(self, seen: Seen) -> dict[str, Any]:
        """Lay out the counts, and the clients that matter: lost and slow ones, those that are awaited, then the others."""
        times = {**self._computed, **seen.replies}
        slow = _slow(times)
        rows = [self._row(client, seen, times, client in slow) for client in seen.here | seen.lost]
        rows.sort(key=lambda row: (ORDER.index(row["state"]), not row["slow"], -row["misses"], row["id"]))
        working = len(seen.awaited & seen.here)
        return {
            "connected": len(seen.here) - working,
            "working": working,
            "lost": len(seen.lost),
            "rows": rows[:MOST_SHOWN],
            "more": max(len(rows) - MOST_SHOWN, 0),
        }

    def _row(self, client: str, seen: Seen, times: Mapping[str, tuple[str, float]], is_slow: bool) -> dict[str, Any]:
        return {
            "id": client,
            "state": client_state(client, seen.here, seen.awaited),
            "seconds": times[client][1] if client in times else None,
            "slow": is_slow,
            "misses": self._misses.get(client, 0),
            "reason": self._reasons.get(client, ""),
            "heard_s": round(seen.heard_s.get(client, 0.0)) if client in seen.lost else None,
        }


def _slow(times: Mapping[str, tuple[str, float]]) -> frozenset[str]:
    """Return the clients that took much longer than the median of those with the same last exchange."""
    found: set[str] = set()
    for name in {name for name, _ in times.values()}:
        of_name = {client: seconds for client, (other, seconds) in times.items() if other == name}
        median = statistics.median(of_name.values())
        limit = max(FACTOR_OF_SLOW * median, median + LEAST_SLOW_S)
        found |= {client for client, seconds in of_name.items() if seconds > limit}
    return frozenset(found)


def _put(values: dict[str, Any], client: str, value: Any) -> None:
    """Keep a client's value; forget the one that was heard longest ago if there are too many."""
    values.pop(client, None)
    values[client] = value
    if len(values) > MOST_CLIENTS:
        del values[next(iter(values))]
