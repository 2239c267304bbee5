"""The journal's seam: what makes a round survive a crash by replay.

`RoundCohort.exchange` asks the journal before it asks the network, and tells it what came back. Because a
round function is replayable (see `Algorithm.run_round`), running it again after a crash returns the
journalled outcomes for the exchanges that were done and goes to the network for the first that was not.
"""

from __future__ import annotations

from typing import Protocol

from feddkd.exchange import ExchangeId, Outcome


class Journal(Protocol):
    """Remembers the exchanges of the round in progress."""

    def recall(self, exchange: ExchangeId) -> Outcome | None:
        """What this exchange returned before, or None if it has not completed."""

    def record(self, exchange: ExchangeId, outcome: Outcome) -> None:
        """Keep the outcome; durable when this returns."""


class NoJournal:
    """Remembers nothing: a crash of the server ends the run."""

    def recall(self, exchange: ExchangeId) -> Outcome | None:
        return None

    def record(self, exchange: ExchangeId, outcome: Outcome) -> None:
        """Nothing is kept."""
