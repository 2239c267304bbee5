"""Limits how often something may happen."""

from __future__ import annotations

from collections import OrderedDict


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


class TokenBuckets:
    """A bucket for each name, of those that were seen last."""

    def __init__(self, burst: int, per_second: float, remembered: int) -> None:
        """Args:
        remembered: names whose buckets are kept.
        """
        self._burst = burst
        self._per_second = per_second
        self._remembered = remembered
        self._of: OrderedDict[str, TokenBucket] = OrderedDict()

    def take(self, name: str, now: float) -> bool:
        """Take one token of a name; returns False if there is none."""
        bucket = self._of.pop(name, None) or TokenBucket(self._burst, self._per_second, now)
        self._of[name] = bucket
        if len(self._of) > self._remembered:
            self._of.popitem(last=False)
        return bucket.take(now)
