"""Bounds the names of the metrics that clients report: each is a column of the record and a picture in the report."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable

from feddkd.algorithms.feddkd import FIRST_STEP_LOSS, LABEL_DISAGREEMENT, TEACHER_ACCURACY, TEACHER_ENTROPY, TEACHER_SCORE
from feddkd.algorithms.learning_rate import LEARNING_RATE
from feddkd.exchange import UPDATE_NORM_SQUARED, Reply
from feddkd.scheduler.cohort import DRIFT_DIVERSITY
from feddkd.traffic import CODEC_ERROR, CODEC_SECONDS

logger = logging.getLogger(__name__)

MAX_METRIC_NAMES = 128
"""Names of metrics that the clients of a run may use in all."""

OWN_METRIC_NAMES = frozenset(
    {TEACHER_ACCURACY, TEACHER_SCORE, LABEL_DISAGREEMENT, TEACHER_ENTROPY, FIRST_STEP_LOSS, UPDATE_NORM_SQUARED, LEARNING_RATE}
)
"""Names that are kept however many others clients make up: what sites are compared by must not be crowded out."""

_SERVER_NAMES = frozenset({DRIFT_DIVERSITY, CODEC_ERROR["down"], CODEC_SECONDS["down"]})
"""Names of what the server adds to the record."""


class MetricNames:
    """The names that the clients of a run have used, at most `MAX_METRIC_NAMES` of them."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._warned = False

    def add(self, names: Iterable[str]) -> None:
        """Take in the names of an exchange's record."""
        self._names.update(name for name in names if name not in _SERVER_NAMES)

    def known(self, reply: Reply) -> Reply:
        """Leave out metrics whose names are too many."""
        for name in reply.metrics:
            if len(self._names) < MAX_METRIC_NAMES or name in OWN_METRIC_NAMES:
                self._names.add(name)
            elif name not in self._names and not self._warned:
                self._warned = True  # once: one client can make up names in every reply
                logger.warning("metric %r and further new names are not recorded: the clients have used %d others", name, MAX_METRIC_NAMES)
        known = {name: value for name, value in reply.metrics.items() if name in self._names}
        return reply if len(known) == len(reply.metrics) else dataclasses.replace(reply, metrics=known)
