"""The table of the frontier: what each configuration needs to reach a level of the metric, and what it reaches within a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from feddkd.config import MainMetric
from feddkd.report import units
from feddkd.report.frontier import Frontier, Track
from feddkd.report.table import Data, Table, Value

NONE = "-"
ENDED = "*"


def frontier_table(frontier: Frontier, *, in_rounds: bool = True) -> Table:
    """One row for each configuration in the colour of its method, the best number of each column strong.

    Args:
        in_rounds: whether bytes are also said in rounds of FedAvg, which takes more room.
    """
    costs = [[track.bytes_to(level) for level in frontier.levels] for track in frontier.tracks]
    metric = frontier.metric
    reached = [[track.score_at(budget) for budget in frontier.budgets] for track in frontier.tracks]
    header = [
        "configuration",
        *(f"to {level_text(metric, level)}" for level in frontier.levels),
        *(f"in {budget_name(frontier, budget)}" for budget in frontier.budgets),
    ]
    rows = [
        [
            track.label,
            *(cost_text(frontier if in_rounds else None, cost) for cost in its_costs),
            *(score_text(track, budget, score) for budget, score in zip(frontier.budgets, its_scores, strict=True)),
        ]
        for track, its_costs, its_scores in zip(frontier.tracks, costs, reached, strict=True)
    ]
    looks = frontier.looks
    colors = [looks[track.method].color for track in frontier.tracks]
    best = {*_best_cells(costs, min, 1), *_best_cells(reached, min if metric.minimised else max, 1 + len(frontier.levels))}
    caption = _caption(frontier, rows, in_rounds=in_rounds)
    data = _data(frontier, costs, reached)
    return Table(header, rows, colors, frozenset(best), caption, data, "frontier", f"{metric.heading} for its bytes")


def _data(
    frontier: Frontier,
    costs: Sequence[Sequence[float | None]],
    reached: Sequence[Sequence[float | None]],
) -> Data:
    fields = [
        *("configuration", "name"),
        *(f"wire_bytes_to_{level:g}" for level in frontier.levels),
        *(f"{frontier.metric.code}_in_{budget:.0f}_bytes" for budget in frontier.budgets),
    ]
    rows: list[list[Value]] = [
        [track.label, track.code, *its_costs, *its_scores]
        for track, its_costs, its_scores in zip(frontier.tracks, costs, reached, strict=True)
    ]
    return Data(fields, rows)


def budget_name(frontier: Frontier, budget_bytes: float) -> str:
    """A budget as a reader would call it: in rounds of FedAvg where they are known."""
    if frontier.unit_bytes is None:
        return units.size(budget_bytes)
    rounds = budget_bytes / frontier.unit_bytes
    return f"{rounds:g} round{'' if rounds == 1 else 's'}"


def cost_text(frontier: Frontier | None, cost_bytes: float | None) -> str:
    """Bytes, and rounds of FedAvg for as many where they are known; in short without a frontier."""
    if cost_bytes is None:
        return NONE
    if frontier is None:
        return units.short_size(cost_bytes)
    unit_bytes = frontier.unit_bytes
    rounds = "" if unit_bytes is None else f" ({cost_bytes / unit_bytes:.3g})"
    return units.size(cost_bytes) + rounds


def level_text(metric: MainMetric, level: float) -> str:
    """A level of the metric, without the digits that it does not have."""
    return units.level(level) if metric.is_share else f"{level:g}"


def score_text(track: Track, budget_bytes: float, score: float | None) -> str:
    """A value of the metric, marked where the track ended before it had spent the budget."""
    if score is None:
        return NONE
    return track.metric.text(score) + (ENDED if track.ended_before(budget_bytes) else "")


def _caption(frontier: Frontier, rows: Sequence[Sequence[str]], *, in_rounds: bool) -> str:
    metric = frontier.metric
    level = "an accuracy" if metric.name == "accuracy" else f"a level of {metric.title}"
    parts = [f"Bytes to reach {level}, and the {metric.title} within a budget of bytes; means over seeds."]
    if frontier.unit_bytes is not None:
        where = ", also in parentheses," if in_rounds else ""
        size = units.size(frontier.unit_bytes)
        parts.append(f"A round{where} is one of FedAvg without a codec: {size}.")
    if any(cell.endswith(ENDED) for row in rows for cell in row[1:]):
        parts.append(f"{ENDED}: ended before it had spent the budget; more rounds would tell.")
    if any(cell == NONE for row in rows for cell in row):
        parts.append(f"{NONE}: not reached, by some seed at least.")
    return " ".join(parts)


def _best_cells(
    rows: Sequence[Sequence[float | None]], choose: Callable[[list[float]], float], first_column: int
) -> Iterator[tuple[int, int]]:
    """Row and column of the best number of each column."""
    for column, numbers in enumerate(zip(*rows, strict=True)):
        known = [number for number in numbers if number is not None]
        if known:
            yield from ((row, first_column + column) for row, number in enumerate(numbers) if number == choose(known))
