"""Warns of clients that an exchange put in doubt, when it happens: what only reads a journal says nothing of old doubts."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from feddkd.exchange import ExchangeId
from feddkd.log_events import about
from feddkd.scheduler.events import Event, ExchangeDone
from feddkd.scheduler.sites import Doubt
from feddkd.scheduler.state import RunState

logger = logging.getLogger(__name__)


class DoubtLog:
    """Compares the doubts of a run before and after an event."""

    def __init__(self, state: RunState) -> None:
        """Take the doubts that the run has as known."""
        self._state = state
        self._outliers = set(state.outliers)
        self._labels = set(state.label_doubts.found)

    def warn(self, event: Event) -> None:
        """Log the doubts that came with an event."""
        if not isinstance(event, ExchangeDone):
            return
        for client in sorted(self._state.outliers.keys() - self._outliers):
            _warn_of_contributions(client, event.record.id, event.record.outliers)
        for client in sorted(self._state.label_doubts.found.keys() - self._labels):
            _warn_of_labels(client, self._state.label_doubts.found[client])
        self._outliers, self._labels = set(self._state.outliers), set(self._state.label_doubts.found)


def _warn_of_contributions(client: str, exchange: ExchangeId, running: Mapping[str, int]) -> None:
    message = "%s: the contributions of %s stood out in %d exchanges in a row: far longer than those of others, or far from them"
    found = about("outlier_named", client=client, exchange=exchange.name, round=exchange.round)
    logger.warning(message, exchange, client, running[client], extra=found)


def _warn_of_labels(client: str, doubt: Doubt) -> None:
    logger.warning(
        "the labels of %s may be wrong: its teacher contradicts %.0f %% of them, the median site's %.0f %% (round %d)",
        client,
        100 * doubt.disagreement,
        100 * doubt.median,
        doubt.round,
        extra=about("labels_in_doubt", client=client, round=doubt.round, disagreement=doubt.disagreement, median=doubt.median),
    )
