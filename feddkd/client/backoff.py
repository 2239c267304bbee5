"""How long to wait before the next try."""

from __future__ import annotations

import random

FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 10.0


class Backoff:
    """Delays that double from 0.2 s to 10 s, each shortened at random so that clients do not return in step."""

    def __init__(self) -> None:
        self.attempts = 0

    def next_delay_s(self) -> float:
        """Seconds to wait before the next try."""
        ceiling: float = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2**self.attempts)
        self.attempts += 1
        return ceiling * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Start over after a success."""
        self.attempts = 0
