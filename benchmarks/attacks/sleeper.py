"""Is honest first, and attacks later.

A rule that remembers what a client sent before trusts a client that was honest for long enough.
"""

from __future__ import annotations

from attacks.base import Seen
from attacks.scaling import TimesMinus10
from feddkd.exchange import Reply

HONEST_SHARE = 1 / 3
"""Of the rounds."""


class Sleeper(TimesMinus10):
    """Is honest for the first third of the rounds, and then sends -10 times its contribution."""

    title = "honest for a third, then times -10"
    paper = ""

    def reply(self, seen: Seen) -> Reply:
        if seen.task.id.round <= seen.rounds * HONEST_SHARE:
            return seen.reply
        return super().reply(seen)
