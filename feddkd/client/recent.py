"""Keeps what was used last, and lets go of the rest."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")


class Recent(Generic[_K, _V]):
    """At most `capacity` values by key; the one that was used longest ago is let go. From any thread."""

    def __init__(self, capacity: int | None, let_go: Callable[[_V], None] = lambda _: None) -> None:
        """Begin with none.

        Args:
            capacity: most values, at least 1; None for no bound.
            let_go: called with each value that has to make room.
        """
        self._capacity = capacity
        self._let_go = let_go
        self._values: OrderedDict[_K, _V] = OrderedDict()
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._values)

    def use(self, key: _K, make: Callable[[], _V]) -> _V:
        """Return the value of a key, made now if it is not here; what `make` raises is raised here."""
        with self._lock:
            if key not in self._values:
                self._values[key] = make()
            self._values.move_to_end(key)
            if self._capacity is not None and len(self._values) > self._capacity:
                _, oldest = self._values.popitem(last=False)
                self._let_go(oldest)
            return self._values[key]

    def find(self, key: _K) -> _V | None:
        """Return the value of a key, if it is here."""
        with self._lock:
            return self._values.get(key)

    def drop(self, key: _K) -> _V | None:
        """Take the value of a key out; None if there is none."""
        with self._lock:
            return self._values.pop(key, None)
