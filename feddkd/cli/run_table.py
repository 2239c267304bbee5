"""Lays out the table of a run: one row a round, in lines that are never longer than the terminal is wide."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from feddkd.algorithms import ALGORITHMS
from feddkd.cli.words import short_size
from feddkd.config import Config, MainMetric
from feddkd.config.main_metric import SHORT_TITLES, title_of
from feddkd.exchange import Evaluation
from feddkd.report.units import shortened
from feddkd.scheduler.records import RoundRecord
from feddkd.text import shown_score

INDENT = "  "
WIDE_GAP, NARROW_GAP = 2, 1
ARROW = " → "
NOTHING = "-"
HEAD_LETTERS = 12


@dataclass(frozen=True, slots=True)
class Row:
    """What a row shows.

    Attributes:
        step_losses: mean loss of each gradient step of the round, in order.
    """

    record: RoundRecord
    step_losses: Sequence[float]


@dataclass(frozen=True, slots=True)
class Column:
    """A column, right-aligned.

    Attributes:
        heads: the two lines of its head.
        keep: columns with a smaller number are left out first where there is too little room.
    """

    heads: tuple[str, str]
    width: int
    keep: int
    cell: Callable[[Row], str]


class RunTable:
    """The columns that a run fills and that fit."""

    def __init__(self, config: Config, width: int) -> None:
        """Choose the columns.

        Args:
            width: of the terminal, in characters.
        """
        self._columns = list(_columns(config))
        while self._width(NARROW_GAP) > width and (optional := [column.keep for column in self._columns if column.keep]):
            self._columns = [column for column in self._columns if column.keep != min(optional)]
        self._gap = WIDE_GAP if self._width(WIDE_GAP) <= width else NARROW_GAP

    @property
    def heads(self) -> list[str]:
        """The lines above the first row."""
        return [self._line([column.heads[number] for column in self._columns]) for number in range(2)]

    def row(self, record: RoundRecord, step_losses: Sequence[float]) -> str:
        """Write the line of a round."""
        return self._line([column.cell(Row(record, step_losses)) for column in self._columns])

    def _line(self, cells: Sequence[str]) -> str:
        padded = (cell.rjust(column.width) for cell, column in zip(cells, self._columns, strict=True))
        return f"{INDENT}{(' ' * self._gap).join(padded)}".rstrip()

    def _width(self, gap: int) -> int:
        return len(INDENT) + sum(column.width for column in self._columns) + gap * (len(self._columns) - 1)


def _columns(config: Config) -> Iterator[Column]:
    """Every column that this configuration fills."""
    rounds, has_test_set, metric = config.rounds, config.data.test_set, MainMetric.of(config)
    yield Column(("", "round"), max(5, 2 * len(str(rounds)) + 1), 0, lambda row: f"{row.record.round}/{rounds}")
    if has_test_set:
        yield _score_column("test", metric.name, 0, lambda row: row.record.evaluation)
    if config.data.holdout:
        yield _score_column("client", metric.name, 4 if has_test_set else 0, lambda row: row.record.client_evaluation)
    if has_test_set or config.data.holdout:
        where = "test" if has_test_set else "client"
        for name in metric.others:
            if name != "loss":
                yield _score_column(where, name, 1, lambda row: row.record.evaluation)
        if metric.name != "loss":
            yield Column((where, "loss"), 6, 1, lambda row: _loss_of(row.record.evaluation))
    if has_steps(config):
        yield Column(("step loss", "first → last"), 13, 3, lambda row: first_and_last(row.step_losses) or NOTHING)
    yield Column(("", "down"), 7, 2, lambda row: short_size(row.record.traffic.wire_bytes_down))
    yield Column(("", "up"), 7, 2, lambda row: short_size(row.record.traffic.wire_bytes_up))
    yield Column(("bytes", "so far"), 7, 0, lambda row: short_size(row.record.cumulative_wire_bytes))
    yield Column(("", "time"), 7, 0, lambda row: _seconds(row.record.seconds))


def has_steps(config: Config) -> bool:
    """Return whether rounds have gradient steps; a user's own algorithm may."""
    algorithm = ALGORITHMS.get(config.algorithm.name)
    return algorithm is None or set(algorithm.exchanges(config)) != {"local_train"}


def _score_column(where: str, metric: str, keep: int, evaluation: Callable[[Row], Evaluation | None]) -> Column:
    """The column of one metric."""

    def cell(row: Row) -> str:
        found = evaluation(row)
        value = found.score(metric) if found else None
        return NOTHING if value is None else shown_score(metric, value)

    head = shortened(SHORT_TITLES.get(metric, title_of(metric)), HEAD_LETTERS)
    return Column((where, head), max(7, len(head)), keep, cell)


def _loss_of(evaluation: Evaluation | None) -> str:
    return _loss(evaluation.loss) if evaluation else NOTHING


def first_and_last(losses: Sequence[float]) -> str:
    """The first and the last of a round's step losses; empty without any."""
    return ARROW.join(map(_loss, (*losses[:1], *losses[1:][-1:])))


def _loss(loss: float) -> str:
    """A loss in six characters at most."""
    digits = next((digits for digits, limit in ((3, 10), (2, 100), (1, 1000)) if abs(loss) < limit), None)
    return f"{loss:.{digits}f}" if digits is not None else f"{loss:.0e}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 1000 else f"{seconds:.0f} s"
