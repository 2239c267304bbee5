"""The table of the frontier: what each configuration needs to reach an accuracy, and what it reaches within a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

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
    reached = [[track.accuracy_at(budget) for budget in frontier.budgets] for track in frontier.tracks]
    header = [
        "configuration",
        *(f"to {units.level(level)}" for level in frontier.levels),
        *(f"in {budget_name(frontier, budget)}" for budget in frontier.budgets),
    ]
    rows = [
        [
            track.label,
            *(cost_text(frontier if in_rounds else None, cost) for cost in its_costs),
            *(accuracy_text(track, budget, accuracy) for budget, accuracy in zip(frontier.budgets, its_accuracy, strict=True)),
        ]
        for track, its_costs, its_accuracy in zip(frontier.tracks, costs, reached, strict=True)
    ]
    looks = frontier.looks
    colors = [looks[track.method].color for track in frontier.tracks]
    best = {*_best_cells(costs, min, 1), *_best_cells(reached, max, 1 + len(frontier.levels))}
    caption = _caption(frontier, rows, in_rounds=in_rounds)
    data = _data(frontier, costs, reached)
    return Table(header, rows, colors, frozenset(best), caption, data, "frontier", "Accuracy for its bytes")


def _data(
    frontier: Frontier,
    costs: Sequence[Sequence[float | None]],
    reached: Sequence[Sequence[float | None]],
) -> Data:
    fields = [
        *("configuration", "name"),
        *(f"wire_bytes_to_{level:g}" for level in frontier.levels),
        *(f"accuracy_in_{budget:.0f}_bytes" for budget in frontier.budgets),
    ]
    rows: list[list[Value]] = [
        [track.label, track.code, *its_costs, *its_accuracy]
        for track, its_costs, its_accuracy in zip(frontier.tracks, costs, reached, strict=True)
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


def accuracy_text(track: Track, budget_bytes: float, accuracy: float | None) -> str:
    """An accuracy, marked where the track ended before it had spent the budget."""
    if accuracy is None:
        return NONE
    return units.percent(accuracy) + (ENDED if track.ended_before(budget_bytes) else "")


def _caption(frontier: Frontier, rows: Sequence[Sequence[str]], *, in_rounds: bool) -> str:
    parts = ["Bytes to reach an accuracy, and the accuracy within a budget of bytes; means over seeds."]
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
