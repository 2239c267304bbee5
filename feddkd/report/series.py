"""The numbers behind the pictures, read off the records of runs.

Whatever a record lacks is left out: an older one has no metrics, an unfinished one has no summary,
an algorithm of the user's own has exchanges of other names.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from feddkd.exchange import DELIVER
from feddkd.observability.record_lines import ExchangeLine, MeasuredLine
from feddkd.observability.run_folder import RunFolder

LOCAL_TRAIN = "local_train"
OTHER = "joining and late answers"
REST = "evaluation and server"

MAX_COLUMNS = 10_000

MAX_CELLS = 4_000_000
"""A heat map of more is not drawn."""

ByRound = dict[int, float]
"""Round number to value, for the rounds that have one."""

Values = Callable[[RunFolder], ByRound]
"""Reads one number of every round that has it."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Mean, lowest and highest value over several runs, round by round."""

    rounds: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True, slots=True)
class Split:
    """An amount of which the first part is told apart from the rest; `first` is None where it was not recorded."""

    total: float
    first: float | None


def over_runs(runs: Iterable[RunFolder], values: Values) -> Curve:
    """One curve for several runs; each round takes the runs that have a value for it."""
    found: dict[int, list[float]] = defaultdict(list)
    for run in runs:
        for number, value in values(run).items():
            found[number].append(value)
    rounds = sorted(found)
    columns = [found[number] for number in rounds]
    return Curve(rounds, [math.fsum(column) / len(column) for column in columns], [min(c) for c in columns], [max(c) for c in columns])


def round_values(key: str) -> Values:
    """Reads one number of every round, such as `cumulative_wire_bytes`."""

    def values(run: RunFolder) -> ByRound:
        found = ((line.round, getattr(line, key)) for line in run.rounds)
        return {number: value for number, value in found if value is not None}

    return values


def score_values(metric: str, *, at_clients: bool = False) -> Values:
    """Reads a metric of the global model: on the server's test set, or on what the clients hold out."""

    def values(run: RunFolder) -> ByRound:
        found = ((line.round, line.client_score(metric) if at_clients else line.score(metric)) for line in run.rounds)
        return {number: value for number, value in found if value is not None}

    return values


def step_losses(run: RunFolder) -> tuple[ByRound, ByRound]:
    """Mean loss at the first and at the last of each round's steps; a round of one step has no last one.

    The first is measured before any step, the last one before the last step.
    """
    attempts: dict[int, int] = {}
    losses: dict[int, list[float]] = {}
    for line in run.exchanges:
        loss = line.metrics.get("first_step_loss") if line.exchange == LOCAL_TRAIN else line.loss
        if line.exchange == DELIVER or loss is None:
            continue
        if attempts.get(line.round) != line.attempt:  # the last attempt at a round is the one that counts
            attempts[line.round], losses[line.round] = line.attempt, []
        losses[line.round].append(loss)
    return {number: found[0] for number, found in losses.items()}, {number: found[-1] for number, found in losses.items() if found[1:]}


def metric_names(runs: Iterable[RunFolder]) -> list[str]:
    """The names of all metrics that any round of any run has."""
    return list(dict.fromkeys(name for run in runs for line in _measured(run) for name in line.metrics))


def metric_values(name: str) -> Values:
    """Reads one metric of every round: what the round itself says, else the first that its exchanges said."""

    def values(run: RunFolder) -> ByRound:
        found: ByRound = {}
        for line in _measured(run):
            if name in line.metrics:
                found.setdefault(line.round, line.metrics[name])
        return found

    return values


def _measured(run: RunFolder) -> Iterator[MeasuredLine]:
    return itertools.chain(run.rounds, run.exchanges)


def bytes_by_exchange(run: RunFolder) -> dict[str, Split]:
    """Wire bytes of the whole run by the name of the exchange; the first part is what went down."""
    down: dict[str, int] = defaultdict(int)
    total: dict[str, int] = defaultdict(int)
    for line in run.exchanges:
        down[line.exchange] += line.wire_bytes_down
        total[line.exchange] += line.wire_bytes_down + line.wire_bytes_up
    if run.summary and (other := run.summary.other_wire_bytes_down + run.summary.other_wire_bytes_up):
        down[OTHER], total[OTHER] = run.summary.other_wire_bytes_down, other
    return {name: Split(total[name], down[name]) for name in total}


def seconds_by_phase(run: RunFolder) -> dict[str, Split]:
    """Seconds of the whole run by exchange, and what else the rounds took.

    The first part of an exchange is the time that its clients computed, in the mean over them.
    """
    total: dict[str, float] = defaultdict(float)
    computing: dict[str, float | None] = {}
    by_round: dict[int, float] = defaultdict(float)
    for line in run.exchanges:
        total[line.exchange] += line.seconds
        by_round[line.round] += line.seconds
        own, so_far = _mean_computing_s(line), computing.setdefault(line.exchange, 0.0)
        computing[line.exchange] = None if own is None or so_far is None else so_far + own
    phases = {name: Split(seconds, computing[name]) for name, seconds in total.items()}
    if run.rounds:
        # The final delivery may end after its round's clock was read, hence no less than nothing.
        phases[REST] = Split(math.fsum(max(0.0, line.seconds - by_round[line.round]) for line in run.rounds), None)
    return phases


def _mean_computing_s(line: ExchangeLine) -> float | None:
    if line.client_seconds is None or not line.clients_reported:
        return None
    # No less than nothing and no more than the exchange took: a client's clock is its own.
    return min(max(line.client_seconds / line.clients_reported, 0.0), line.seconds)


def mean_splits(splits: Sequence[Mapping[str, Split]]) -> dict[str, Split]:
    """The mean run's amounts by name, in order of first appearance; a run without a name has nothing of it."""
    means = {}
    for name in dict.fromkeys(name for own in splits for name in own):
        found = [own[name] for own in splits if name in own]
        firsts = [split.first for split in found if split.first is not None]
        first = math.fsum(firsts) / len(splits) if len(firsts) == len(found) else None
        means[name] = Split(math.fsum(split.total for split in found) / len(splits), first)
    # What belongs to no exchange comes last even if the first run has none of it.
    return {name: means[name] for name in sorted(means, key=(OTHER, REST).__contains__)}


def class_accuracy(runs: Sequence[RunFolder]) -> tuple[list[int], np.ma.MaskedArray[Any, Any]] | None:
    """Rounds, and accuracy [classes, rounds] in the mean over runs, masked where unknown; None if no run recorded it."""
    rows: dict[int, list[list[float]]] = defaultdict(list)
    for run in runs:
        for line in run.rounds:
            if any(value is not None for value in line.class_accuracy or ()):
                rows[line.round].append([math.nan if value is None else value for value in line.class_accuracy or ()])
    if not rows:
        return None
    span = range(min(rows), max(rows) + 1)
    # Rounds without a record are left white, as far as they leave room for the others.
    rounds = list(span) if len(span) <= MAX_COLUMNS else sorted(rows)
    classes = max(len(row) for found in rows.values() for row in found)
    if classes * len(rounds) > MAX_CELLS:
        return None
    cells = np.ma.array(np.zeros((classes, len(rounds))), mask=True)
    for column, number in enumerate(rounds):
        if number in rows:
            padded = np.array([row + [math.nan] * (classes - len(row)) for row in rows[number]])
            cells[:, column] = np.ma.masked_invalid(padded).mean(axis=0)
    return rounds, cells
