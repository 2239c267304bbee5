"""Limits how often something may happen."""

from __future__ import annotations


class TokenBucket:
    """Allows a burst, and then a steady rate."""

    __slots__ = ("_burst", "_per_second", "_time", "_tokens")

    def __init__(self, burst: int, per_second: float, now: float) -> None:
        self._burst = burst
        self._per_second = per_second
        self._tokens = float(burst)
        self._time = now

    def take(self, now: float) -> bool:
        """Take one token; returns False if there is none."""
        self._tokens = min(self._burst, self._tokens + (now - self._time) * self._per_second)
        self._time = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def give(self) -> None:
        """Add one token. The bucket never holds more than the burst."""
        self._tokens += 1
