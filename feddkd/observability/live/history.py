"""Keeps what a live page draws of the rounds, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from feddkd.exchange import Evaluation
from feddkd.scheduler.records import ExchangeRecord, RoundRecord

MOST_ROUNDS = 400
"""Rounds that are kept; of a longer run, the first one and each second, fourth, eighth... after it, and the last two."""

MOST_KINDS = 12
"""Exchange names that are told apart; a user's own algorithm may make up any number."""

OTHERS = "others"
"""Stands for all further exchange names."""

Row = dict[str, Any]


def shown_number(value: float | None) -> float | str | None:
    """Return a number as JSON can hold it: NaN and infinity as JavaScript's `Number` reads them."""
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


class RoundHistory:
    """A row for each round that is kept, and bytes by exchange name.

    Attributes:
        bytes_by_kind: wire bytes down and up so far, by exchange name.
        is_open: whether exchanges of the last row's round are still to come.
    """

    def __init__(self, metric: str) -> None:
        """Begin without a round.

        Args:
            metric: as `task.metric` has it.
        """
        self._metric = metric
        self._rows: dict[int, Row] = {}
        self._stride = 1
        self.bytes_by_kind: dict[str, list[int]] = {}

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def row(self, round_number: int) -> Row:
        """Return the row of a round, and begin it if there is none. Thins the rows before it."""
        if round_number not in self._rows:
            self._rows[round_number] = {"round": round_number, "bytes": {}}
            self._thin(round_number)
        return self._rows[round_number]

    def latest(self, key: str) -> tuple[int, float | str] | None:
        """Return the last round that has a value, and the value; None if no round has one."""
        found = ((row["round"], row[key]) for row in reversed(self._rows.values()) if row.get(key) is not None)
        return next(found, None)

    def of_round(self, round_number: int) -> Mapping[str, Any]:
        """Return a round's row; an empty one if it is not kept."""
        return self._rows.get(round_number, {})

    def add_exchange(self, record: ExchangeRecord) -> None:
        """Count an exchange's bytes, and take in its losses."""
        known = record.id.name in self.bytes_by_kind or len(self.bytes_by_kind) < MOST_KINDS
        kind = record.id.name if known else OTHERS
        both = self.bytes_by_kind.setdefault(kind, [0, 0])
        both[0] += record.traffic.wire_bytes_down
        both[1] += record.traffic.wire_bytes_up
        row = self.row(record.id.round)
        in_round = row["bytes"].setdefault(kind, [0, 0])
        in_round[0] += record.traffic.wire_bytes_down
        in_round[1] += record.traffic.wire_bytes_up
        row["total"] = sum(map(sum, self.bytes_by_kind.values()))
        if record.loss is not None and record.id.name == "local_train":
            row["training_loss"] = shown_number(record.loss)
        elif record.loss is not None:
            row["step_loss"] = shown_number(record.loss)

    def evaluated(self, round_number: int, evaluation: Evaluation) -> None:
        """Take in what the server's test set says of a round's model."""
        row = self.row(round_number)
        row["score"] = shown_number(evaluation.score(self._metric))
        row["loss"] = shown_number(evaluation.loss)

    def finished(self, record: RoundRecord) -> None:
        """Take in a round's record."""
        row = self.row(record.round)
        if record.client_evaluation is not None:
            row["client_score"] = shown_number(record.client_evaluation.score(self._metric))
            row["client_loss"] = shown_number(record.client_evaluation.loss)
        row |= {
            "seconds": record.seconds,
            "clients": record.clients_reported,
            "missing": len(record.clients_missing),
            "done_s": record.done_s,
        }

    def _thin(self, newest: int) -> None:
        """Leave out the rounds between those that are kept. The last two stay: one of them may still be open."""
        if (newest - 3) % self._stride:
            self._rows.pop(newest - 2, None)
        while len(self._rows) > MOST_ROUNDS:
            self._stride *= 2
            kept = {number: row for number, row in self._rows.items() if (number - 1) % self._stride == 0 or number >= newest - 1}
            self._rows = kept
